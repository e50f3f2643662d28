"""Dataclasses of options as functions that typer reads.

Libraries that do this expect pydantic models, which the package does not use otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from inspect import Parameter, Signature
from typing import Any, TypeVar, get_type_hints

Options = TypeVar("Options")


def as_function(options: type[Options], run: Callable[[Options], None]) -> Callable[..., None]:
    """Return a function with one parameter per option, which builds the options and runs them.

    Args:
        options: A dataclass whose fields are annotated as typer's parameters are. A field whose
            type is itself a dataclass is a group: its fields become parameters in its place.
        run: Called with the options.

    Returns:
        A function that typer takes for a command; the docstring of `options` is its help.
    """

    def command(**values: Any) -> None:
        run(_build(options, values))

    command.__doc__ = options.__doc__
    command.__signature__ = Signature(list(_parameters(options)))  # type: ignore[attr-defined]
    return command


def _parameters(options: Any) -> Iterator[Parameter]:
    hints = get_type_hints(options, include_extras=True)
    for field in fields(options):
        hint = hints[field.name]
        if is_dataclass(hint):
            yield from _parameters(hint)
        else:
            default = Parameter.empty if field.default is MISSING else field.default
            yield Parameter(field.name, Parameter.KEYWORD_ONLY, default=default, annotation=hint)


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
