"""The pages say what is so: what they show runs, what they name exists, and the site is whole."""

from __future__ import annotations

import ast
import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import torch
import typer
from typer.exceptions import TyperException

import captum_clip_surgery
from captum_clip_surgery.attr.registry import METHODS
from captum_clip_surgery.cli import app
from tests._helpers.cases import each

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
#: Pages whose Python other tests run.
RUN_ELSEWHERE = {"tasks.md", "measures.md", "export.md"}
EXAMPLES = ("A method", "A tower", "A measure", "A data set")
LINES = 40  # of a worked example, all its blocks together, at most
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
TOOLS = {"pytest", "ruff", "mypy", "mkdocs"}  # of who works on the package
COMMAND: Any = typer.main.get_command(app)


def needs(*libraries: str) -> None:
    for library in libraries:
        pytest.importorskip(library)


def blocks(text: str, language: str) -> list[str]:
    """Fenced blocks of a language; what stands behind its name, as "no-run", makes another."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def run(source: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Blocks in order, where the pictures that they open lie."""
    (folder / "docs").mkdir()
    shutil.copytree(DOCS / "images", folder / "docs" / "images")
    monkeypatch.chdir(folder)
    torch.manual_seed(0)
    shared: dict[str, Any] = {"__name__": "page"}
    for block in source:
        exec(compile(block, "page", "exec", dont_inherit=True), shared)
    return shared


# --- Python --------------------------------------------------------------------------------------

WITH_PYTHON = [
    page for page in PAGES if blocks(page.read_text(), "python") and page.name not in RUN_ELSEWHERE
]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.stem)
def test_python_runs_in_order(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if page.stem == "recipes":
        needs("transformers")
    run(blocks(page.read_text(), "python"), tmp_path, monkeypatch)


def test_python_that_does_not_run_reads_as_python() -> None:
    found = [block for page in PAGES for block in blocks(page.read_text(), "python no-run")]
    assert found
    for block in found:
        ast.parse(block)


def example(title: str) -> list[str]:
    """The blocks of a section of CONTRIBUTING.md."""
    (section,) = re.findall(
        rf"^## {title}$(.*?)(?=^## |\Z)", CONTRIBUTING.read_text(), flags=re.DOTALL | re.MULTILINE
    )
    return blocks(section, "python")


@each("title", EXAMPLES)
def test_worked_examples_are_short(title: str) -> None:
    assert 0 < sum(len(block.splitlines()) for block in example(title)) <= LINES


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """What examples register is gone afterwards."""
    monkeypatch.setattr("captum_clip_surgery.attr.registry.METHODS", dict(METHODS))
    monkeypatch.setattr(captum_clip_surgery, "METHODS", captum_clip_surgery.attr.registry.METHODS)
    families = captum_clip_surgery.models.image.FAMILIES
    monkeypatch.setattr("captum_clip_surgery.models.image.FAMILIES", families)


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("title", EXAMPLES)
def test_worked_examples_run(title: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = example(title)
    assert "assert" in source[-1]
    shared = run(source, tmp_path, monkeypatch)
    if title == "A measure":  # its own example in the docstring
        import doctest

        measure = shared["centre_distance"]
        runner = doctest.DocTestRunner()
        (test,) = doctest.DocTestFinder().find(measure, "measure", module=False, globs=shared)
        assert runner.run(test).failed == 0
        assert runner.tries


# --- what pages name -----------------------------------------------------------------------------


def commands() -> list[tuple[str, str]]:
    """Each line of a console block, with its page."""
    found = []
    for page in [*PAGES, CONTRIBUTING, ROOT / "README.md"]:
        for language in ("console", "bash"):
            for block in blocks(page.read_text(), language):
                for line in block.splitlines():
                    found += [
                        (page.name, part.strip())
                        for part in line.removeprefix("$ ").split("&&")
                        if part.strip()
                    ]
    return found


def parse(arguments: list[str]) -> None:
    """Whether the command line takes them; nothing is run."""
    name, *rest = arguments
    assert name in COMMAND.commands, f"there is no command {name}"
    COMMAND.commands[name].make_context(name, rest)


def check(line: str) -> None:
    """Whether a line of a shell names what exists."""
    words = shlex.split(line, comments=True)
    if not words:
        return
    if words[0] == "clip-surgery":
        parse(words[1:])
    elif words[:2] == ["pip", "install"]:
        extras = [name for few in re.findall(r"\[(.*?)\]", line) for name in few.split(",")]
        assert set(extras) <= set(SETUP["options.extras_require"])
    elif words[0] in ("python", "torchrun") and "-m" in words:
        module, *rest = words[words.index("-m") + 1 :]
        if module == "captum_clip_surgery":
            parse(rest)
        assert find_spec(module)
    elif words[0] == "python":
        assert (ROOT / words[1]).exists()
    else:
        assert words[0] in TOOLS, line


@each(("page", "line"), commands())
def test_commands_exist_and_take_their_options(page: str, line: str) -> None:
    check(line)


@each(
    ("line", "error"),
    [
        ("clip-surgery draw", AssertionError),
        ("clip-surgery demo --colour red", TyperException),
        ("clip-surgery demo --scenes many", TyperException),
        ("torchrun -m captum_clip_surgery draw", AssertionError),
        ("pip install 'captum_clip_surgery[wings]'", AssertionError),
        ("pip install '.[app,wings]'", AssertionError),
        ("rm x", AssertionError),
    ],
)
def test_a_command_that_is_not_there_is_found(line: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        check(line)


def test_every_method_is_explained() -> None:
    page = (DOCS / "methods.md").read_text()
    assert set(re.findall(r"^### `(\w+)`$", page, flags=re.MULTILINE)) == set(METHODS)


# --- the site ------------------------------------------------------------------------------------


def hook(name: str) -> Any:
    """A module of docs/hooks, as mkdocs loads it: by its file."""
    spec = spec_from_file_location(f"hook_{name}", DOCS / "hooks" / f"{name}.py")
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_of_the_command_line_is_complete() -> None:
    needs("mkdocs")
    text = hook("commands").reference()
    assert COMMAND.commands
    sections = dict(re.findall(r"^## `clip-surgery (\w+)`$(.*?)(?=^## |\Z)", text, re.S | re.M))
    assert set(sections) == set(COMMAND.commands)
    for name, command in COMMAND.commands.items():
        for parameter in command.params:
            for option in (*parameter.opts, *parameter.secondary_opts):
                told = option if option.startswith("-") else f"* `{option}"
                assert told in sections[name], f"{name} {option}"


def test_every_module_has_its_place() -> None:
    needs("mkdocs", "griffe")
    api = hook("api")
    found = {name for inside in api.modules().values() for name in inside}
    files = {
        ".".join(path.relative_to(ROOT / api.PACKAGE).with_suffix("").parts)
        for path in (ROOT / api.PACKAGE).rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    }
    assert {name for name in files - found if not name.startswith("cli.")} == api.HIDDEN - {"cli"}


class Page(HTMLParser):
    """What a page links to, what it can be linked to at, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors = {""}
        self.formulas = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        self.formulas += tag == "math"
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(given["href"])
        elif "src" in given:
            self.loads.append(given["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Path, Page]]:
    """The pages of the site, built strictly: a dead link or an orphan ends the build."""
    needs("mkdocs", "material", "mkdocstrings", "mkdocs_jupyter", "latex2mathml")
    folder = tmp_path_factory.mktemp("site").resolve()
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    yield {path: Page(path.read_text(encoding="utf-8")) for path in folder.rglob("*.html")}
    shutil.rmtree(folder)


def local(link: str) -> bool:
    parts = urlsplit(link)
    return not parts.scheme and not parts.netloc


@pytest.mark.slow
def test_the_site_is_whole(site: dict[Path, Page]) -> None:
    names = {path.name for path in site}
    assert {page.with_suffix(".html").name for page in PAGES} <= names
    notebooks = {path.stem + ".html" for path in (ROOT / "tutorials").glob("*.ipynb")}
    assert notebooks <= names
    assert next(page for path, page in site.items() if path.name == "methods.html").formulas > 20


@pytest.mark.slow
def test_links_and_anchors_lead_somewhere(site: dict[Path, Page]) -> None:
    dead = []
    for path, page in site.items():
        if path.name == "404.html":  # of no place, its links start at the root
            continue
        for link in filter(local, page.links):
            parts = urlsplit(link)
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = site.get(target)
            if not target.exists() or (known and unquote(parts.fragment) not in known.anchors):
                dead.append(f"{path.name}: {link}")
    assert not dead


@pytest.mark.slow
def test_nothing_is_fetched_from_outside(site: dict[Path, Page]) -> None:
    outside = {
        f"{path.name}: {link}" for path, page in site.items() for link in page.loads
        if not local(link) and not link.startswith("data:")
    }  # fmt: skip
    assert not outside


@pytest.mark.slow
def test_no_page_is_an_orphan(site: dict[Path, Page]) -> None:
    """From the first page one comes to all others."""
    root = next(path.parent for path in site if path.name == "404.html")
    reached, left = set(), [root / "index.html"]
    while left:
        path = left.pop()
        if path in reached or path not in site:
            continue
        reached.add(path)
        left += [(path.parent / unquote(urlsplit(link).path)).resolve() for link in site[path].links
                 if local(link) and urlsplit(link).path]  # fmt: skip
    assert reached == set(site) - {root / "404.html"}
