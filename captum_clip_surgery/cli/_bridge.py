"""Dataclasses of options as functions that typer reads.

Libraries that do this expect pydantic models, which the package does not use otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from dataclasses import MISSING, fields, is_dataclass
from inspect import Parameter, Signature
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from typer.models import OptionInfo

Options = TypeVar("Options")

#: Default metavars in `--help` by the type of an option's value.
METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH", bool: " "}
#: Letters of choices that `--help` lists in the column of values; more are listed in the text.
MAX_CHOICES = 20
#: What is not before the name of an argument, but before a part of another name or of a path.
APART = r"(?<![-\w./\\])"


def as_function(
    options: type[Options],
    run: Callable[[Options], None],
    panels: Mapping[str, str] | None = None,
) -> Callable[..., None]:
    """Return a function with one parameter per option, which builds the options and runs them.

    Args:
        options: A dataclass whose fields are annotated as typer's parameters are. A field whose
            type is itself a dataclass is a group: its fields become parameters in its place.
        run: Called with the options.
        panels: Title under which `--help` lists a field, by the field's name.

    Returns:
        A function that typer takes for a command; the docstring of `options` is its help.
    """

    def command(**values: Any) -> None:
        run(_build(options, values))

    parameters = list(_parameters(options, panels or {}))
    command.__doc__ = options.__doc__
    command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return command


def option_names(options: type[Any]) -> list[str]:
    """Return the names of the fields of a dataclass of options and of its groups."""
    return [parameter.name for parameter in _parameters(options, {})]


def spell_arguments(message: str, names: Iterable[str]) -> str:
    """Return a message of a function with its arguments spelled as options.

    Args:
        message: The message.
        names: Names of the arguments that are options.

    Example::

        >>> spell_arguments("num_blocks 99 fails with method='GEM'", ["num_blocks", "method"])
        '--num-blocks 99 fails with --method GEM'
    """
    for name in names:
        option = f"--{name.replace('_', '-')}"
        message = re.sub(rf"{APART}{name}=True(?!\w)", option, message)  # a flag has no value
        message = re.sub(rf"{APART}{name}=(['\"]?)(\w+)\1", rf"{option} \2", message)
        if "_" in name:  # others may be words
            message = re.sub(rf"{APART}{name}(?!\w|\.\w|/)", option, message)
    return message.replace("--feature-surgery None", "--feature-surgery none")


def _parameters(options: Any, panels: Mapping[str, str]) -> Iterator[Parameter]:
    hints = get_type_hints(options, include_extras=True)
    for field in fields(options):
        hint = hints[field.name]
        if is_dataclass(hint):
            yield from _parameters(hint, panels)
        else:
            default = Parameter.empty if field.default is MISSING else field.default
            annotation = _described(hint, panels.get(field.name))
            yield Parameter(
                field.name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation
            )


def _described(hint: Any, panel: str | None) -> Any:
    """Return an annotation with its panel, and with a value that `--help` can print in a column."""
    kind, info, *others = get_args(hint)
    if not isinstance(info, OptionInfo):
        return hint
    info = copy(info)  # options that commands share are not changed
    info.rich_help_panel = panel
    value = _value_type(kind)
    if get_origin(value) is Literal:
        choices = ", ".join(get_args(value))
        if len(choices) > MAX_CHOICES:
            info.metavar, info.help = "CHOICE", f"{info.help} One of {choices}."
    elif info.metavar is None:
        info.metavar = METAVARS[value]
    return Annotated[(kind, info, *others)]


def _value_type(kind: Any) -> Any:
    """Return the type of one value: `int` for `int | None`, `str` for `list[str]`."""
    while get_origin(kind) in (Union, UnionType, list):
        kind = next(part for part in get_args(kind) if part is not NoneType)
    return kind


def _build(options: type[Options], values: dict[str, Any]) -> Options:
    hints = get_type_hints(options)
    return options(
        **{
            field.name: _build(hints[field.name], values)
            if is_dataclass(hints[field.name])
            else values[field.name]
            for field in fields(options)  # type: ignore[arg-type]
        }
    )
