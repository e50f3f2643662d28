"""Maps brought to their masks: the order that all measures share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: Prepared scores are whole multiples of one over this: hundredths, which are thresholds, in 2**34.
RESOLUTION = 100 * 2**34


def prepare(attribution: Tensor, mask: Tensor) -> Tensor | None:
    """A map min-max normalised at its own size, then resized bilinearly to its mask.

    Args:
        attribution: (h, w), raw and signed.
        mask: (H, W) of bool.

    Returns:
        (H, W) of float64 in 0..1, or None for a constant map.

    Raises:
        TypeError, ValueError: see `check_pair`.

    Example::

        >>> prepare(torch.tensor([[-1.0, 3.0]]), torch.ones(1, 4, dtype=torch.bool))
        tensor([[0.0000, 0.2500, 0.7500, 1.0000]], dtype=torch.float64)
    """
    check_pair(attribution, mask)
    values = attribution.double()
    low, high = values.min(), values.max()
    if low == high:
        return None
    scaled = resize((values - low) / (high - low), mask)
    # Between cells of one value the weights of interpolation sum to 1 but for the last bit, which
    # would break ties: of a plateau one pixel by chance would be the maximum.
    return (scaled * RESOLUTION).round() / RESOLUTION


def resize(values: Tensor, mask: Tensor) -> Tensor:
    """A map (h, w) at the size of its mask (H, W), bilinearly, half-pixel centres."""
    if values.shape == mask.shape:
        return values
    size = (mask.shape[0], mask.shape[1])
    return F.interpolate(values[None, None], size, mode="bilinear", align_corners=False)[0, 0]


def levels(prepared: Tensor) -> Tensor:
    """Prepared scores as the whole numbers they are multiples of, 0 to `RESOLUTION`."""
    return (prepared * RESOLUTION).round().long()


def is_measurable(mask: Tensor) -> bool:
    """Whether a mask has an inside and an outside; other pairs are skipped."""
    return bool(mask.any()) and not bool(mask.all())


def check_pair(attribution: Tensor, mask: Tensor) -> None:
    """A finite map (h, w) and a mask (H, W) of bool.

    Raises:
        TypeError: no tensors.
        ValueError: other shapes, a mask that is not of bool, NaN or infinity.
    """
    for what, given in (("map", attribution), ("mask", mask)):
        if not isinstance(given, Tensor):
            raise TypeError(
                f"a {what} is a {type(given).__name__}, expected a tensor: torch.as_tensor({what})"
            )
    shapes = f"{tuple(attribution.shape)} and {tuple(mask.shape)}"
    if attribution.ndim != 2 or mask.ndim != 2:
        raise ValueError(
            f"a map is (h, w) and a mask (H, W), not {shapes}; image-shaped attributions are "
            "summed over channels first"
        )
    if not attribution.numel() or not mask.numel():
        raise ValueError(f"a map or mask has no pixels: {shapes}")
    if mask.dtype != torch.bool:
        raise ValueError(f"a mask is of bool, not {mask.dtype}; compare it: mask > 0")
    if not torch.isfinite(attribution).all():
        raise ValueError("a map holds NaN or infinity")


def check_maps(maps: Tensor, count: int, whose: str = "maps") -> None:
    """Finite maps (N, h, w), one for each of `count` images; `whose` names them in errors.

    Raises:
        TypeError: no tensor.
        ValueError: another shape, NaN or infinity.
    """
    if not isinstance(maps, Tensor):
        raise TypeError(f"{whose} are a {type(maps).__name__}, expected a tensor (N, h, w)")
    if maps.ndim != 3 or len(maps) != count or not maps.numel():
        raise ValueError(
            f"{whose} have shape {tuple(maps.shape)}, expected ({count}, h, w), one for each "
            "image; image-shaped attributions are summed over channels: .sum(1)"
        )
    if not torch.isfinite(maps).all():
        raise ValueError(f"{whose} hold NaN or infinity")
