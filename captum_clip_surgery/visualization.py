"""Maps over pictures, as figures to look at and to save."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from captum_clip_surgery.checkup import OUTLIER, TowerReport

COLOURS = "inferno"  # ordered by lightness, so colour-blind readers and greyscale prints see it
OPACITY = 0.7
OUTLIERS = 1.0  # percent of pixels at either end that may saturate


def compare_figure(
    picture: np.ndarray,
    maps: Mapping[str, Tensor],
    texts: Sequence[str],
    title: str = "",
) -> Figure:
    """One row for each text, one column for each method, all on the same picture.

    Each map has a scale of its own, from its lowest values (dark) to its highest (bright), with
    one percent of the pixels cut off at either end.

    Args:
        picture: (H, W, 3), uint8 or floats in 0..1.
        maps: for each method the maps (K, h, w) of the K texts.
        texts: the K texts.
        title: above everything.

    Returns:
        A figure, free of pyplot: `.savefig(path)` writes it.
    """
    columns, rows = len(maps) + 1, len(texts)
    figure, axes = _tight_grid(rows, columns, picture.shape[0] / picture.shape[1], bool(title))
    for row, text in enumerate(texts):
        show_picture(axes[row, 0], picture)
        axes[row, 0].set_ylabel(text, fontsize=12)
        for axis, values in zip(axes[row, 1:], maps.values(), strict=True):
            show_map(axis, picture, values[row])
    for axis, name in zip(axes[0], ["image", *maps], strict=True):
        axis.set_title(name, fontsize=11)
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def _tight_grid(rows: int, columns: int, aspect: float, titled: bool) -> tuple[Figure, np.ndarray]:
    """Axes that fit pictures of one aspect (height / width) with even gaps; lengths in inches."""
    side, gap, left, right, bottom = 2.0, 0.08, 0.32, 0.08, 0.22
    top = 0.6 if titled else 0.32
    width = left + columns * side + (columns - 1) * gap + right
    row = side * aspect
    height = bottom + rows * row + (rows - 1) * gap + top
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(
        rows,
        columns,
        squeeze=False,
        gridspec_kw={
            "left": left / width,
            "right": 1 - right / width,
            "bottom": bottom / height,
            "top": 1 - top / height,
            "wspace": gap / side,
            "hspace": gap / row,
        },
    )
    return figure, axes


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
    enlarged = F.interpolate(attribution[None, None].double().cpu(), size, mode="bilinear")
    values = enlarged[0, 0].numpy()
    low, high = np.percentile(values, [OUTLIERS, 100 - OUTLIERS])
    if low == high:  # a few pixels hold all there is
        low, high = float(values.min()), float(values.max())
    axis.imshow(values, cmap=COLOURS, alpha=OPACITY, vmin=low, vmax=high)


def report_figure(report: TowerReport) -> Figure:
    """A `TowerReport` drawn: norms of patch tokens by block, where the largest stand, and depths.

    Returns:
        A figure, free of pyplot: `.savefig(path)` writes it.
    """
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    by_block, on_grid, by_depth = figure.subplots(1, 3, width_ratios=[1.25, 1, 1.25])
    _draw_norms(by_block, report)
    worst = int(report.outliers.argmax()) if report.outliers.any() else len(report.norms) - 1
    norms = report.norms[worst]
    image = int((norms.amax(-1) / norms.median(-1).values).argmax())
    shown = on_grid.imshow(norms[image].reshape(report.grid).numpy(), cmap=COLOURS, vmin=0)
    figure.colorbar(shown, ax=on_grid, shrink=0.8)
    on_grid.set(xticks=[], yticks=[], title=f"norms of image {image}, {_place(report, worst)}")
    _draw_spread(by_depth, report)
    return figure


def _place(report: TowerReport, index: int) -> str:
    return "leaving the last" if index == len(report.norms) - 1 else f"entering block {index}"


def _draw_norms(axis: Axes, report: TowerReport) -> None:
    norms = report.norms.flatten(1).numpy()
    blocks = range(len(norms))
    low, middle, high = np.quantile(norms, [0.01, 0.5, 0.99], axis=1)
    axis.fill_between(blocks, low, high, alpha=0.25, color="tab:blue", label="1 % to 99 %")
    axis.plot(blocks, middle, color="tab:blue", label="median")
    axis.plot(blocks, norms.max(1), color="tab:orange", ls="--", label="largest")
    axis.plot(blocks, OUTLIER * middle, color="grey", ls=":", label=f"{OUTLIER:g} x median")
    axis.set(yscale="log", xlabel="entering block (last: leaving)", title="norms of patch tokens")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(fontsize=7)


def _draw_spread(axis: Axes, report: TowerReport) -> None:
    depth = report.suggested_depth
    axis.plot(range(len(report.spread)), report.spread, marker="o", ms=3, color="tab:blue")
    axis.plot(
        depth, report.spread[depth], "o", ms=9, mfc="none", color="tab:orange", label="suggested"
    )
    axis.set(xlabel="depth of surgery", title="spread of the likeliest text's map", ylim=(0, None))
    axis.legend(fontsize=7, loc="lower right")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
