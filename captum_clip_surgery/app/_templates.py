"""Jinja templates of the page's HTML and of the Python code it shows."""

from __future__ import annotations

import re
from textwrap import wrap
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from markupsafe import escape as escape_html

from captum_clip_surgery._utils.similarity import format_share
from captum_clip_surgery.attr._descriptions import sentence_of, title_of

#: Gradio evaluates templates with these signs in HTML, in what users wrote as well.
TEMPLATE_SIGNS = str.maketrans({sign: f"&#{ord(sign)};" for sign in "{}$`\\"})
#: Longest line of Python code within brackets, and of comments.
WIDTH = 96


def escape(value: Any) -> Markup:
    """Escape text for HTML and for Gradio's templates; leave markup as it is.

    Example::

        >>> str(escape("<b> ${1}"))
        '&lt;b&gt; &#36;&#123;1&#125;'
    """
    if hasattr(value, "__html__"):
        return Markup(value)
    return Markup(str(escape_html(value)).translate(TEMPLATE_SIGNS))


def sentence(message: str) -> str:
    """Write a message as a sentence; a first word of code stays as it is.

    Example::

        >>> sentence("no text given"), sentence("side=3 is too small")
        ('No text given.', 'side=3 is too small.')
    """
    if re.match(r"[a-z-]+(?![\w=.(\[])", message):
        message = message[0].upper() + message[1:]
    return message if message.endswith((".", "!", "?", "…")) else f"{message}."


def literal(value: Any) -> str:
    """Write a value as Python code, with strings in double quotes where possible.

    Raises:
        UndefinedError: If a template has no such value.

    Example::

        >>> print(literal(("a dog", 'the "cat"')))
        ["a dog", 'the "cat"']
    """
    if isinstance(value, str):
        code = repr(value)
        plain = code[0] == "'" and '"' not in code and "\\'" not in code
        return f'"{code[1:-1]}"' if plain else code
    if not isinstance(value, (list, tuple)):
        return str(value)  # raises for undefined values, which `repr` would write out
    items = [literal(item) for item in value]
    line = f"[{', '.join(items)}]"
    if len(line) <= WIDTH:
        return line
    return "[\n" + "".join(f"    {item},\n" for item in items) + "]"


def comment(text: str) -> str:
    """Write a text as lines of comments."""
    return "\n".join(wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# "))


def _environment(**options: Any) -> Environment:
    return Environment(
        loader=PackageLoader("captum_clip_surgery.app"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )


_HTML = _environment(autoescape=True, finalize=escape)
_HTML.filters |= {
    "sentence": sentence,
    "title": title_of,
    "describe": sentence_of,
    "share": format_share,
}
_CODE = _environment(autoescape=False, keep_trailing_newline=True)
_CODE.filters |= {"literal": literal, "comment": comment, "title": title_of}


def html(name: str, **values: Any) -> str:
    """Fill a template of HTML; every value is escaped."""
    return _HTML.get_template(f"{name}.html").render(**values)


def notice(messages: tuple[str, ...] | list[str], is_error: bool = False) -> str:
    """Return messages for the user, which screen readers read out; "" without a message."""
    return html("notice", messages=messages, is_error=is_error) if messages else ""


def code(name: str, **values: Any) -> str:
    """Fill a template of Python code; values are written as literals by its filters."""
    return _CODE.get_template(f"{name}.py.jinja").render(**values)
