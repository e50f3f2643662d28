"""Bar charts of measures."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure


def bar_figure(
    values: Mapping[str, Mapping[str, tuple[float, tuple[float, float] | None]]],
) -> Figure:
    """Draw a bar per method in a panel per measure, with intervals as whiskers.

    Args:
        values: For each measure and method, the value and its interval (low, high) or None.

    Returns:
        A figure that is not registered with pyplot; `save_figure` writes it.
    """
    methods = list(next(iter(values.values())))
    columns = min(3, len(values))
    rows = -(-len(values) // columns)
    figure = Figure(figsize=(1.8 + 2.4 * columns, rows * (0.7 + 0.2 * len(methods))))
    figure.set_layout_engine("constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axis in axes.flat[len(values) :]:
        axis.set_visible(False)
    for axis, (measure, results) in zip(axes.flat, values.items(), strict=False):
        heights = np.array([value for value, _ in results.values()])
        ends = np.array([end or (value, value) for value, end in results.values()]).T
        axis.barh(methods, heights, color="tab:blue", alpha=0.8)
        axis.hlines(methods, *ends, color="black", linewidth=1)
        axis.axvline(0, color="black", linewidth=0.5)
        axis.set_title(measure, fontsize=11)
        axis.tick_params(labelsize=9)
        axis.margins(y=0.01)
        axis.grid(axis="x", alpha=0.3)
    axes[0, 0].invert_yaxis()  # the first method on top
    return figure
