"""Scales of colors: the part of an attribution that is drawn, and its limits.

Captum's normalization is private, and scales a map by its own strongest value. Limits are computed
here so that maps can share a scale and color bars show the attribution's own values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from torch import Tensor

from captum_clip_surgery._utils.tensors import check_real

#: Color map by sign. Each is ordered by lightness, so that color-blind readers and grayscale prints
#: see the order. Strong values are bright in sequential maps and dark in the diverging one.
COLORS = {
    "all": "RdBu_r",
    "positive": "inferno",
    "negative": "YlGnBu",
    "absolute_value": "viridis",
    "range": "inferno",
}
SIGNS = tuple(COLORS)
#: The convention for maps: see `sign_of`.
AUTO = "auto"
#: Smallest value of the weaker sign, as a share of the stronger one, that counts as a sign.
BOTH_SIGNS = 0.05

#: Numbers of channels that an attribution may have.
CHANNELS = (1, 3)
#: Largest absolute value that is drawn: differences of larger ones overflow.
MAX_VALUE = 1e300

#: The values drawn in the first and the last color.
Limits = tuple[float, float]


def as_map(attribution: Tensor | np.ndarray) -> np.ndarray:
    """Convert an attribution to a map (h, w) of float64, summing channels as Captum does.

    Args:
        attribution: Attribution (h, w), (1, h, w), (1, 1, h, w), (3, H, W), (1, 3, H, W), or with
            channels last (H, W, 1) or (H, W, 3), of any real type. If both the first and the last
            side could be channels, the first is.

    Raises:
        TypeError: If it is not a tensor or array, or not real.
        ValueError: If it has another shape, or contains NaN, infinity or values beyond 1e300.
    """
    if isinstance(attribution, Tensor):
        check_real(attribution, "attribution")
        attribution = attribution.detach().cpu().double().numpy()
    if not isinstance(attribution, np.ndarray) or attribution.dtype.kind not in "fiub":
        kind = getattr(attribution, "dtype", type(attribution).__name__)
        raise TypeError(
            f"attribution must be a tensor or an array of real numbers, got {kind}; pass one map"
        )
    values = attribution.astype(np.float64)
    if values.ndim == 4 and len(values) == 1:
        values = values[0]
    if values.ndim == 3 and len(values) in CHANNELS:
        values = values.sum(0)
    elif values.ndim == 3 and values.shape[-1] in CHANNELS:  # as Captum's functions take it
        values = values.sum(-1)
    if values.ndim != 2 or not values.size:
        raise ValueError(
            f"attribution has shape {attribution.shape}, expected (h, w), (1, h, w), (1, 1, h, w), "
            "(3, H, W), (1, 3, H, W), (H, W, 1) or (H, W, 3): one map"
        )
    check_drawable(values)
    return values


def check_drawable(values: np.ndarray) -> None:
    """Check that values can be drawn.

    Raises:
        ValueError: If one is NaN, infinite or beyond 1e300.
    """
    undefined = int((~np.isfinite(values)).sum())
    if undefined:
        raise ValueError(
            f"a map contains NaN or infinity at {undefined} of {values.size} places; only finite "
            "values can be drawn"
        )
    if np.abs(values).max(initial=0) > MAX_VALUE:
        raise ValueError(f"a map has values beyond {MAX_VALUE:g}, which cannot be drawn; scale it")


def select_sign(values: np.ndarray, sign: str) -> np.ndarray:
    """Return the values of a sign; others become 0."""
    if sign == "positive":
        return np.maximum(values, 0)
    if sign == "negative":
        return np.minimum(values, 0)
    return np.abs(values) if sign == "absolute_value" else values


def color_limits(values: np.ndarray, sign: str, outlier_perc: float) -> Limits:
    """Return the limits of a map's colors.

    They are those of `captum.attr.visualization`: the limit is the absolute value above which
    `outlier_perc` percent of the absolute sum lie. For "range", which Captum lacks, they are
    percentiles that cut off half of `outlier_perc` on either side, or the minimum and maximum if
    these coincide because a few pixels hold all of the map.

    Args:
        values: Maps of any shape.
        sign: One of `SIGNS`.
        outlier_perc: Percentage from 0 to below 100.
    """
    if sign == "range":
        low, high = np.percentile(values, [outlier_perc / 2, 100 - outlier_perc / 2])
        return (low, high) if low < high else (values.min(), values.max())
    return limits_of_sign(_threshold(np.abs(select_sign(values, sign)), outlier_perc), sign)


def sign_of(values: np.ndarray, sign: str, outlier_perc: float) -> str:
    """Return the sign that "auto" stands for; others stay as they are.

    Maps of both signs are drawn with "all", two colors around zero. Maps of one sign, such as
    cosines that are positive everywhere, are drawn with "range", because around zero they would be
    one color.

    Args:
        values: All maps of a method, of any shape.
        sign: "auto" or one of `SIGNS`.
        outlier_perc: Percentage from 0 to below 100, see `color_limits`.
    """
    if sign != AUTO:
        return sign
    low, high = color_limits(values, "range", outlier_perc)
    weaker, stronger = sorted((-low, high))
    return "all" if low < 0 < high and weaker >= BOTH_SIGNS * stronger else "range"


def _threshold(strengths: np.ndarray, outlier_perc: float) -> float:
    peak = strengths.max()
    if peak == 0:
        return 0.0
    ordered = np.sort(strengths, axis=None)
    sums = np.cumsum(ordered / peak)  # sums of the values themselves may overflow
    first = int(np.searchsorted(sums, sums[-1] * 0.01 * (100 - outlier_perc)))
    return float(ordered[min(first, len(ordered) - 1)])


def format_value(value: float) -> str:
    """Write a value of a scale in a few signs.

    Example::

        >>> [format_value(value) for value in (-0.31, 0.025, 0.00025, 1e-12)]
        ['-0.31', '0.025', '2.5e-4', '1e-12']
    """
    if not value or abs(value) >= 0.01:
        return f"{value:.3g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def format_limits(limits: Limits) -> str:
    """Write the limits of a scale; "" if they coincide."""
    low, high = limits
    return "" if low == high else f"{format_value(low)} to {format_value(high)}"


def limits_of_sign(strongest: float, sign: str) -> Limits:
    """Return the limits of a sign whose strongest absolute value is given."""
    low = 0.0 if sign in ("positive", "absolute_value") else -strongest
    return low, 0.0 if sign == "negative" else strongest


def limits_for(
    values: np.ndarray, sign: str, outlier_perc: float, scale: float | Limits | None
) -> Limits:
    """Return the limits of a map's colors, whatever the size at which it is drawn.

    Args:
        values: The map (h, w) as it was given, before it is upsampled, which flattens its peaks.
        sign: One of `SIGNS`.
        outlier_perc: Percentage from 0 to below 100, see `color_limits`.
        scale: The value drawn strongest instead, above 0; for "range" a pair (low, high).

    Raises:
        ValueError: If the scale does not fit the sign.
    """
    return color_limits(values, sign, outlier_perc) if scale is None else _check_scale(scale, sign)


@dataclass(frozen=True)
class ScaledMap:
    """A map ready to draw.

    Args:
        values: The values (h, w) of a sign.
        limits: Limits of their colors.
        sign: One of `SIGNS`.
        note: What to write below a map without structure.
    """

    values: np.ndarray
    limits: Limits
    sign: str
    note: str = ""

    @classmethod
    def of(cls, values: np.ndarray, sign: str, limits: Limits) -> Self:
        """Scale a map (h, w).

        Args:
            values: The map at the size at which it is drawn.
            sign: One of `SIGNS`.
            limits: Limits of the colors, see `limits_for`.
        """
        selected = select_sign(values, sign)
        return cls(selected, limits, sign, _note(values, selected, sign))

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to draw."""
        return self.limits[0] == self.limits[1] or not self.values.any()

    def strengths(self) -> np.ndarray:
        """Return the values Captum draws: -1..1 for "all", otherwise 0..1; 0 for an empty map."""
        if self.is_empty:
            return np.zeros_like(self.values)
        low, high = self.limits
        if self.sign == "all":
            return np.clip(self.values / high, -1, 1)
        if self.sign == "negative":
            return np.clip(self.values / low, 0, 1)
        return np.clip((self.values - low) / (high - low), 0, 1)


def _check_scale(scale: float | Limits, sign: str) -> Limits:
    if sign == "range":
        if isinstance(scale, (tuple, list)) and len(scale) == 2 and np.isfinite(scale).all():
            low, high = scale
            if low < high:
                return float(low), float(high)
        raise ValueError(
            f"scale of sign 'range' must be (low, high) with low < high, got {scale!r}"
        )
    if isinstance(scale, (tuple, list)) or not (np.isfinite(scale) and scale > 0):
        raise ValueError(f"scale of sign {sign!r} must be one number above 0, got {scale!r}")
    return limits_of_sign(float(scale), sign)


def _note(values: np.ndarray, selected: np.ndarray, sign: str) -> str:
    if not values.any():
        return "all zero"
    if not selected.any():
        return f"nothing {'above' if sign == 'positive' else 'below'} zero"
    return "the same everywhere" if values.min() == values.max() else ""
