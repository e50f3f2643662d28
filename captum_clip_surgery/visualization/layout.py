"""Where panels stand on a figure, and how large its letters are; lengths in inches."""

from __future__ import annotations

import math
import textwrap
from typing import cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from captum_clip_surgery.visualization.pictures import drawn_aspect

#: Widths by name: one column and the whole page of a paper, a notebook, a slide of 16:9.
WIDTHS = {"column": 3.4, "page": 7.0, "notebook": 10.0, "slide": 13.3}
SIDE = 2.0  # of a panel, where no width is asked for
SMALLEST_SIDE = 0.4  # that still shows anything
LEFT, RIGHT, BOTTOM = 0.32, 0.08, 0.22
BAR, BAR_ROOM = 0.09, 0.42  # a colour bar's thickness, and the room with its numbers
POINTS = 72  # of type in an inch
LETTER, LINE = 0.58, 1.25  # a letter's mean width and a line's height, in sizes of DejaVu Sans
SMALLEST = 6.0  # points that print legibly
PAIR, LEGEND = 10.2, 2.2  # of a picture, its result and a legend, and of the legend


def inches(width: float | str) -> float:
    """A width in inches or by its name in `WIDTHS`.

    Raises:
        ValueError: no such name, or a width that is not above 0.
    """
    found = WIDTHS.get(width) if isinstance(width, str) else float(width)
    if found is None or not 0 < found < math.inf:
        raise ValueError(f"width {width!r} must be inches above 0 or one of {', '.join(WIDTHS)}")
    return found


def type_size(side: float) -> float:
    """Points of a panel's title: 11 on panels of two inches."""
    return min(14.0, max(7.0, 3 + 4 * side))


def fit(text: str, length: float, size: float) -> tuple[str, float]:
    """A text in at most two lines of a length, and its size in points.

    It is as large as fits, at least `SMALLEST`; what two lines of that do not hold ends in "…".
    """
    for points in np.arange(size, SMALLEST - 0.01, -0.5):
        if len(text) * LETTER * points / POINTS <= length:
            return text, float(points)
    letters = {p: max(4, int(length * POINTS / (LETTER * p))) for p in (8.0, 7.0, SMALLEST)}
    for points, count in letters.items():
        if points <= size and len(lines := textwrap.wrap(text, count)) <= 2:
            return "\n".join(lines), points
    count = letters[SMALLEST]
    return "\n".join(textwrap.wrap(text, count, max_lines=2, placeholder="…")), SMALLEST


def tight_grid(
    rows: int,
    columns: int,
    aspect: float,
    titled: bool,
    noted: bool,
    width: float | str | None = None,
    bars: str = "",
) -> tuple[Figure, np.ndarray]:
    """Axes that fit pictures of one aspect (height / width) with even gaps.

    Args:
        rows: of panels.
        columns: of panels.
        aspect: see `drawn_aspect`.
        titled: whether there is room for a title above everything.
        noted: whether there is room for a note below each panel.
        width: of the figure, see `inches`; None is two inches a panel.
        bars: "below" columns or "right" of rows is room for colour bars, see `add_bar`.

    Raises:
        ValueError: a width that does not hold the columns.
    """
    gap = 0.24 if noted else 0.08
    right = RIGHT + BAR_ROOM * (bars == "right")
    bottom = BOTTOM + BAR_ROOM * (bars == "below")
    margins = LEFT + (columns - 1) * gap + right
    side = SIDE if width is None else (inches(width) - margins) / columns
    if side < SMALLEST_SIDE:
        raise ValueError(
            f"a figure of {inches(width or 0):g} in holds no {columns} columns; at least "
            f"{margins + columns * SMALLEST_SIDE:.1f} in do, or fewer columns"
        )
    top = 0.6 if titled else 0.32
    whole = margins + columns * side
    row = side * aspect
    height = bottom + rows * row + (rows - 1) * gap + top
    figure = Figure(figsize=(whole, height))
    axes = figure.subplots(
        rows,
        columns,
        squeeze=False,
        gridspec_kw={
            "left": LEFT / whole,
            "right": 1 - right / whole,
            "bottom": bottom / height,
            "top": 1 - top / height,
            "wspace": gap / side,
            "hspace": gap / row,
        },
    )
    return figure, axes


def side_of(axis: Axes) -> float:
    """The width of a panel of a figure."""
    figure = cast(Figure, axis.figure)
    return float(figure.get_figwidth() * axis.get_position(original=True).width)


def add_bar(axis: Axes, colours: ScalarMappable, place: str) -> None:
    """A colour bar "below" an axis of `tight_grid`, or to its "right"."""
    figure = cast(Figure, axis.figure)
    box, (width, height) = axis.get_position(original=True), figure.get_size_inches()
    if place == "below":
        # Narrower than the panel, so that numbers at its ends keep off the next bar's.
        inset = min(0.16 / width, box.width / 5)
        room = (box.x0 + inset, box.y0 - (0.3 + BAR) / height, box.width - 2 * inset, BAR / height)
    else:
        room = (box.x1 + 0.08 / width, box.y0, BAR / width, box.height)
    bar = figure.colorbar(
        colours,
        cax=figure.add_axes(room),
        orientation="horizontal" if place == "below" else "vertical",
        ticks=MaxNLocator(3),
    )
    bar.ax.tick_params(labelsize=7, length=2, pad=1)
    bar.outline.set_linewidth(0.5)


def picture_pair(
    picture: np.ndarray, width: float | str | None = None
) -> tuple[Figure, np.ndarray]:
    """Two axes of a picture's shape, and room for a legend."""
    whole = PAIR if width is None else inches(width)
    side = max(SMALLEST_SIDE, (whole - max(1.4, whole * LEGEND / PAIR)) / 2)
    height = max(1.5, side * drawn_aspect(picture))
    figure = Figure(figsize=(whole, height), layout="constrained")
    axes = figure.subplots(1, 2)
    return figure, axes
