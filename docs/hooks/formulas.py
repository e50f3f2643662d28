"""Formulas as MathML, made when the site is built: browsers need no script and no font for them."""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert

FOUND = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\(?P<open>[(\[])(?P<latex>.*?)\\[)\]]</(?P=tag)>',
    flags=re.DOTALL,
)


def mathml(match: re.Match[str]) -> str:
    """What arithmatex marked, as MathML that says its LaTeX to who cannot see it."""
    latex = html.unescape(match["latex"]).strip()
    display = "block" if match["open"] == "[" else "inline"
    return convert(latex, display=display)


def on_page_content(html: str, **_: object) -> str:
    return FOUND.sub(mathml, html)
