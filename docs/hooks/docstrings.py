"""Docstrings as mkdocstrings reads them: sections of examples, and comments on constants."""

from __future__ import annotations

import re
from itertools import takewhile
from pathlib import Path
from typing import Any

import griffe

EXAMPLE = re.compile(r"^( *)Example::\n\n", flags=re.MULTILINE)
LITERAL = re.compile(r"^( *\w[\w ]*)::$", flags=re.MULTILINE)
#: Indices outside of examples, such as `[prompt][x, y]`, which Markdown would take for links.
INDICES = re.compile(r"^(?! *>>>).*\]\[.*$", flags=re.MULTILINE)
COMMENT = "#:"


class Sections(griffe.Extension):
    """Adapt the docstring of every object that griffe reads."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Convert the docstring to sections and Markdown that the site renders."""
        if obj.docstring:
            text = EXAMPLE.sub(r"\1Examples:\n", obj.docstring.value)
            text = INDICES.sub(lambda line: line[0].replace("][", "]\\["), text)
            # "Layout::" and an indented block: Markdown needs one colon and the block as it is.
            obj.docstring.value = LITERAL.sub(r"**\1**\n", text)

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Take the comment lines above a constant for its docstring."""
        if attr.docstring or not attr.lineno or not isinstance(attr.filepath, Path):
            return
        above = attr.lines_collection[attr.filepath][: attr.lineno - 1]
        comment = takewhile(lambda line: line.strip().startswith(COMMENT), reversed(above))
        lines = [line.strip().removeprefix(COMMENT).strip() for line in comment]
        if lines:
            attr.docstring = griffe.Docstring(" ".join(reversed(lines)), parent=attr)
