"""Layout of panels and sizes of type; lengths are in inches."""

from __future__ import annotations

import math
import textwrap
from typing import cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from captum_clip_surgery.visualization._images import panel_aspect
from captum_clip_surgery.visualization._scales import format_value

#: Widths of figures by name: one column or the full page of a paper, a notebook, a 16:9 slide.
WIDTHS = {"column": 3.4, "page": 7.0, "notebook": 10.0, "slide": 13.3}
#: Default and smallest side of a panel.
SIDE, MIN_SIDE = 2.0, 0.4
LEFT, RIGHT, BOTTOM, TOP = 0.32, 0.08, 0.22, 0.32
#: Room for a title of the figure, and for a line below a name.
TITLE, LINE = 0.28, 0.16
#: Thickness of a color bar, and its room including numbers.
BAR, BAR_ROOM = 0.09, 0.52
#: Width of a panel whose color bar has room for more than three numbers.
WIDE = 1.3
#: Points of type per inch.
POINTS = 72
#: Mean width of a letter of DejaVu Sans, as a share of its size.
LETTER = 0.58
#: Smallest type that prints legibly, in points.
MIN_TYPE = 6.0
#: Width of an image, its result and a legend, and of the legend.
PAIR, LEGEND = 10.2, 2.2


def inches(width: float | str) -> float:
    """Return a width given in inches or as a name in `WIDTHS`.

    Raises:
        ValueError: If the name is unknown or the width is not above 0.
    """
    value = WIDTHS.get(width) if isinstance(width, str) else float(width)
    if value is None or not 0 < value < math.inf:
        raise ValueError(
            f"width must be inches above 0 or one of {', '.join(WIDTHS)}, got {width!r}"
        )
    return value


def title_size(side: float) -> float:
    """Return the type size in points of a panel's title, for the panel's width in inches."""
    return min(14.0, max(7.0, 3 + 4 * side))


def fit_text(text: str, length: float, size: float) -> tuple[str, float]:
    """Break and shrink a text to at most two lines.

    Args:
        text: The text.
        length: Length of a line in inches.
        size: Largest type size in points.

    Returns:
        The text, ending in "…" if two lines of 6 points do not hold it, and its size in points.
    """
    for points in np.arange(size, MIN_TYPE - 0.01, -0.5):
        if len(text) * LETTER * points / POINTS <= length:
            return text, float(points)
    letters = {p: max(4, int(length * POINTS / (LETTER * p))) for p in (8.0, 7.0, MIN_TYPE)}
    for points, count in letters.items():
        if points <= size and len(lines := textwrap.wrap(text, count)) <= 2:
            return "\n".join(lines), points
    count = letters[MIN_TYPE]
    return "\n".join(textwrap.wrap(text, count, max_lines=2, placeholder="…")), MIN_TYPE


def panel_grid(
    rows: int,
    columns: int,
    aspect: float,
    titled: bool,
    noted: bool,
    width: float | str | None = None,
    bars: str = "",
    lead: str = "",
) -> tuple[Figure, np.ndarray]:
    """Create a grid of panels for images of one aspect, with even gaps.

    Args:
        rows: Number of rows.
        columns: Number of columns.
        aspect: Height / width of a panel, from `panel_aspect`.
        titled: Whether to leave room for a title above the grid.
        noted: Whether to leave room for a note below each panel.
        width: Width of the figure in inches or as a name in `WIDTHS`; None means two inches
            per panel.
        bars: Where to leave room for color bars: "below" columns, "right" of rows, or "".
        lead: Where to leave room for panels of `add_lead`: "left" of rows, "above" columns, or "".
            Names next to the leads have room for a second line.

    Returns:
        The figure and its axes (rows, columns), without leads.

    Raises:
        ValueError: If the width does not hold the columns.
    """
    gap = 0.24 if noted else 0.08
    on_left, above = lead == "left", lead == "above"
    before = LEFT + on_left * (LINE + RIGHT)
    after = RIGHT + BAR_ROOM * (bars == "right")
    bottom = BOTTOM + BAR_ROOM * (bars == "below")
    margins = before + (columns - 1) * gap + after
    across = columns + on_left
    side = SIDE if width is None else (inches(width) - margins) / across
    if side < MIN_SIDE:
        raise ValueError(
            f"{across} columns do not fit in {inches(width or 0):g} in; use width="
            f"{margins + across * MIN_SIDE:.1f} or more, or fewer columns"
        )
    whole = margins + across * side
    row = side * aspect
    top = TOP + TITLE * titled + above * (LINE + RIGHT + row)
    height = bottom + rows * row + (rows - 1) * gap + top
    figure = Figure(figsize=(whole, height))
    axes = figure.subplots(
        rows,
        columns,
        squeeze=False,
        gridspec_kw={
            "left": (before + on_left * side) / whole,
            "right": 1 - after / whole,
            "bottom": bottom / height,
            "top": 1 - top / height,
            "wspace": gap / side,
            "hspace": gap / row,
        },
    )
    return figure, axes


def add_lead(axis: Axes, lead: str) -> Axes:
    """Add a panel of the same size to the "left" of an axis of `panel_grid`, or "above" it."""
    figure = cast(Figure, axis.figure)
    box, (width, height) = axis.get_position(original=True), figure.get_size_inches()
    x, y = box.x0, box.y0
    if lead == "left":
        x -= box.width + (LEFT + LINE) / width
    else:
        y += box.height + (TOP + LINE) / height
    return figure.add_axes((x, y, box.width, box.height))


def panel_width(axis: Axes) -> float:
    """Return the width of a panel in inches."""
    figure = cast(Figure, axis.figure)
    return float(figure.get_figwidth() * axis.get_position(original=True).width)


def panel_height(axis: Axes) -> float:
    """Return the height of a panel in inches."""
    figure = cast(Figure, axis.figure)
    return float(figure.get_figheight() * axis.get_position(original=True).height)


def add_bar(axis: Axes, colors: ScalarMappable, place: str) -> None:
    """Add a color bar "below" an axis of `panel_grid` or to its "right"."""
    figure = cast(Figure, axis.figure)
    box, (width, height) = axis.get_position(original=True), figure.get_size_inches()
    if place == "below":
        # Narrower than the panel, so that numbers at its ends keep off the next bar's.
        inset = min(0.16 / width, box.width / 5)
        room = (box.x0 + inset, box.y0 - (0.28 + BAR) / height, box.width - 2 * inset, BAR / height)
    else:
        room = (box.x1 + 0.08 / width, box.y0, BAR / width, box.height)
    bar = figure.colorbar(
        colors,
        cax=figure.add_axes(room),
        orientation="horizontal" if place == "below" else "vertical",
        ticks=MaxNLocator(3 if panel_width(axis) > WIDE else 2),
    )
    bar.formatter = FuncFormatter(lambda value, _: format_value(value))
    bar.update_ticks()
    bar.ax.tick_params(labelsize=8, length=2, pad=1)
    bar.outline.set_linewidth(0.5)


def pair_widths(width: float | str | None) -> tuple[float, float]:
    """Return the widths in inches of a figure with two panels and a legend, and of a panel."""
    whole = PAIR if width is None else inches(width)
    return whole, max(MIN_SIDE, (whole - max(1.4, whole * LEGEND / PAIR)) / 2)


def image_pair(image: np.ndarray, width: float | str | None = None) -> tuple[Figure, np.ndarray]:
    """Create a figure with two panels for an image and its result, and room for a legend.

    Args:
        image: The image (H, W, 3).
        width: Width of the figure in inches or as a name in `WIDTHS`; None means 10.2 inches.

    Returns:
        The figure and its two axes.
    """
    whole, side = pair_widths(width)
    height = max(1.5, side * panel_aspect(image))
    figure = Figure(figsize=(whole, height), layout="constrained")
    axes = figure.subplots(1, 2)
    return figure, axes
