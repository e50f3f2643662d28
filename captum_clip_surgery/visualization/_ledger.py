"""A sum and its parts: bars that add up, next to the map of the parts that have a position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from captum_clip_surgery.visualization._attribution import show_map
from captum_clip_surgery.visualization._images import panel_aspect, show_image
from captum_clip_surgery.visualization._layout import fit_text, inches
from captum_clip_surgery.visualization._views import ABOVE, BELOW, View

#: Width of a figure, height of a row of bars, and room for titles and axes, in inches.
WIDTH, ROW, ROOM = 10.0, 0.24, 0.8
#: Shares of the width: the image and its map, the bars that add up, the bars of heads.
SHARES = (1.0, 1.0, 1.15, 0.75)
#: Color of parts that have no patch.
OTHER = "#8c8c8c"
LEGEND = {"attention, for": ABOVE, "attention, against": BELOW, "everything else": OTHER}
#: Places of color bars on an axis: left, bottom, width and height.
BARS = {"below": (0, -0.09, 1, 0.04), "right": (1.04, 0, 0.04, 1)}
#: Size of type in points; titles are one point larger.
TYPE = 9


@dataclass(frozen=True)
class LedgerRow:
    """One row of a ledger: a block, or a part without one.

    Args:
        name: Label of the row.
        heads: Parts of the block's heads.
        other: What the row adds apart from its heads.
    """

    name: str
    heads: tuple[float, ...] = ()
    other: float = 0.0


def ledger_figure(
    image: np.ndarray,
    attribution: np.ndarray,
    title: str,
    rows: Sequence[LedgerRow],
    maps: Mapping[str, np.ndarray],
    total: str,
    width: float | str | None = None,
) -> Figure:
    """Draw an image, the map of a sum's parts, the parts as bars that add up, and single maps.

    Args:
        image: The image (H, W, 3), uint8 or floats in 0..1.
        attribution: The parts of patches (h, w).
        title: Title of the map.
        rows: The parts by block; their sum is the end of the last bar.
        maps: Maps (h, w) of single heads by title, on one scale.
        total: Label of the sum.
        width: Width of the figure in inches, or "column", "page", "notebook" or "slide".

    Returns:
        A figure that is not registered with pyplot; `save_figure` writes it.

    Raises:
        ValueError: If the width is unknown, or a map is not finite.
    """
    whole = WIDTH if width is None else inches(width)
    aspect = panel_aspect(image)
    side = whole * SHARES[0] / sum(SHARES)
    heights = [max(ROW * (len(rows) + 1) + ROOM, side * aspect + ROOM / 2)]
    if maps:
        heights.append(min(whole / len(maps), side) * aspect + ROOM / 2)
    figure = Figure(figsize=(whole, sum(heights)), layout="constrained")
    upper, *lower = figure.subfigures(len(heights), height_ratios=heights, squeeze=False)[:, 0]
    picture, place, ledger, heads = upper.subplots(1, 4, width_ratios=SHARES)
    signed = View(sign="all")
    show_image(picture, image)
    _add_bar(place, show_map(place, image, attribution, signed), "below")
    _set_title(picture, "image", side)
    _set_title(place, title, side)
    for axis in (picture, place):
        axis.set_anchor("N")
    _draw_sum(ledger, rows, total)
    _draw_heads(heads, rows)
    if maps:
        strongest = max(float(np.abs(values).max()) for values in maps.values())
        axes = lower[0].subplots(1, len(maps), squeeze=False)[0]
        for axis, (name, values) in zip(axes, maps.items(), strict=True):
            colors = show_map(axis, image, values, signed, strongest or None)
            _set_title(axis, name, whole / len(maps))
        _add_bar(axis, colors, "right")
    return figure


def _add_bar(axis: Axes, colors: ScalarMappable | None, place: str) -> None:
    """Add a color bar "below" an axis or to its "right", unless there are no colors."""
    if colors is None:
        return
    room = axis.inset_axes(BARS[place])
    along = "horizontal" if place == "below" else "vertical"
    figure = cast(Figure, axis.figure)
    bar = figure.colorbar(colors, cax=room, orientation=along, ticks=MaxNLocator(4))
    bar.ax.tick_params(labelsize=TYPE - 1)


def _set_title(axis: Axes, title: str, length: float) -> None:
    text, size = fit_text(title, length, TYPE + 1)
    axis.set_title(text, fontsize=size, parse_math=False)


def _color(part: float) -> str:
    return ABOVE if part > 0 else BELOW


def _draw_sum(axis: Axes, rows: Sequence[LedgerRow], total: str) -> None:
    """Draw each row's heads and its other part from where the row before ended, and the sum."""
    start = 0.0
    for place, row in enumerate(rows):
        heads = sum(row.heads)
        for offset, part, color in ((-0.2, heads, _color(heads)), (0.2, row.other, OTHER)):
            axis.barh(place + offset, part, 0.4, start, color=color)
            start += part
            ends = place + offset - 0.2, place + offset + 0.6  # down to the next bar
            axis.plot([start, start], ends, color="black", linewidth=0.5)
    axis.barh(len(rows), start, 0.8, color="black")
    axis.use_sticky_edges = False  # the longest bar ends within the axis
    axis.axvline(0, color="black", linewidth=0.5)
    names = [*(row.name for row in rows), "sum"]
    axis.set_yticks(range(len(names)), names, fontsize=TYPE)
    axis.set_ylim(len(rows) + 0.6, -0.6)
    axis.tick_params(axis="x", labelsize=TYPE - 1)
    axis.tick_params(axis="y", length=0)
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.set_title(total, fontsize=TYPE + 1)


def _draw_heads(axis: Axes, rows: Sequence[LedgerRow]) -> None:
    """Draw the heads of each row as upright bars, on one scale."""
    strongest = max((abs(part) for row in rows for part in row.heads), default=0.0) or 1.0
    for place, row in enumerate(rows):
        if row.heads:
            heights = [-0.48 * part / strongest for part in row.heads]  # the axis points down
            axis.bar(range(len(heights)), heights, 0.8, place, color=list(map(_color, row.heads)))
            axis.axhline(place, color="black", linewidth=0.3)
    axis.set_ylim(len(rows) + 0.6, -0.6)
    axis.set_yticks([])
    axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axis.set_xlabel("head", fontsize=TYPE - 1)
    axis.tick_params(axis="x", labelsize=TYPE - 1, length=0)
    axis.spines[:].set_visible(False)
    handles = [Patch(color=color, label=name) for name, color in LEGEND.items()]
    axis.legend(handles=handles, loc="upper left", fontsize=TYPE - 1, frameon=False)
