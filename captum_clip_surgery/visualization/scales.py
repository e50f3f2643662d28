"""What of an attribution is drawn, and between which values: signs, outliers, colours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

#: By sign, colours that are ordered by lightness, so that colour-blind readers and greyscale
#: prints see the order; of both signs they are red and blue, which all common kinds of colour
#: blindness tell apart. What is strong is bright in sequential colours, and dark in diverging ones.
COLOURS = {
    "all": "RdBu_r",
    "positive": "inferno",
    "negative": "YlGnBu",
    "absolute_value": "viridis",
    "range": "inferno",
}
SIGNS = tuple(COLOURS)

HUGE = 1e300  # beyond it, differences overflow

#: The values drawn with the first and the last colour.
Limits = tuple[float, float]


def as_map(attribution: Tensor | np.ndarray) -> np.ndarray:
    """An attribution as (h, w) float64, its channels summed as Captum does.

    Args:
        attribution: (h, w), (1, h, w), (1, 1, h, w), (3, H, W) or (1, 3, H, W), of any real type.

    Raises:
        TypeError: neither tensor nor array, or not real.
        ValueError: another shape, or NaN or infinity in it.
    """
    if isinstance(attribution, Tensor):
        attribution = attribution.detach().cpu().double().numpy()
    if not isinstance(attribution, np.ndarray) or attribution.dtype.kind not in "fiub":
        kind = getattr(attribution, "dtype", type(attribution).__name__)
        raise TypeError(f"an attribution is a tensor or an array of real numbers, not {kind}")
    values = attribution.astype(np.float64)
    if values.ndim == 4 and len(values) == 1:
        values = values[0]
    if values.ndim == 3 and len(values) in (1, 3):
        values = values.sum(0)
    if values.ndim != 2 or not values.size:
        raise ValueError(
            f"attribution has shape {attribution.shape}, expected (h, w), (1, h, w), (1, 1, h, w), "
            "(3, H, W) or (1, 3, H, W): one map, channels first"
        )
    refuse_undrawable(values)
    return values


def refuse_undrawable(values: np.ndarray) -> None:
    """Raises ValueError where NaN, infinity or what is as good as infinite is."""
    wrong = int((~np.isfinite(values)).sum())
    if wrong:
        raise ValueError(
            f"a map holds NaN or infinity at {wrong} of {values.size} places, which cannot be drawn"
        )
    if np.abs(values).max(initial=0) > HUGE:
        raise ValueError(f"a map holds values beyond {HUGE:g}, which cannot be drawn; scale it")


def signed_part(values: np.ndarray, sign: str) -> np.ndarray:
    """Values of a sign; others become 0."""
    if sign == "positive":
        return np.maximum(values, 0)
    if sign == "negative":
        return np.minimum(values, 0)
    return np.abs(values) if sign == "absolute_value" else values


def limits_of(values: np.ndarray, sign: str, outlier_perc: float) -> Limits:
    """Between which values colours run.

    As `captum.attr.visualization` (0.9) scales: up to the absolute value above which lie
    `outlier_perc` percent of the absolute sum. For "range", which Captum lacks: all but the
    `outlier_perc` percent of places that are lowest and highest, half on either side; where that
    leaves a single value, because a few places hold all there is, from the lowest to the highest.

    Args:
        values: of any shape.
        sign: one of `SIGNS`.
        outlier_perc: from 0 to below 100.
    """
    if sign == "range":
        half = outlier_perc / 2
        low, high = np.percentile(values, [half, 100 - half])
        return (low, high) if low < high else (values.min(), values.max())
    return around_zero(_threshold(np.abs(signed_part(values, sign)), outlier_perc), sign)


def _threshold(strengths: np.ndarray, outlier_perc: float) -> float:
    peak = strengths.max()
    if peak == 0:
        return 0.0
    ordered = np.sort(strengths, axis=None)
    sums = np.cumsum(ordered / peak)  # at most their count, where values themselves would overflow
    first = int(np.searchsorted(sums, sums[-1] * 0.01 * (100 - outlier_perc)))
    return float(ordered[min(first, len(ordered) - 1)])


def around_zero(strongest: float, sign: str) -> Limits:
    """Limits of a sign of which a value is the strongest."""
    low = 0.0 if sign in ("positive", "absolute_value") else -strongest
    return low, 0.0 if sign == "negative" else strongest


@dataclass(frozen=True)
class Scaled:
    """A map (h, w) of a sign, the limits of its colours, and what to say where it is empty."""

    values: np.ndarray
    limits: Limits
    sign: str
    note: str = ""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to draw."""
        return self.limits[0] == self.limits[1] or not self.values.any()

    def strength(self) -> np.ndarray:
        """Captum's normalised attribution: -1..1 for "all", otherwise 0..1; empty maps are 0."""
        if self.empty:
            return np.zeros_like(self.values)
        low, high = self.limits
        if self.sign == "all":
            return np.clip(self.values / high, -1, 1)
        if self.sign == "negative":
            return np.clip(self.values / low, 0, 1)
        return np.clip((self.values - low) / (high - low), 0, 1)


def scaled(
    values: np.ndarray, sign: str, outlier_perc: float, scale: float | Limits | None = None
) -> Scaled:
    """A map (h, w) ready to draw.

    Args:
        values: from `as_map`.
        sign: one of `SIGNS`.
        outlier_perc: see `limits_of`.
        scale: instead of `outlier_perc` the value drawn strongest, above 0; for "range" (low,
            high).

    Raises:
        ValueError: a scale that does not fit the sign.
    """
    limits = limits_of(values, sign, outlier_perc) if scale is None else _given(scale, sign)
    part = signed_part(values, sign)
    return Scaled(part, limits, sign, _note(values, part, sign))


def _given(scale: float | Limits, sign: str) -> Limits:
    if sign == "range":
        if isinstance(scale, (tuple, list)) and len(scale) == 2 and np.isfinite(scale).all():
            low, high = scale
            if low < high:
                return float(low), float(high)
        raise ValueError(f"scale {scale!r} of sign 'range' must be (low, high), low below high")
    if isinstance(scale, (tuple, list)) or not (np.isfinite(scale) and scale > 0):
        raise ValueError(f"scale {scale!r} of sign {sign!r} must be one number above 0")
    return around_zero(float(scale), sign)


def _note(values: np.ndarray, part: np.ndarray, sign: str) -> str:
    if not values.any():
        return "all zero"
    if not part.any():
        return f"nothing {'above' if sign == 'positive' else 'below'} zero"
    return "the same everywhere" if values.min() == values.max() else ""
