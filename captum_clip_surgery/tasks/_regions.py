"""Connected regions and peaks of a map, by `scipy.ndimage`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Cells touch by a side or a corner.
STRUCTURE = np.ones((3, 3), dtype=bool)


def unit_range(values: Tensor) -> Tensor:
    """Scale values linearly to 0..1; a constant map becomes -1, which reaches no threshold."""
    low, high = values.min(), values.max()
    # Interpolation makes equal values differ in their last bits.
    if high - low <= 1e-9 * values.abs().max():
        return torch.full_like(values, -1.0)
    return ((values - low) / (high - low)).round(decimals=9)


def components(inside: Tensor) -> list[Tensor]:
    """Return the groups of cells (h, w) that touch by a side or a corner, in reading order.

    Raises:
        ImportError: If scipy is not installed.
    """
    numbers, count = _ndimage().label(inside.numpy(), STRUCTURE)
    return [torch.from_numpy(numbers == number) for number in range(1, count + 1)]


def peaks(scaled: Tensor, component: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return a component's local maxima, each with the part of the component nearest to it.

    Args:
        scaled: The map (h, w).
        component: Mask (h, w) of the component.

    Returns:
        Pairs of masks (h, w). A plateau is one maximum if no cell beside it is higher.

    Raises:
        ImportError: If scipy is not installed.
    """
    ndimage, values = _ndimage(), scaled.numpy()
    highest = values == ndimage.maximum_filter(values, 3)
    # A plateau is not a maximum if any of its cells has a higher neighbor.
    beside = ndimage.maximum_filter(np.where(highest, -np.inf, values), 3)
    numbers, _ = ndimage.label(highest, STRUCTURE)
    slopes = np.unique(numbers[highest & (beside >= values)])
    tops = torch.from_numpy(highest & ~np.isin(numbers, slopes)) & component
    regions = components(tops)
    return [(peak, component & part) for peak, part in zip(regions, nearest(regions), strict=True)]


def nearest(regions: list[Tensor]) -> list[Tensor]:
    """Return for each region the mask (h, w) of the cells that are nearest to it.

    Raises:
        ImportError: If scipy is not installed.
    """
    if not regions:
        return []
    owner = np.full(regions[0].shape, -1)
    for index, region in enumerate(regions):
        owner[region.numpy()] = index
    places = _ndimage().distance_transform_edt(
        owner < 0, return_distances=False, return_indices=True
    )
    owner = owner[tuple(places)]
    return [torch.from_numpy(owner == index) for index in range(len(regions))]


def _ndimage() -> Any:
    try:
        from scipy import ndimage
    except ImportError as error:
        raise ImportError(
            "instances need scipy; install the extra: pip install 'captum_clip_surgery[sam]'"
        ) from error
    return ndimage
