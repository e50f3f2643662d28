"""Pages of the API, one per public package or root module, made from `__all__`."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PACKAGE = "captum_clip_surgery"
#: Programs, not libraries: docs/app.md and docs/cli.md describe them.
PROGRAMS = {f"{PACKAGE}.app", f"{PACKAGE}.cli"}


@functools.cache
def package() -> griffe.Module:
    """Read the package's sources, without importing them."""
    extensions = griffe.load_extensions(Path(__file__).with_name("docstrings.py"))
    loaded = griffe.load(PACKAGE, search_paths=[ROOT], resolve_aliases=True, extensions=extensions)
    assert isinstance(loaded, griffe.Module)
    return loaded


def public_modules(module: griffe.Module | None = None) -> Iterator[griffe.Module]:
    """Yield the modules that users may import: all but programs and those with an underscore."""
    module = module or package()
    yield module
    for name, child in sorted(module.modules.items()):
        if not (child.is_alias or name.startswith("_") or child.path in PROGRAMS):
            yield from public_modules(child)


@functools.cache
def documented() -> dict[str, str]:
    """Return the shortest public path of every name in an `__all__`, by where it is defined."""
    paths: dict[str, str] = {}
    for module in sorted(public_modules(), key=lambda module: module.path.count(".")):
        for name in map(str, module.exports or ()):
            member = module[name]
            if not member.is_module:
                paths.setdefault(member.canonical_path, member.path)
    return paths


def pages() -> dict[str, list[str]]:
    """Return the public paths on each page, in the order of the sources.

    A name is on the page of the package that defines it, or, if that one is private, on the page of
    the first package that exports it.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for definition, path in sorted(documented().items(), key=lambda item: _place(item[0])):
        room = definition.split(".")[1]
        found[path.split(".")[1] if room.startswith("_") else room].append(path)
    return dict(sorted(found.items()))


def _place(definition: str) -> tuple[str, int]:
    member = package()[definition.removeprefix(f"{PACKAGE}.")]
    return definition.rpartition(".")[0], member.lineno or 0


def on_config(config: MkDocsConfig) -> None:
    """Add the pages to the navigation."""
    entries: list[Any] = ["api/index.md", *({name: f"api/{name}.md"} for name in pages())]
    section = next(entry["API"] for entry in config.nav or () if "API" in entry)
    section.extend(entries)


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Generate the pages."""
    files.append(File.generated(config, "api/index.md", content="\n".join(_index())))
    for name, paths in pages().items():
        title = f"::: {PACKAGE}.{name}\n    options:\n      heading_level: 1\n      members: false"
        content = "\n\n".join([title, *map(_entry, paths)])
        files.append(File.generated(config, f"api/{name}.md", content=content))


def _entry(path: str) -> str:
    """Return the directive for a name."""
    inherited = inherited_members(path)
    options = f"\n    options:\n      inherited_members: {inherited}" if inherited else ""
    return f"::: {path}{options}"


def inherited_members(path: str) -> list[str]:
    """Return the members that a class inherits from bases that are on no page, as of a tower."""
    member = package()[path.removeprefix(f"{PACKAGE}.")]
    value = member.final_target if isinstance(member, griffe.Alias) else member
    if not isinstance(value, griffe.Class):
        return []
    shown = [base for base in value.mro() if base.canonical_path in documented()]
    covered = {base.canonical_path for public in shown for base in [public, *public.mro()]}
    return [
        name
        for base in value.mro()
        if base.canonical_path not in covered
        for name, inherited in base.members.items()
        if not name.startswith("_") and inherited.docstring and name not in value.members
    ]


def _index() -> Iterator[str]:
    """Yield the lines of the first page: what `from captum_clip_surgery import ...` offers."""
    yield "# API\n"
    yield f"Names that can be imported from `{PACKAGE}` itself. Those of its packages are on the"
    yield "pages of the packages. Anything that is not listed may change without notice.\n"
    yield "| name | |\n|---|---|"
    root = package()
    for name in sorted(map(str, root.exports or ())):
        docstring = root[name].docstring
        summary = docstring.value.splitlines()[0] if docstring else ""
        link = f"({name}.md)" if root[name].is_module else f"[{PACKAGE}.{name}]"
        yield f"| [`{name}`]{link} | {summary} |"
