"""The figure of two images and what they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from captum_clip_surgery.preprocessing import ImageInput, load_image
from captum_clip_surgery.visualization._attribution import show_map
from captum_clip_surgery.visualization._images import extent, pale_gray, panel_aspect, show_image
from captum_clip_surgery.visualization._labels import add_legend, label_color
from captum_clip_surgery.visualization._layout import fit_text, pair_widths, title_size
from captum_clip_surgery.visualization._style import MapStyle
from captum_clip_surgery.visualization._views import View

if TYPE_CHECKING:
    from captum_clip_surgery.tasks._pairs import PairExplanation


def pair_figure(
    pair: PairExplanation,
    query_image: ImageInput | None,
    image: ImageInput | None,
    names: tuple[str, str],
    count: int,
    maps: bool,
    width: float | str | None,
) -> Figure:
    """Draw two images with lines between the regions that match most, and their maps below.

    Args:
        pair: The explanation of both images, as `tasks.explain_pair` returns it.
        query_image: The query image, of which the part that the patches cover is drawn; None means
            that part as the model sees it.
        image: The other image likewise.
        names: Names of both images, shown as titles.
        count: Largest number of pairs of regions.
        maps: Whether to draw the maps, on one scale.
        width: Width of the figure in inches, or "column", "page", "notebook" or "slide"; None
            means 10.2 inches.

    Returns:
        A figure independent of pyplot; `save_figure` writes it.

    Raises:
        ValueError: If `count` is below 1, or a map is not finite.
    """
    given = (query_image, image)
    pictures = [
        seen if picture is None else _crop(np.asarray(load_image(picture)), shares)
        for picture, seen, shares in zip(given, pair.pixels, pair.shares, strict=True)
    ]
    whole, side = pair_widths(width)
    height = (1 + maps) * side * max(map(panel_aspect, pictures)) + 0.4
    figure = Figure(figsize=(whole, height), layout="constrained")
    axes = figure.subplots(1 + maps, 2, squeeze=False)
    notes = "", f", cosine {float(pair.cosine):.3f}"
    for axis, picture, name, note in zip(axes[0], pictures, names, notes, strict=True):
        show_image(axis, pale_gray(picture), picture)
        title, size = fit_text(f"{name}{note}", side, title_size(side))
        axis.set_title(title, fontsize=size, parse_math=False, pad=4)
    matches = pair.pairs(count)
    for number, match in enumerate(matches):
        color, masks = label_color(number), (match.query_region, match.region)
        ends = [
            _draw_region(axis, picture, mask.cpu().numpy(), color)
            for axis, picture, mask in zip(axes[0], pictures, masks, strict=True)
        ]
        _connect(axes[0], ends, color, 1 + 3 * match.contribution / matches[0].contribution)
    entries = [(f"{match.contribution:+.3f}", label_color(i)) for i, match in enumerate(matches)]
    add_legend(axes[0, 1], entries)
    if maps:
        _draw_on_one_scale(axes[1], pictures, pair.maps())
    return figure


def _crop(image: np.ndarray, shares: tuple[float, float]) -> np.ndarray:
    """Return the upper left part of an image (H, W, 3) with shares of its height and width."""
    height, width = (round(side * share) for side, share in zip(image.shape, shares, strict=False))
    return image[: max(1, height), : max(1, width)]


def _draw_on_one_scale(
    axes: Sequence[Axes], images: Sequence[np.ndarray], maps: Sequence[Tensor]
) -> None:
    """Draw a map over each image, with one color bar for all."""
    style = MapStyle.of(torch.cat([each.flatten() for each in maps])[None], View(), "all")
    for axis, image, values in zip(axes, images, maps, strict=True):
        show_map(axis, image, values, style.view, style.scale)
    colors, figure = style.colors(), cast(Figure, axes[0].figure)
    if colors is not None:
        figure.colorbar(colors, ax=list(axes), shrink=0.8, ticks=MaxNLocator(5))


def _draw_region(
    axis: Axes, image: np.ndarray, mask: np.ndarray, color: tuple[float, float, float]
) -> tuple[float, float]:
    """Draw a region (h, w) of an image in a color, and return its center in the image's pixels."""
    shade = np.zeros((*mask.shape, 4), dtype=np.float32)
    shade[mask] = (*color, 0.55)
    axis.imshow(shade, extent=extent(image), interpolation="nearest")
    y, x = np.argwhere(mask).mean(0) + 0.5
    return x * image.shape[1] / mask.shape[1] - 0.5, y * image.shape[0] / mask.shape[0] - 0.5


def _connect(
    axes: Sequence[Axes],
    ends: Sequence[tuple[float, float]],
    color: tuple[float, float, float],
    thickness: float,
) -> None:
    """Draw a line from a place in one panel to one in another."""
    for line, linewidth in (("white", thickness + 2), (color, thickness)):
        connection = ConnectionPatch(
            ends[0],
            ends[1],
            "data",
            "data",
            axesA=axes[0],
            axesB=axes[1],
            color=line,
            linewidth=linewidth,
        )
        connection.set_in_layout(False)
        axes[1].add_artist(connection)
    for axis, (x, y) in zip(axes, ends, strict=True):
        axis.plot(x, y, "o", color=color, ms=6, mec="white", mew=1.2)
