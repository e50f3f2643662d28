"""Maps over pictures, as figures to look at and to save."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

COLOURS = "turbo"
OPACITY = 0.6
OUTLIERS = 1.0  # percent of pixels at either end that may saturate


def compare_figure(
    picture: np.ndarray,
    maps: Mapping[str, Tensor],
    texts: Sequence[str],
    title: str = "",
) -> Figure:
    """One row for each text, one column for each method, all on the same picture.

    Each map runs from its own lowest (blue) to its own highest value (red), as the measures of
    localisation see it.

    Args:
        picture: (H, W, 3), uint8 or floats in 0..1.
        maps: for each method the maps (K, h, w) of the K texts.
        texts: the K texts.
        title: above everything.

    Returns:
        A figure, free of pyplot: `.savefig(path)` writes it.
    """
    height, width = picture.shape[:2]
    side = 2.1
    columns, rows = len(maps) + 1, len(texts)
    figure = Figure(
        figsize=(side * columns, (side * height / width + 0.12) * rows + 0.75), layout="constrained"
    )
    axes = figure.subplots(rows, columns, squeeze=False)
    for row, text in enumerate(texts):
        show_picture(axes[row, 0], picture)
        axes[row, 0].set_ylabel(text, fontsize=12)
        for axis, (name, values) in zip(axes[row, 1:], maps.items(), strict=True):
            show_map(axis, picture, values[row])
            if row == 0:
                axis.set_title(name, fontsize=11)
    axes[0, 0].set_title("image", fontsize=11)
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def show_picture(axis: Axes, picture: np.ndarray) -> None:
    axis.imshow(picture)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def show_map(axis: Axes, picture: np.ndarray, attribution: Tensor) -> None:
    """A map (h, w) over a greyed picture (H, W, 3); a constant map shows the picture and says so.

    Raises:
        ValueError: a map that is not finite.
    """
    if not torch.isfinite(attribution).all():
        raise ValueError("a map holds NaN or infinity, which cannot be drawn")
    colours = picture / 255 if picture.dtype == np.uint8 else picture
    grey = colours.mean(-1, keepdims=True).repeat(3, -1)
    show_picture(axis, 0.25 + 0.75 * grey)
    if attribution.min() == attribution.max():
        axis.set_xlabel("the same everywhere", fontsize=8)
        return
    size = (picture.shape[0], picture.shape[1])
    values = F.interpolate(attribution[None, None].double().cpu(), size, mode="bilinear")[0, 0]
    low, high = np.percentile(values, [OUTLIERS, 100 - OUTLIERS])
    if low == high:  # a few pixels hold all there is
        low, high = float(values.min()), float(values.max())
    axis.imshow(values, cmap=COLOURS, alpha=OPACITY, vmin=low, vmax=high)
