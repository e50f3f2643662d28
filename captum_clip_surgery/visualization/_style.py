"""The convention of maps: which colors they have, and which of them share a scale."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from matplotlib.cm import ScalarMappable
from torch import Tensor

from captum_clip_surgery.visualization._scales import (
    AUTO,
    Limits,
    as_map,
    check_drawable,
    color_limits,
    sign_of,
)
from captum_clip_surgery.visualization._views import ONE_SIGN, View


@dataclass(frozen=True)
class MapStyle:
    """Style in which the maps of a method are drawn.

    Args:
        view: The view, with the sign of all maps.
        shared: Color limits of all maps; None if each has its own, or if all are constant.
    """

    view: View
    shared: Limits | None

    @classmethod
    def of(cls, maps: Tensor, view: View, sign: str = AUTO, is_shared: bool = True) -> Self:
        """Choose the sign and the color limits for maps of any shape.

        Args:
            maps: All maps of a method.
            view: The view, whose sign is replaced.
            sign: "auto", two colors around zero for maps of both signs and otherwise from lowest to
                highest; or a sign, see `visualize_attribution`.
            is_shared: Whether the maps share their limits, so that a text that the image does not
                show stays pale.

        Raises:
            ValueError: If a value is not finite, or the sign is unknown or does not fit the view.
        """
        values = maps.detach().cpu().double().numpy()
        check_drawable(values)
        if sign == AUTO and view.method in ONE_SIGN:
            sign = "range"
        view = replace(view, sign=sign_of(values, sign, view.outlier_perc))
        low, high = color_limits(values, view.sign, view.outlier_perc)
        return cls(view, (low, high) if is_shared and low < high else None)

    @property
    def scale(self) -> float | Limits | None:
        """The `scale` of `show_map`."""
        if self.shared is None or self.view.sign == "range":
            return self.shared
        return max(map(abs, self.shared))

    def limits(self, attribution: Tensor | np.ndarray) -> Limits:
        """Return the color limits of a map (h, w)."""
        return self.shared or color_limits(
            as_map(attribution), self.view.sign, self.view.outlier_perc
        )

    def colors(self) -> ScalarMappable | None:
        """Return the scale of a color bar for all maps, or None if there is nothing to show."""
        return None if self.shared is None else self.view.colors(self.shared)
