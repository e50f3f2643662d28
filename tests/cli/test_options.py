"""Options are data: light to import, and true to the rooms whose choices they offer."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, get_args

import pytest
import typer
from typer.testing import CliRunner

from captum_clip_surgery import METHODS, tasks
from captum_clip_surgery._utils.drivers import run_on_ray
from captum_clip_surgery.app import serve
from captum_clip_surgery.attr._registry import DEFAULT_METHODS
from captum_clip_surgery.attr._repair import REPAIRS
from captum_clip_surgery.cli import COMMANDS, _choices, _options, _task_options, app
from captum_clip_surgery.cli._bridge import as_function
from captum_clip_surgery.cli._groups import Command
from captum_clip_surgery.datasets import DATASETS
from captum_clip_surgery.evaluation import _protocol
from captum_clip_surgery.evaluation._protocol import TASKS
from captum_clip_surgery.evaluation._scenes import MEASURES
from captum_clip_surgery.export import plan
from captum_clip_surgery.functional import VARIANTS
from captum_clip_surgery.tasks._sam import INSTANCES
from captum_clip_surgery.tasks._word_maps import METHODS as WORD_METHODS
from captum_clip_surgery.visualization._grids import SCALES
from captum_clip_surgery.visualization._saving import FORMATS
from captum_clip_surgery.visualization._scales import AUTO, SIGNS

PROBE = """
import sys
from captum_clip_surgery import cli
sys.argv = ["clip-surgery", *sys.argv[1:]]
try:
    cli.main()
except SystemExit as ended:
    heavy = {"torch", "captum", "open_clip", "matplotlib", "numpy", "PIL"} & set(sys.modules)
    print(f"\\n{ended.code} {sorted(heavy)}")
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["evaluate", "--help"], ["evaluate", "--sise", "3"]]
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    command = [sys.executable, "-c", PROBE, *arguments]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[-1] == f"{2 if '--sise' in arguments else 0} []"


def test_choices_are_those_of_the_rooms() -> None:
    assert tuple(METHODS) == _choices.METHODS
    assert tuple(_choices.DEFAULT_METHODS.split(",")) == DEFAULT_METHODS
    assert get_args(_choices.Dataset) == ("scenes", *DATASETS)
    assert get_args(_choices.FeatureSurgery) == (*VARIANTS, "none")
    assert get_args(_choices.AutoFeatureSurgery) == ("auto", *VARIANTS, "none")
    assert get_args(_choices.FigureFormat) == tuple(FORMATS)
    assert get_args(_choices.Instances) == INSTANCES
    assert get_args(_choices.Repair) == (*REPAIRS, "registers")
    assert get_args(_choices.WordMethod) == WORD_METHODS
    assert get_args(_choices.Sign) == (AUTO, *SIGNS)
    assert get_args(_choices.Scales) == SCALES
    assert _choices.MEASURES == MEASURES
    assert _choices.TASKS == TASKS
    assert _choices.MAX_SIDE == _protocol.MAX_PIXELS
    assert tuple(sorted(path.stem for path in _protocol.FOLDER.iterdir())) == _choices.PROTOCOLS


@pytest.mark.parametrize(
    ("group", "function"),
    [
        (_task_options.SegmentationOptions, tasks.segment),
        (_task_options.PromptOptions, tasks.prompts),
        (_task_options.WordOptions, tasks.word_maps),
        (_options.ExportOptions, plan),
        (_options.RayOptions, run_on_ray),
        (_options.ServerOptions, serve),
    ],
)
def test_groups_have_the_names_and_defaults_of_arguments(
    group: type, function: Callable[..., object]
) -> None:
    parameters = inspect.signature(function).parameters
    for field in fields(group):
        default = parameters[field.name].default
        assert (None if field.default == "none" else field.default) == default or (
            default is inspect.Parameter.empty
        )


def test_every_option_has_help() -> None:
    command = typer.main.get_command(app)
    assert set(command.commands) == set(COMMANDS)  # type: ignore[attr-defined]
    for name, each in command.commands.items():  # type: ignore[attr-defined]
        assert each.help, name
        for parameter in each.params:
            assert parameter.help, f"{name} {parameter.name}"
            assert parameter.help.endswith("."), f"{name} {parameter.name}"


def test_the_documentation_names_the_commands_that_lack_an_option() -> None:
    text = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    rows = re.findall(r"^\| (`--.*?) \| (.*) \|$", text, re.MULTILINE)
    assert len(rows) == 8
    before: set[str] = set()
    for options, why in rows:
        for option in re.findall(r"`(-.*?)`", options):
            lacking = {
                name
                for name, command in commands.items()
                if not any(option in parameter.opts for parameter in command.params)
            }
            named = {name for name in commands if f"`{name}`" in why}
            if option == "--methods":
                named -= {"explain", "compare", "evaluate"}  # which have it
            if why.startswith("the same"):
                named |= before
            assert named == lacking, option
        before = named


@dataclass(frozen=True, kw_only=True)
class Inner:
    """A group."""

    count: Annotated[int, typer.Option(min=1, help="A number.")] = 2


@dataclass(frozen=True, kw_only=True)
class Outer:
    """The help."""

    path: Annotated[Path, typer.Argument()]
    inner: Inner
    name: Annotated[str, typer.Option("--called")]


def test_a_dataclass_becomes_a_command() -> None:
    seen: list[Outer] = []
    small = typer.Typer()
    small.command()(as_function(Outer, seen.append))
    runner = CliRunner()
    assert runner.invoke(small, ["a/b", "--called", "x"]).exit_code == 0
    assert runner.invoke(small, ["c", "--count", "5", "--called", "y"]).exit_code == 0
    assert seen == [
        Outer(path=Path("a/b"), inner=Inner(), name="x"),
        Outer(path=Path("c"), inner=Inner(count=5), name="y"),
    ]
    assert runner.invoke(small, ["c", "--count", "0", "--called", "y"]).exit_code == 2
    assert runner.invoke(small, ["c"]).exit_code == 2  # --called has no default
    assert "The help." in runner.invoke(small, ["--help"]).output


def test_every_command_shows_tracebacks_and_has_an_example() -> None:
    for name, (options, _) in COMMANDS.items():
        assert issubclass(options, Command), name
        assert f"clip-surgery {name}" in (options.__doc__ or ""), name
        panels = {
            parameter.rich_help_panel  # type: ignore[attr-defined]
            for parameter in typer.main.get_command(app).commands[name].params  # type: ignore[attr-defined]
            if parameter.name not in ("verbose", "help", "images", "source")
        }
        assert None not in panels, name


def test_help_is_grouped_and_usage_errors_are_plain_lines() -> None:
    runner = CliRunner()
    printed = runner.invoke(app, ["segment", "-h"]).output
    for title in ("Texts", "Model", "Method", "Results"):
        assert f"─ {title} ─" in printed
    assert "CHOICE" in printed
    failed = runner.invoke(app, ["segment", "a.png", "--threshold", "3"])
    assert failed.exit_code == 2
    assert "Error: Invalid value for '--threshold'" in failed.output
    assert "─" not in failed.output
