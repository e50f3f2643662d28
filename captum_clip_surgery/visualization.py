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
SIGNED_COLOURS = "RdBu_r"  # red and blue are told apart by all common kinds of colour blindness
OPACITY = 0.7
PIXELS = 1000  # of a picture's longer side that are drawn: more than a panel shows
STRIP = 4  # times as long as wide, a panel is at most
OUTLIERS = 1.0  # percent of pixels at either end that may saturate


def compare_figure(
    pictures: Sequence[np.ndarray],
    maps: Mapping[str, Tensor],
    texts: Sequence[str],
    title: str = "",
    shared: bool = False,
    diverging: bool = False,
    notes: Mapping[str, Sequence[Sequence[str]]] | None = None,
) -> Figure:
    """One row for each picture and text, one column for each method.

    Each map has a scale of its own, from its lowest values (dark) to its highest (bright), with
    one percent of the pixels cut off at either end.

    Args:
        pictures: N of (H, W, 3), uint8 or floats in 0..1.
        maps: for each method the maps (N, K, h, w) of the K texts.
        texts: the K texts.
        title: above everything.
        shared: one scale for all maps of a method instead.
        diverging: maps of methods that give values of both signs in two colours around zero, with
            a scale as wide on either side.
        notes: what stands below panels: for "image" and methods, a note for each picture and text.

    Returns:
        A figure, free of pyplot: `.savefig(path)` writes it.
    """
    aspect = max(map(drawn_aspect, pictures))
    rows = [(image, text) for image in range(len(pictures)) for text in range(len(texts))]
    figure, axes = tight_grid(len(rows), len(maps) + 1, aspect, bool(title), bool(notes))
    ranges = {name: _limits(values) for name, values in maps.items()}
    scales = ranges if shared else {}
    signed = {name for name, (low, high) in ranges.items() if diverging and _is_signed(low, high)}
    for (image, text), line in zip(rows, axes, strict=True):
        show_picture(line[0], pictures[image])
        line[0].set_ylabel(texts[text], fontsize=12)
        for axis, (name, values) in zip(line[1:], maps.items(), strict=True):
            show_map(axis, pictures[image], values[image, text], scales.get(name), name in signed)
        for axis, name in zip(line, ["image", *maps], strict=True):
            if notes and name in notes:
                note = ", ".join(filter(None, [notes[name][image][text], axis.get_xlabel()]))
                axis.set_xlabel(note, fontsize=8, labelpad=2)
    for axis, name in zip(axes[0], ["image", *maps], strict=True):
        axis.set_title(name, fontsize=11 if len(name) < 20 else 8)
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def _is_signed(low: float, high: float) -> bool:
    """Whether both signs matter: neither side is under a fifth of the other."""
    return low < 0 < high and min(-low, high) >= 0.2 * max(-low, high)


def _limits(values: Tensor) -> tuple[float, float]:
    """The range of maps, one percent cut off at either end."""
    flat = values.double().flatten().cpu().numpy()
    low, high = np.percentile(flat, [OUTLIERS, 100 - OUTLIERS])
    if low == high:  # a few pixels hold all there is
        low, high = flat.min(), flat.max()
    return float(low), float(high)


def tight_grid(
    rows: int, columns: int, aspect: float, titled: bool, noted: bool
) -> tuple[Figure, np.ndarray]:
    """Axes that fit pictures of one aspect (height / width) with even gaps; lengths in inches."""
    side, left, right, bottom = 2.0, 0.32, 0.08, 0.22
    gap = 0.24 if noted else 0.08
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
    """A picture (H, W, 3) without ticks; its pixels keep their coordinates, however small drawn."""
    height, width = picture.shape[:2]
    axis.imshow(shrunk(picture), extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def shrunk(picture: np.ndarray) -> np.ndarray:
    """Rows and columns left out, so that no side has much more than `PIXELS`: (h, w, ...)."""
    step = max(1, max(picture.shape[:2]) // PIXELS)
    return picture[::step, ::step]


def greyed(picture: np.ndarray) -> np.ndarray:
    """A shrunk picture (h, w, 3) in pale grey, 0..1, on which colours stand out."""
    small = shrunk(picture)
    colours = small / 255 if small.dtype == np.uint8 else small
    return 0.25 + 0.75 * colours.mean(-1, keepdims=True).repeat(3, -1)


def drawn_aspect(picture: np.ndarray) -> float:
    """Height / width of the room for a picture, which a strip does not fill."""
    aspect: float = picture.shape[0] / picture.shape[1]
    return min(max(aspect, 1 / STRIP), STRIP)


def show_map(
    axis: Axes,
    picture: np.ndarray,
    attribution: Tensor,
    scale: tuple[float, float] | None = None,
    signed: bool = False,
) -> None:
    """A map (h, w) over a greyed picture (H, W, 3); a constant map shows the picture and says so.

    Args:
        axis: where.
        picture: uint8 or floats in 0..1.
        attribution: the map.
        scale: values drawn darkest and brightest; None is the map's own range.
        signed: two colours around zero, with a scale as wide on either side.

    Raises:
        ValueError: a map that is not finite.
    """
    if not torch.isfinite(attribution).all():
        raise ValueError("a map holds NaN or infinity, which cannot be drawn")
    small = greyed(picture)
    show_picture(axis, small)
    if attribution.min() == attribution.max():
        axis.set_xlabel("the same everywhere", fontsize=8)
        return
    size = (small.shape[0], small.shape[1])
    enlarged = F.interpolate(attribution[None, None].double().cpu(), size, mode="bilinear")[0, 0]
    low, high = _limits(enlarged) if scale is None else scale
    if signed:
        low, high = -max(abs(low), abs(high)), max(abs(low), abs(high))
    cmap = SIGNED_COLOURS if signed else COLOURS
    axis.imshow(enlarged.numpy(), cmap=cmap, alpha=OPACITY, vmin=low, vmax=high)


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


def bar_figure(
    values: Mapping[str, Mapping[str, tuple[float, tuple[float, float] | None]]],
) -> Figure:
    """Bars of methods, a panel for each measure, with intervals as whiskers.

    Args:
        values: for each measure and method the value and its interval (low, high), or None.

    Returns:
        A figure, free of pyplot: `.savefig(path)` writes it.
    """
    methods = list(next(iter(values.values())))
    columns = min(4, len(values))
    rows = -(-len(values) // columns)
    figure = Figure(figsize=(2 + 2.2 * columns, rows * (0.7 + 0.19 * len(methods))))
    figure.set_layout_engine("constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axis in axes.flat[len(values) :]:
        axis.set_visible(False)
    for axis, (measure, of_methods) in zip(axes.flat, values.items(), strict=False):
        heights = np.array([value for value, _ in of_methods.values()])
        ends = np.array([end or (value, value) for value, end in of_methods.values()]).T
        axis.barh(methods, heights, color="tab:blue", alpha=0.8)
        axis.hlines(methods, *ends, color="black", linewidth=1)
        axis.axvline(0, color="black", linewidth=0.5)
        axis.set_title(measure, fontsize=10)
        axis.tick_params(labelsize=7)
        axis.grid(axis="x", alpha=0.3)
    axes[0, 0].invert_yaxis()  # in the order given, from the top
    return figure
