"""Documentation pages: their code runs, names and links exist, and the site builds."""

from __future__ import annotations

import ast
import configparser
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import torch
import typer
from typer.exceptions import TyperException

import captum_clip_surgery
from captum_clip_surgery.attr import METHODS
from captum_clip_surgery.attr._papers import PAPERS
from captum_clip_surgery.cli import app
from captum_clip_surgery.models.image._registry import TOWER_CLASSES
from tests._helpers.cases import each
from tests._helpers.served import CHROMIUM, chromium

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
#: Pages whose Python is run by other tests.
RUN_ELSEWHERE = {"tasks.md", "measures.md", "export.md", "production.md"}
EXAMPLES = ("A method", "A tower", "A measure", "A data set")
MAX_LINES = 40  # of a worked example, over all its blocks
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
TOOLS = {"pytest", "ruff", "mypy", "mkdocs", "curl"}  # programs of others that pages call
COMMAND: Any = typer.main.get_command(app)


def needs(*libraries: str) -> None:
    for library in libraries:
        pytest.importorskip(library)


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced blocks of a language, such as "python" or "python no-run"."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def run(source: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run blocks in order, in a folder with the images that they open."""
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
#: Pages whose code takes several seconds.
SLOW_PAGES = ("audit", "ledger", "queries")


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=[pytest.mark.slow] * (page.stem in SLOW_PAGES))
        for page in WITH_PYTHON
    ],
)
def test_python_runs_in_order(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if page.stem == "recipes":
        needs("transformers")
    run(blocks(page.read_text(), "python"), tmp_path, monkeypatch)


def test_python_that_does_not_run_reads_as_python() -> None:
    skipped = [block for page in PAGES for block in blocks(page.read_text(), "python no-run")]
    assert skipped
    for block in skipped:
        ast.parse(block)


def example(title: str) -> list[str]:
    """Return the blocks of a section of CONTRIBUTING.md."""
    (section,) = re.findall(
        rf"^## {title}$(.*?)(?=^## |\Z)", CONTRIBUTING.read_text(), flags=re.DOTALL | re.MULTILINE
    )
    return blocks(section, "python")


@each("title", EXAMPLES)
def test_worked_examples_are_short(title: str) -> None:
    assert 0 < sum(len(block.splitlines()) for block in example(title)) <= MAX_LINES


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore the registries that examples add to."""
    methods = dict(METHODS)
    # The package first: its lazy name would otherwise be restored to the copy.
    monkeypatch.setattr(captum_clip_surgery, "METHODS", methods)
    monkeypatch.setattr("captum_clip_surgery.attr._registry.METHODS", methods)
    towers = "captum_clip_surgery.models.image._registry.TOWER_CLASSES"
    monkeypatch.setattr(towers, list(TOWER_CLASSES))


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("title", EXAMPLES)
def test_worked_examples_run(title: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = example(title)
    assert "assert" in source[-1]
    shared = run(source, tmp_path, monkeypatch)
    if title == "A measure":  # its own example in the docstring
        import doctest

        measure = shared["center_distance"]
        runner = doctest.DocTestRunner()
        (test,) = doctest.DocTestFinder().find(measure, "measure", module=False, globs=shared)
        assert runner.run(test).failed == 0
        assert runner.tries


# --- commands, names and files on pages ----------------------------------------------------------


def commands() -> list[tuple[str, str]]:
    """Return each command of the console blocks, with its page."""
    lines = []
    for page in [*PAGES, CONTRIBUTING, ROOT / "README.md"]:
        for language in ("console", "bash"):
            for block in blocks(page.read_text(), language):
                for line in block.replace("\\\n", " ").splitlines():
                    lines += [
                        (page.name, part.strip())
                        for part in line.removeprefix("$ ").split("&&")
                        if part.strip()
                    ]
    return lines


def parse(arguments: list[str]) -> None:
    """Parse arguments of the command line without running the command."""
    name, *rest = arguments
    assert name in COMMAND.commands, f"there is no command {name}"
    COMMAND.commands[name].make_context(name, rest)


def check(line: str) -> None:
    """Check that the program, module, extra or file of a shell command exists."""
    words = shlex.split(line, comments=True)
    if not words:
        return
    if words[0] == "srun":
        words = words[words.index("torchrun") :]
    if words[0] == "sbatch":
        check(words[words.index("--wrap") + 1])
    elif words[0] == "clip-surgery":
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
def test_check_fails_on_unknown_commands(line: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        check(line)


def sources() -> Iterator[tuple[str, str]]:
    """Yield every block of Python on pages and in tutorials, with the page's name."""
    for page in [*PAGES, CONTRIBUTING, ROOT / "README.md"]:
        for language in ("python", "python no-run"):
            yield from ((page.name, block) for block in blocks(page.read_text(), language))
    for notebook in sorted((ROOT / "tutorials").glob("*.ipynb")):
        for cell in json.loads(notebook.read_text())["cells"]:
            if cell["cell_type"] == "code":
                lines = (line for line in cell["source"] if not line.startswith("%"))
                yield notebook.name, "".join(lines)


def test_pages_import_public_names_only() -> None:
    needs("mkdocs", "griffe")
    api = hook("api")
    modules = {module.path: set(module.exports or ()) for module in api.public_modules()}
    imports = [
        (page, node.module, alias.name)
        for page, source in sources()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(api.PACKAGE)
        for alias in node.names
    ]
    assert imports
    private = [
        f"{page}: {module}.{name}"
        for page, module, name in imports
        if module not in modules
        or (name not in modules[module] and f"{module}.{name}" not in modules)
    ]
    assert not private


def test_files_that_pages_name_exist() -> None:
    """Paths in code spans: those of the repository, and of modules within the package."""
    pages = [
        *PAGES,
        *ROOT.glob("*.md"),
        ROOT / "captum_clip_surgery/demo/MODEL_CARD.md",
    ]
    names = [
        (page.name, path)
        for page in pages
        for span in re.findall(r"`([^`\n]+)`", page.read_text())
        for path in re.findall(r"(?<![\w./-])(?:[\w.-]+/)+[\w-]+\.(?:py|md|toml)\b", span)
    ]
    assert names
    places = (ROOT, ROOT / "captum_clip_surgery")
    assert not [name for name in names if not any((at / name[1]).exists() for at in places)]


def test_every_method_is_explained() -> None:
    page = (DOCS / "methods.md").read_text()
    assert set(re.findall(r"^### `(\w+)`$", page, flags=re.MULTILINE)) == set(METHODS)


def test_every_method_has_its_paper_as_in_the_documentation() -> None:
    assert set(METHODS) - set(PAPERS) == {"RawAttention"}
    documented = (DOCS / "methods.md").read_text(encoding="utf-8")
    assert [p.title for p in PAPERS.values() if p.to_markdown() not in documented] == []


# --- the site ------------------------------------------------------------------------------------


def hook(name: str) -> Any:
    """Load a module of docs/hooks from its file, as mkdocs does."""
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
        listed = [parameter for parameter in command.params if not vars(parameter).get("hidden")]
        for parameter in listed:  # hidden ones only say why they are not defined
            for option in (*parameter.opts, *parameter.secondary_opts):
                entry = option if option.startswith("-") else f"* `{option}"
                assert entry in sections[name], f"{name} {option}"


def test_every_module_has_its_place() -> None:
    """Every public module has `__all__`, and is one of those that the API pages are made from."""
    needs("mkdocs", "griffe")
    api = hook("api")
    modules = {module.path: module.exports for module in api.public_modules()}
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / api.PACKAGE).rglob("*.py")
    }
    private = {name for name in files if any(part.startswith("_") for part in name.split("."))}
    programs = {name for name in files if ".".join(name.split(".")[:2]) in api.PROGRAMS}
    assert set(modules) == files - private - programs
    assert not [path for path, exports in modules.items() if exports is None]


def test_documented_names_can_be_imported_and_have_docstrings() -> None:
    needs("mkdocs", "griffe")
    documented = [path for paths in hook("api").pages().values() for path in paths]
    assert len(documented) == len(set(documented))
    # What is public stays small enough to read, and is kept for users: weigh each new name.
    assert len(documented) < 200
    values = {}
    for path in documented:
        module, _, name = path.rpartition(".")
        values[path] = getattr(import_module(module), name)
    functions_and_classes = {
        path: value
        for path, value in values.items()
        if inspect.isroutine(value) or inspect.isclass(value)
    }
    assert not [path for path, value in functions_and_classes.items() if not value.__doc__]
    api = hook("api")
    undescribed = [
        path for path in documented if not api.package()[path.partition(".")[2]].docstring
    ]
    assert not undescribed
    # The same object under two names would be documented twice.
    assert len({id(value) for value in functions_and_classes.values()}) == len(
        functions_and_classes
    )


class Page(HTMLParser):
    """Links, anchors and loaded files of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors = {""}
        self.formulas = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        self.formulas += tag == "math"
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and values.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(values["href"])
        elif "src" in values:
            self.loads.append(values["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Path, Page]]:
    """Build the site strictly and return its pages; a dead link or an orphan fails the build."""
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
    pages = {path.name: page for path, page in site.items()}
    assert pages["methods.html"].formulas > 20
    # Members that a class inherits from bases that are on no page.
    assert "captum_clip_surgery.ZeroShotClassifier.preprocess" in pages["classifier.html"].anchors
    assert "captum_clip_surgery.models.image.Tower.embed" in pages["models.html"].anchors


@pytest.mark.slow
def test_links_and_anchors_lead_somewhere(site: dict[Path, Page]) -> None:
    dead = []
    for path, page in site.items():
        if path.name == "404.html":  # its links start at the root
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
    """All pages can be reached from the first one."""
    root = next(path.parent for path in site if path.name == "404.html")
    reached, queue = set(), [root / "index.html"]
    while queue:
        path = queue.pop()
        if path in reached or path not in site:
            continue
        reached.add(path)
        paths = (urlsplit(link).path for link in site[path].links if local(link))
        queue += [(path.parent / unquote(target)).resolve() for target in paths if target]
    assert reached == set(site) - {root / "404.html"}


@pytest.mark.slow
def test_search_finds_the_words_that_people_use(site: dict[Path, Page]) -> None:
    root = next(path.parent for path in site if path.name == "404.html")
    entries = json.loads((root / "search" / "search_index.json").read_text())["docs"]
    pages: dict[str, set[str]] = {}
    for entry in entries:
        for word in re.findall(r"\w+", f"{entry['title']} {entry['text']}".lower()):
            pages.setdefault(word, set()).add(entry["location"].partition("#")[0])
    assert "quickstart.html" in pages["heatmap"]
    assert "quickstart.html" in pages["colorbar"]
    assert "production.html" in pages["deploy"]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
def test_commands_are_copied_without_their_prompt(site: dict[Path, Page]) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    page = next(path for path in site if path.name == "quickstart.html")
    # What the theme's button copies: the text of a block while it has this attribute.
    copied = """blocks => blocks.map(block => {
        block.setAttribute("data-md-copying", "");
        return block.innerText;
    })"""
    with playwright.sync_playwright() as driver:
        browser = chromium(driver)
        tab = browser.new_page()
        tab.goto(page.as_uri())
        texts = tab.eval_on_selector_all("pre > code:has(.gp)", copied)
        browser.close()
    assert any(text.startswith("clip-surgery demo") for text in texts)
    assert not [text for text in texts if "$" in text]
