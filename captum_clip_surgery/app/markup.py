"""Fragments of HTML: all that visitors wrote is escaped, every picture says what it shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape as escape_html

from captum_clip_surgery.app.figures import Drawn

Point = tuple[float, float]
PICTURE = "picture"  # the panel of the picture itself
#: Gradio fills in templates wherever these stand, in what visitors wrote as well.
TEMPLATE_SIGNS = str.maketrans({sign: f"&#{ord(sign)};" for sign in "{}$`\\"})


def escape(text: str) -> str:
    """A text that stays a text, in HTML and in templates.

    Example::

        >>> escape("<b> ${1}")
        '&lt;b&gt; &#36;&#123;1&#125;'
    """
    return escape_html(text).translate(TEMPLATE_SIGNS)


def notice(messages: Sequence[str], wrong: bool = False) -> str:
    """What to tell a visitor, read out by screen readers; "" without a message."""
    if not messages:
        return ""
    lines = "".join(f"<p>{escape(message)}</p>" for message in messages)
    kind = "wrong" if wrong else "hint"
    return f'<div class="ccs-notice {kind}" role="{"alert" if wrong else "status"}">{lines}</div>'


def panel(drawn: Drawn, name: str, alt: str, point: Point | None = None) -> str:
    """A picture with its name; `point` (x, y) in 0..1 is marked."""
    mark = ""
    if point is not None:
        x, y = (f"{100 * part:.2f}%" for part in point)
        mark = f'<span class="ccs-mark" style="left:{x};top:{y}"></span>'
    note = f" <em>{escape(drawn.note)}</em>" if drawn.note else ""
    kind = " ccs-original" if name == PICTURE else ""
    return (
        f'<figure class="ccs-panel{kind}"><div class="ccs-frame">'
        f'<img class="ccs-map" src="{drawn.uri}" alt="{escape(alt)}" data-name="{escape(name)}">'
        f"{mark}</div><figcaption>{escape(name)}{note}</figcaption></figure>"
    )


def row(heading: str, panels: Iterable[str], beside: str = "") -> str:
    """A text's panels under it."""
    title = f"<h2>{escape(heading)}</h2>{beside}"
    return (
        f'<section class="ccs-row"><div class="ccs-heading">{title}</div>'
        f'<div class="ccs-panels">{"".join(panels)}</div></section>'
    )


def at_point(point: Point, tables: Iterable[str]) -> str:
    """Bars of every method at a point."""
    x, y = point
    title = f"Scores of the texts at {x:.0%} across, {y:.0%} down"
    body = "".join(tables)
    return f'<section class="ccs-point" aria-label="{title}"><h2>{title}</h2>{body}</section>'


def share(probability: float, logit: float) -> str:
    """A text's probability as a bar and a number, with its logit."""
    return (
        f'<span class="ccs-bar"><i style="width:{100 * probability:.1f}%"></i></span>'
        f'<span class="ccs-number">{probability:.1%}</span>'
        f'<span class="ccs-logit">logit {logit:.2f}</span>'
    )


def bars(title: str, scores: Mapping[str, float]) -> str:
    """Signed scores by name, as bars from a common zero."""
    strongest = max((abs(score) for score in scores.values()), default=0.0) or 1.0
    rows = []
    for name, score in sorted(scores.items(), key=lambda pair: -pair[1]):
        length = 50 * abs(score) / strongest
        left = 50 if score >= 0 else 50 - length
        sign = "plus" if score >= 0 else "minus"
        rows.append(
            f'<tr><th scope="row">{escape(name)}</th><td class="ccs-signed">'
            f'<i class="{sign}" style="left:{left:.2f}%;width:{length:.2f}%"></i></td>'
            f"<td>{score:+.4g}</td></tr>"
        )
    return (
        f'<table class="ccs-bars"><caption>{escape(title)}</caption><tbody>{"".join(rows)}'
        "</tbody></table>"
    )


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], colours: Mapping[str, str] | None = None
) -> str:
    """A table whose rows begin with a name, beside its colour where it has one."""
    chips = colours or {}
    body = []
    for name, *cells in rows:
        colour = chips.get(name)
        chip = "" if colour is None else f'<i class="ccs-chip" style="background:{colour}"></i>'
        values = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        body.append(f'<tr><th scope="row">{chip}{escape(name)}</th>{values}</tr>')
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    return (
        f'<table class="ccs-table"><thead><tr>{columns}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>"
    )


def two(left: str, right: str) -> str:
    """Side by side where there is room."""
    return f'<div class="ccs-two"><div>{left}</div><div>{right}</div></div>'


def script(python: str) -> str:
    """Python to read and to copy; it scrolls by keyboard too."""
    return (
        f'<pre class="ccs-code" tabindex="0" role="region" aria-label="Python code">'
        f"<code>{escape(python)}</code></pre>"
    )


def examples(pictures: Sequence[tuple[Drawn, str]]) -> str:
    """Buttons with the examples' pictures."""
    buttons = "".join(
        f'<button type="button" class="ccs-example" data-example="{number}" '
        f'aria-label="Example {number + 1}: {escape(what)}" title="{escape(what)}">'
        f'<img src="{drawn.uri}" alt=""></button>'
        for number, (drawn, what) in enumerate(pictures)
    )
    return (
        '<p class="ccs-about">Or an example:</p>'
        f'<div class="ccs-examples" role="group" aria-label="Examples">{buttons}</div>'
    )
