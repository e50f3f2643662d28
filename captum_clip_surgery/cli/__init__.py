"""The command line: `clip-surgery demo`, `explain`, `segment`, and more; see its help."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated

import typer

import captum_clip_surgery
from captum_clip_surgery._utils.distributed import refuse_several
from captum_clip_surgery.cli.app import app as app_page
from captum_clip_surgery.cli.explain import compare, demo, explain
from captum_clip_surgery.cli.export import export
from captum_clip_surgery.cli.measure import check, evaluate, models
from captum_clip_surgery.cli.tasks import points, recognize, segment, words

#: What several processes may start: they share it, or it writes no file. `evaluate` looks itself.
FOR_SEVERAL = ("evaluate", "export", "models")

app = typer.Typer(
    help="Explain what CLIP sees, and where.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (
    demo,
    explain,
    compare,
    segment,
    recognize,
    points,
    words,
    evaluate,
    export,
    models,
    check,
    app_page,
):
    app.command()(command)


def main() -> None:
    """Run the command line; what a user can mend ends in one line, not in a traceback."""
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    try:
        app()
    except (ValueError, TypeError, IndexError, OSError, ImportError) as error:
        notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
        sys.exit(f"error: {error}{notes}")


@app.callback(invoke_without_command=True)
def before(
    context: typer.Context,
    show: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    if show:
        print(captum_clip_surgery.__version__)
        raise typer.Exit
    if context.invoked_subcommand not in (None, *FOR_SEVERAL):
        refuse_several(str(context.invoked_subcommand))
