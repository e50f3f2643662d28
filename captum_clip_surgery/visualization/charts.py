"""Reports and measures as charts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from captum_clip_surgery.diagnostics import OUTLIER, TowerReport
from captum_clip_surgery.visualization.scales import COLOURS


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
    shown = on_grid.imshow(norms[image].reshape(report.grid).numpy(), cmap=COLOURS["range"], vmin=0)
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
    depth = report.suggested_num_blocks
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
