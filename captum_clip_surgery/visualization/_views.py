"""Views of a scaled map over an image: Captum's, drawn by Captum, and contours and masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from captum.attr import visualization as captum
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from captum_clip_surgery.visualization._images import (
    as_floats,
    downsample,
    extent,
    pale_gray,
    show_image,
)
from captum_clip_surgery.visualization._scales import COLORS, SIGNS, Limits, ScaledMap

#: Contour levels, as shares of the strongest value.
LEVELS = (0.25, 0.5, 0.75)
#: Colors of contours above and below zero: the ends of the diverging color map.
ABOVE, BELOW = "#b2182b", "#2166ac"
#: Makes Captum keep a map scaled to 1 as it is; with exactly 0 its threshold may miss the maximum.
KEEP_ALL = 1e-9


@dataclass(frozen=True)
class View:
    """Options for drawing maps.

    Args:
        method: One of `VIEWS`.
        sign: One of `SIGNS`.
        outlier_perc: Percentage of outliers, from 0 to below 100.
        cmap: Color map of heat maps; None chooses one by the sign.
        alpha_overlay: Opacity of "blended_heat_map", 0..1.
        threshold: Lower bound of "mask" as a share of the scale, 0..1.

    Raises:
        ValueError: If an option is unknown or out of range, or the method cannot show the sign.
    """

    method: str = "blended_heat_map"
    sign: str = "range"
    outlier_perc: float = 2.0
    cmap: str | Colormap | None = None
    alpha_overlay: float = 0.7
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.method not in VIEWS:
            raise ValueError(f"method must be one of {', '.join(VIEWS)}, got {self.method!r}")
        if self.sign not in SIGNS:
            raise ValueError(f"sign must be one of {', '.join(SIGNS)}, got {self.sign!r}")
        if self.sign == "all" and self.method in ONE_SIGN:
            others = ", ".join(sign for sign in SIGNS if sign != "all")
            raise ValueError(f"method {self.method!r} cannot show two signs; use sign={others}")
        if not 0 <= self.outlier_perc < 100:
            raise ValueError(f"outlier_perc must be from 0 to below 100, got {self.outlier_perc!r}")
        for name in ("alpha_overlay", "threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in 0..1, got {getattr(self, name)!r}")

    def colors(self, limits: Limits) -> ScalarMappable | None:
        """Return the scale of a color bar, or None for views without colors and empty maps."""
        if self.method not in HEAT_MAPS or limits[0] == limits[1]:
            return None
        return ScalarMappable(Normalize(*limits), self.cmap or COLORS[self.sign])


def _draw_by_captum(axis: Axes, image: np.ndarray | None, scaled: ScaledMap, view: View) -> None:
    strengths = scaled.strengths()
    # Captum stretches a map to its own strongest value; on a given scale that value may be below 1.
    peak = float(np.abs(strengths).max())
    backdrop = None if image is None else as_floats(downsample(image))
    if backdrop is not None and view.method == "masked_image":
        backdrop = backdrop * peak
    if image is not None and view.method == "blended_heat_map":
        backdrop = pale_gray(image)
    before = len(axis.images)
    captum.visualize_image_attr(
        strengths / peak if peak else np.ones_like(strengths),
        backdrop,
        view.method,
        "all" if view.sign == "all" else "positive",
        (cast(Figure, axis.figure), axis),
        KEEP_ALL,
        view.cmap or COLORS[view.sign],
        view.alpha_overlay,
        use_pyplot=False,
    )
    drawn = axis.images[before:]
    for layer in drawn:
        layer.set_extent(extent(scaled.values if image is None else image))
    if view.method == "alpha_scaling":
        drawn[-1].set_alpha(peak)
    if view.method in HEAT_MAPS:
        drawn[0].set_clim(0, 255)  # Captum stretches the gray image's contrast
        drawn[-1].set_data(scaled.values)  # in its own units, for color bars
        drawn[-1].set_clim(*scaled.limits)


def _draw_original(axis: Axes, image: np.ndarray, scaled: ScaledMap, view: View) -> None:
    show_image(axis, image)  # at its own depth; Captum takes a black uint8 image for floats


def _draw_contours(axis: Axes, image: np.ndarray, scaled: ScaledMap, view: View) -> None:
    """Draw lines of equal strength, which Captum lacks."""
    show_image(axis, pale_gray(image), image)
    strengths = scaled.strengths()
    drawn = False
    if view.sign in ("all", "negative"):
        below = -strengths if view.sign == "all" else strengths
        drawn = _draw_lines(axis, image, below, LEVELS, BELOW, "dashed")
    if view.sign != "negative":
        drawn = _draw_lines(axis, image, strengths, LEVELS, ABOVE, "solid") or drawn
    if not drawn:
        axis.set_xlabel("no contours", fontsize=8, labelpad=2)


def _draw_mask(axis: Axes, image: np.ndarray, scaled: ScaledMap, view: View) -> None:
    """Show the image where the map reaches a threshold, which Captum lacks."""
    inside = scaled.strengths() >= view.threshold
    pixels = np.where(inside[..., None], as_floats(downsample(image)), 0.5 + 0.5 * pale_gray(image))
    show_image(axis, pixels, image)
    _draw_lines(axis, image, inside.astype(float), (0.5,), "black", "solid")


def _draw_lines(
    axis: Axes,
    image: np.ndarray,
    strengths: np.ndarray,
    levels: Sequence[float],
    color: str,
    style: str,
) -> bool:
    """Draw contours on a white halo, thicker at higher levels; return whether there are any."""
    reached = [level for level in levels if strengths.min() < level < strengths.max()]
    if min(strengths.shape) < 2 or not reached:
        return False
    (height, width), (rows, columns) = image.shape[:2], strengths.shape
    x = (np.arange(columns) + 0.5) * width / columns - 0.5
    y = (np.arange(rows) + 0.5) * height / rows - 0.5
    widths = [0.6 + 1.6 * level for level in reached]
    lines = axis.contour(
        x, y, strengths, reached, colors=color, linewidths=widths, linestyles=style
    )
    lines.set_path_effects([withStroke(linewidth=3.4, foreground="white", alpha=0.7)])
    return True


Draw = Callable[[Axes, Any, ScaledMap, View], None]

#: Function that draws a map that is not empty, by the name of the view.
VIEWS: dict[str, Draw] = {
    "heat_map": _draw_by_captum,
    "blended_heat_map": _draw_by_captum,
    "masked_image": _draw_by_captum,
    "alpha_scaling": _draw_by_captum,
    "original_image": _draw_original,
    "contour": _draw_contours,
    "mask": _draw_mask,
}
#: Views whose colors a bar explains.
HEAT_MAPS = ("heat_map", "blended_heat_map")
#: Views that show strengths of one sign only.
ONE_SIGN = ("masked_image", "alpha_scaling", "mask")
