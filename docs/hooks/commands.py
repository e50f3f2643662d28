"""The reference of the command line, as typer itself writes it."""

from __future__ import annotations

import functools
import re

import typer
from mkdocs.structure.pages import Page
from typer.cli import get_docs_for_click

from captum_clip_surgery.cli import app

MARK = "<!-- commands -->"
PROGRAM = "clip-surgery"


@functools.cache
def reference() -> str:
    """Every command with its arguments and options, in Markdown, one level below the title."""
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name=PROGRAM)
    text = get_docs_for_click(obj=command, ctx=context, name=PROGRAM)
    # The page has a title, and the list of commands has their first words alone.
    return re.sub(r"^# .*\n|^\*\*Commands\*\*:\n\n(\* .*\n)+", "", text, flags=re.MULTILINE)


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    return markdown.replace(MARK, reference()) if MARK in markdown else markdown
