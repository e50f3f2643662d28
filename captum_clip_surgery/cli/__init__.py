"""Command line of the package: `clip-surgery`, or `python -m captum_clip_surgery`.

Commands are imported when they run, so that `--help` and `--version` answer at once.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

import captum_clip_surgery
from captum_clip_surgery._utils.progress import report_step
from captum_clip_surgery.cli import _collection_options, _options, _task_options
from captum_clip_surgery.cli._bridge import as_function, option_names, spell_arguments
from captum_clip_surgery.cli._groups import PANELS

__all__ = ["app", "main"]

#: Options of every command, and the module with the function of the command's name.
COMMANDS: dict[str, tuple[type[Any], str]] = {
    "demo": (_options.Demo, "_explain"),
    "explain": (_options.Explain, "_explain"),
    "compare": (_options.Compare, "_explain"),
    "segment": (_task_options.Segment, "_tasks"),
    "recognize": (_task_options.Recognize, "_tasks"),
    "points": (_task_options.Points, "_tasks"),
    "words": (_task_options.Words, "_tasks"),
    "match": (_task_options.Match, "_tasks"),
    "evaluate": (_options.Evaluate, "_evaluate"),
    "export": (_options.Export, "_export"),
    "audit": (_collection_options.Audit, "_collection"),
    "search": (_collection_options.Search, "_search"),
    "models": (_options.Models, "_check"),
    "check": (_options.Check, "_check"),
    "app": (_options.App, "_app"),
}
#: Commands that several processes may run: they share the work, or write no files. `evaluate`
#: checks this itself.
DISTRIBUTED = ("evaluate", "export", "models")


def _hide_types(parameters: Iterable[Any]) -> None:
    """Hide the types of parameters, such as <list[str]> and <bool>, in `--help`."""
    for parameter in parameters:
        parameter.display_type_rich = lambda ctx: None


class _Group(TyperGroup):
    """Commands whose help is drawn by rich, and whose usage errors are plain lines."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        rich_utils = import_module("typer.rich_utils")  # rich, only if it is needed
        rich_utils.rich_format_help(obj=self, ctx=ctx, markup_mode="rich")

    def get_params(self, ctx: Any) -> list[Any]:
        params = super().get_params(ctx)
        _hide_types(params)  # all are flags
        return params


class _Command(TyperCommand):
    """A command whose help is drawn by rich."""

    def __init__(self, name: str | None, **settings: Any) -> None:
        super().__init__(name, **settings | {"rich_markup_mode": "rich"})

    def get_params(self, ctx: Any) -> list[Any]:
        params = super().get_params(ctx)
        _hide_types(each for each in params if each.name == "help" or "-" not in each.opts[0])
        return params

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")  # pydantic's
            raise


app = typer.Typer(
    help="Explain what CLIP sees, and where.",
    cls=_Group,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Run the command line; errors that a user can fix end in one line instead of a traceback."""
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    # Once, whatever the place; Python's own filters hide what only developers need.
    warnings.simplefilter("once", UserWarning)
    app()


@app.callback(invoke_without_command=True)
def _print_version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(captum_clip_surgery.__version__)
        raise typer.Exit


def _runner(name: str, module: str) -> Callable[[Any], None]:
    def run(options: Any) -> None:
        report_step(f"clip-surgery {name}: loading libraries")
        try:
            _run(name, module, options)
        except (ValueError, TypeError, IndexError, OSError, ImportError) as error:
            if options.verbose:
                raise
            notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
            sys.exit(f"error: {spell_arguments(str(error), option_names(type(options)))}{notes}")

    return run


def _run(name: str, module: str, options: Any) -> None:
    from captum_clip_surgery._utils.drivers import refuse_several

    if name not in DISTRIBUTED:
        refuse_several(name)
    getattr(import_module(f"{__name__}.{module}"), name)(options)


for _name, (_fields, _module) in COMMANDS.items():
    _function = as_function(_fields, _runner(_name, _module), PANELS)
    app.command(_name, cls=_Command)(_function)
