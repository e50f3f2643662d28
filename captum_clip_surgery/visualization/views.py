"""Ways to draw a scaled map over a picture: the views of Captum, contours and masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.patheffects import withStroke

from captum_clip_surgery.visualization.pictures import (
    as_floats,
    extent,
    greyed,
    show_picture,
    shrunk,
)
from captum_clip_surgery.visualization.scales import COLOURS, SIGNS, Limits, Scaled

LEVELS = (0.25, 0.5, 0.75)  # of the strongest value, where contours run
ABOVE, BELOW = "#b2182b", "#2166ac"  # contours' colours, the ends of the diverging colours


@dataclass(frozen=True)
class View:
    """How maps are drawn; see `visualize_attribution`.

    Raises:
        ValueError: an option that is not known or out of its range, or a sign that the method
            cannot show.
    """

    method: str = "blended_heat_map"
    sign: str = "range"
    outlier_perc: float = 2.0
    cmap: str | Colormap | None = None
    alpha_overlay: float = 0.7
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.method not in VIEWS:
            raise ValueError(f"method {self.method!r} is not one of {', '.join(VIEWS)}")
        if self.sign not in SIGNS:
            raise ValueError(f"sign {self.sign!r} is not one of {', '.join(SIGNS)}")
        if self.sign == "all" and self.method in ONE_SIGN:
            others = ", ".join(sign for sign in SIGNS if sign != "all")
            raise ValueError(
                f"method {self.method!r} cannot tell two signs apart; give a sign of {others}"
            )
        if not 0 <= self.outlier_perc < 100:
            raise ValueError(f"outlier_perc {self.outlier_perc!r} must be from 0 to below 100")
        for name in ("alpha_overlay", "threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)!r} must lie in 0..1")

    def colours(self, limits: Limits) -> ScalarMappable | None:
        """What a colour bar shows; None where the method has no colours, or a map nothing."""
        if self.method not in COLOURED or limits[0] == limits[1]:
            return None
        return ScalarMappable(Normalize(*limits), self.cmap or COLOURS[self.sign])


def _heat_map(axis: Axes, picture: np.ndarray | None, found: Scaled, view: View) -> None:
    _colour(axis, found.values if picture is None else picture, found, view, None)


def _blended(axis: Axes, picture: np.ndarray, found: Scaled, view: View) -> None:
    show_picture(axis, greyed(picture), picture)
    _colour(axis, picture, found, view, view.alpha_overlay)


def _colour(axis: Axes, place: np.ndarray, found: Scaled, view: View, alpha: float | None) -> None:
    low, high = found.limits
    cmap = view.cmap or COLOURS[view.sign]
    axis.imshow(found.values, cmap=cmap, alpha=alpha, vmin=low, vmax=high, extent=extent(place))


def _original(axis: Axes, picture: np.ndarray, found: Scaled, view: View) -> None:
    show_picture(axis, picture)


def _masked(axis: Axes, picture: np.ndarray, found: Scaled, view: View) -> None:
    show_picture(axis, as_floats(shrunk(picture)) * found.strength()[..., None], picture)


def _alpha(axis: Axes, picture: np.ndarray, found: Scaled, view: View) -> None:
    show_picture(axis, np.dstack([as_floats(shrunk(picture)), found.strength()]), picture)


def _contour(axis: Axes, picture: np.ndarray, found: Scaled, view: View) -> None:
    show_picture(axis, greyed(picture), picture)
    strength = found.strength()
    drawn = False
    if view.sign in ("all", "negative"):
        below = -strength if view.sign == "all" else strength
        drawn = _lines(axis, picture, below, LEVELS, BELOW, "dashed")
    if view.sign != "negative":
        drawn = _lines(axis, picture, strength, LEVELS, ABOVE, "solid") or drawn
    if not drawn:
        axis.set_xlabel("no contours", fontsize=8, labelpad=2)


def _mask(axis: Axes, picture: np.ndarray, found: Scaled, view: View) -> None:
    inside = found.strength() >= view.threshold
    colours = np.where(inside[..., None], as_floats(shrunk(picture)), 0.5 + 0.5 * greyed(picture))
    show_picture(axis, colours, picture)
    _lines(axis, picture, inside.astype(float), (0.5,), "black", "solid")


def _lines(
    axis: Axes,
    picture: np.ndarray,
    strength: np.ndarray,
    levels: Sequence[float],
    colour: str,
    style: str,
) -> bool:
    """Contours, thicker where stronger, on a halo that shows on any picture; whether any is."""
    inside = [level for level in levels if strength.min() < level < strength.max()]
    if min(strength.shape) < 2 or not inside:
        return False
    (height, width), (rows, columns) = picture.shape[:2], strength.shape
    x = (np.arange(columns) + 0.5) * width / columns - 0.5
    y = (np.arange(rows) + 0.5) * height / rows - 0.5
    widths = [0.6 + 1.6 * level for level in inside]
    lines = axis.contour(x, y, strength, inside, colors=colour, linewidths=widths, linestyles=style)
    lines.set_path_effects([withStroke(linewidth=3.4, foreground="white", alpha=0.7)])
    return True


Draw = Callable[[Axes, Any, Scaled, View], None]

#: How a method draws a map that holds something, over a picture.
VIEWS: dict[str, Draw] = {
    "heat_map": _heat_map,
    "blended_heat_map": _blended,
    "masked_image": _masked,
    "alpha_scaling": _alpha,
    "original_image": _original,
    "contour": _contour,
    "mask": _mask,
}
COLOURED = ("heat_map", "blended_heat_map")  # whose colours a bar explains
ONE_SIGN = ("masked_image", "alpha_scaling", "mask")
