"""Pages of the API: one for each public module or package at the top, from docstrings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PACKAGE = "captum_clip_surgery"
#: The command line has a page of its own, and scripts that made the embedded model are no API.
HIDDEN = {"cli", "demo.make_sprites", "demo.train", "demo.variants"}


def modules() -> dict[str, list[str]]:
    """Names below the package: of each module or package at the top, and of the modules in it."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        name = ".".join(parts)
        if not parts or parts[0] in HIDDEN or name in HIDDEN or "__main__" in parts:
            continue
        found.setdefault(parts[0], []).append(name)
    return found


def on_config(config: MkDocsConfig) -> None:
    """Puts the pages in the navigation."""
    pages = [{name: f"api/{name}.md"} for name in modules()]
    section(config, "API").extend(["api/index.md", *pages])


def section(config: MkDocsConfig, title: str) -> list[Any]:
    """The section of the navigation that has a title."""
    return next(entry[title] for entry in config.nav or () if title in entry)


def on_files(files: Files, config: MkDocsConfig) -> None:
    files.append(File.generated(config, "api/index.md", content="\n".join(_index())))
    for name, inside in modules().items():
        page = "\n\n".join(_directive(module) for module in inside)
        files.append(File.generated(config, f"api/{name}.md", content=page))


def _directive(module: str) -> str:
    """A module and its members; of a package its docstring, for its modules follow."""
    lines = [f"::: {PACKAGE}.{module}", "    options:"]
    lines += [f"      heading_level: {1 + module.count('.')}"]
    if (ROOT / PACKAGE).joinpath(*module.split(".")).is_dir():
        lines += ["      members: false"]
    return "\n".join(lines)


def _index() -> Iterator[str]:
    """What `from captum_clip_surgery import ...` offers."""
    package = griffe.load(PACKAGE, search_paths=[ROOT])
    yield f"# API\n\nThe names of `{PACKAGE}`; modules have pages of their own.\n"
    yield "| name | |\n|---|---|"
    for name in sorted(map(str, package.exports or ())):
        member: Any = package.members[name]
        target = member.target_path if member.is_alias else member.path
        docstring = package[name].docstring
        line = docstring.value.splitlines()[0] if docstring else ""
        # Tables and constants have no docstring, hence no place of their own on the page.
        page = target.removeprefix(f"{PACKAGE}.").split(".")[0]
        place = f"[{target}]" if docstring else f"({page}.md)"
        yield f"| [`{name}`]{place} | {line} |"
