"""Steps shared by the measures: checks of maps and masks, scaling, resizing and quantizing."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_clip_surgery._utils.tensors import as_double, check_real

#: Prepared scores are multiples of 1 / RESOLUTION: hundredths, which are thresholds, times 2**-24.
#: That is a hundredth of the precision of float32, and fits int32, which sorts in half the time.
RESOLUTION = 100 * 2**24
#: Scores that differ by less were not normalized: rounding would make many of them equal.
MIN_RANGE = 1e-6


def prepare(attribution: Tensor, mask: Tensor) -> Tensor | None:
    """Min-max normalize a map at its own size, then resize it bilinearly to its mask.

    Args:
        attribution: Map (h, w), raw and signed.
        mask: Mask (H, W) of bool.

    Returns:
        Scores (H, W) of float64 in 0..1, or None for a constant map. They are on the map's device,
        or on the CPU if that device has no float64.

    Raises:
        TypeError: If the map or the mask is not a tensor.
        ValueError: If a shape or the mask's dtype is wrong, or the map is not finite.

    Example::

        >>> prepare(torch.tensor([[-1.0, 3.0]]), torch.ones(1, 4, dtype=torch.bool))
        tensor([[0.0000, 0.2500, 0.7500, 1.0000]], dtype=torch.float64)
    """
    check_pair(attribution, mask)
    levels = prepare_levels(attribution, mask)
    return None if levels is None else levels.double() / RESOLUTION


def prepare_levels(attribution: Tensor, mask: Tensor) -> Tensor | None:
    """Return the result of `prepare` as int32 (H, W) from 0 to `RESOLUTION`.

    Interpolation weights sum to 1 only up to rounding, so a plateau would get a spurious single
    maximum. Rounding to multiples of 1 / RESOLUTION keeps ties.
    """
    values = as_double(attribution)
    low, high = values.min(), values.max()
    if low == high:
        return None
    half = high / 2 - low / 2  # halved, because the range of finite values can be infinite
    scores = resize((values / 2 - low / 2) / half, mask)
    return quantize(scores)


def resize(values: Tensor, mask: Tensor) -> Tensor:
    """Resize a map (h, w) to its mask (H, W), bilinearly with half-pixel centers."""
    if values.shape == mask.shape:
        return values
    size = (mask.shape[0], mask.shape[1])
    return F.interpolate(values[None, None], size, mode="bilinear", align_corners=False)[0, 0]


def quantize(prepared: Tensor) -> Tensor:
    """Return prepared scores as int32, 0 to `RESOLUTION`."""
    return (as_double(prepared) * RESOLUTION).round_().int()


def positive_part(attribution: Tensor) -> Tensor:
    """Return the positive part (h, w) of a map, scaled to 0..1, float64 on the CPU.

    It is zero for a constant map. Only fractions of it are used, and sums of large values could
    overflow.
    """
    values = attribution.detach().cpu().double()
    high = values.max()
    if high <= 0 or high == values.min():
        return torch.zeros_like(values)
    return values.clamp(min=0) / high


def safe_fraction(numerator: Tensor, denominator: Tensor) -> float:
    """Return numerator / denominator, or 0 if the denominator is not positive."""
    return float(numerator / denominator) if denominator > 0 else 0.0


def is_measurable(mask: Tensor) -> bool:
    """Return whether a mask has pixels inside and outside; other pairs are skipped."""
    return bool(mask.any()) and not bool(mask.all())


def check_pair(attribution: Tensor, mask: Tensor) -> None:
    """Check a map (h, w) and a mask (H, W).

    Raises:
        TypeError: If one of them is not a tensor.
        ValueError: If a shape is wrong, the mask is not of bool, or the map is not finite.
    """
    for name, value in (("map", attribution), ("mask", mask)):
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise TypeError(f"a {name} must be a tensor, got {kind}; use torch.as_tensor({name})")
    check_real(attribution, "a map")
    shapes = f"{tuple(attribution.shape)} and {tuple(mask.shape)}"
    if attribution.ndim != 2 or mask.ndim != 2:
        raise ValueError(
            f"a map must be (h, w) and a mask (H, W), got {shapes}; sum image-shaped attributions "
            "over channels first"
        )
    if not attribution.numel() or not mask.numel():
        raise ValueError(f"a map and a mask must have pixels, got {shapes}")
    if mask.dtype != torch.bool:
        raise ValueError(f"a mask must be bool, got {mask.dtype}; use mask > 0")
    if not torch.isfinite(attribution).all():
        raise ValueError("a map must be finite, but holds NaN or infinity")


def check_prepared(prepared: Tensor | None, mask: Tensor) -> None:
    """Check scores (H, W) that `prepare` is to have returned, and their mask.

    Raises:
        TypeError: If one of them is not a tensor.
        ValueError: If a shape is wrong, the mask is not of bool, or the scores are not finite, not
            in 0..1, or closer together than rounding allows for.
    """
    if prepared is None:
        return
    check_pair(prepared, mask)
    if prepared.shape != mask.shape:
        raise ValueError(
            f"scores and mask must have the same shape, got {tuple(prepared.shape)} and "
            f"{tuple(mask.shape)}; use prepare(map, mask)"
        )
    low, high = prepared.min().item(), prepared.max().item()
    if low < 0 or high > 1 or 0 < high - low < MIN_RANGE:
        raise ValueError(
            f"scores must be normalized to 0..1, got {low:g} to {high:g}; use prepare(map, mask)"
        )


def check_maps(maps: Tensor, count: int, name: str = "maps") -> None:
    """Check maps (N, h, w), one per image.

    Args:
        maps: The maps.
        count: Expected number of maps.
        name: Name of the maps in messages.

    Raises:
        TypeError: If `maps` is not a tensor.
        ValueError: If the shape is wrong or values are not finite.
    """
    if not isinstance(maps, Tensor):
        raise TypeError(f"{name} must be a tensor (N, h, w), got {type(maps).__name__}")
    check_real(maps, name)
    if maps.ndim != 3 or len(maps) != count or not maps.numel():
        raise ValueError(
            f"{name} have shape {tuple(maps.shape)}, expected ({count}, h, w), one per image; sum "
            "image-shaped attributions over channels: .sum(1)"
        )
    if not torch.isfinite(maps).all():
        raise ValueError(f"{name} hold NaN or infinity")


def check_tolerance(tolerance: float) -> None:
    """Check a tolerance of the pointing game.

    Raises:
        ValueError: If it is negative, NaN or infinite.
    """
    if not 0 <= tolerance < math.inf:
        raise ValueError(
            f"tolerance must be a finite number of pixels, 0 or more, got {tolerance!r}"
        )
