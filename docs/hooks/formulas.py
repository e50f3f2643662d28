"""Formulas as MathML, converted when the site is built, so that browsers need no script."""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert

FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\(?P<open>[(\[])(?P<latex>.*?)\\[)\]]</(?P=tag)>',
    flags=re.DOTALL,
)


def mathml(match: re.Match[str]) -> str:
    """Convert a formula that arithmatex marked."""
    latex = html.unescape(match["latex"]).strip()
    display = "block" if match["open"] == "[" else "inline"
    return convert(latex, display=display)


def on_page_content(html: str, **_: object) -> str:
    """Convert all formulas of a page."""
    return FORMULA.sub(mathml, html)
