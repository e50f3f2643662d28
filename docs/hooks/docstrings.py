"""Docstrings to the sections that the site knows: `Example::` is a section of examples."""

from __future__ import annotations

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^( *)Example::\n\n", flags=re.MULTILINE)
LITERAL = re.compile(r"^( *\w[\w ]*)::$", flags=re.MULTILINE)
#: Indices, `[prompt][x, y]`, outside of examples; Markdown would take them for links.
INDICES = re.compile(r"^(?! *>>>).*\]\[.*$", flags=re.MULTILINE)


class Sections(griffe.Extension):
    """Runs on every object as it is read from its source."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            text = EXAMPLE.sub(r"\1Examples:\n", obj.docstring.value)
            text = INDICES.sub(lambda line: line[0].replace("][", "]\\["), text)
            # "Layout::" and an indented block: Markdown needs one colon and the block as it is.
            obj.docstring.value = LITERAL.sub(r"**\1**\n", text)
