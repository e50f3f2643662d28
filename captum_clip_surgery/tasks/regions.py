"""Where a map is high: its values in 0..1, and the regions of cells that touch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def unit_range(values: Tensor) -> Tensor:
    """Values in 0..1; -1, which reaches no threshold, where all are the same."""
    low, high = values.min(), values.max()
    # Interpolation makes equal values differ in their last bits.
    if high - low <= 1e-9 * values.abs().max():
        return torch.full_like(values, -1.0)
    return ((values - low) / (high - low)).round(decimals=9)


def _flood(values: Tensor, ceiling: Tensor) -> Tensor:
    """The highest value that reaches each cell from its neighbours, under the ceilings between."""
    while True:
        spread = F.max_pool2d(values[None], 3, 1, 1)[0].minimum(ceiling)
        if torch.equal(spread, values):
            return values
        values = spread


def components(inside: Tensor) -> list[Tensor]:
    """Each group of cells that touch, (h, w) of bool."""
    numbers = torch.arange(1.0, inside.numel() + 1).view(inside.shape)
    labels = _flood(numbers * inside, inside * numbers.max())
    return [labels == label for label in labels.unique() if label]


def peaks(scaled: Tensor, component: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Each local maximum, a plateau as one, and what of the component is nearest to it."""
    ranks = scaled.unique(return_inverse=True)[1].double()
    # A flood of one rank less fills up all plateaus but those with nothing higher beside them.
    found = components((_flood(ranks - 1, ranks) < ranks) & component)
    return [(peak, component & own) for peak, own in zip(found, nearest(found), strict=True)]


def nearest(regions: Sequence[Tensor]) -> list[Tensor]:
    """For each region the cells, (h, w) of bool, to which no other is nearer."""
    if not regions:
        return []
    cells = torch.ones_like(regions[0]).nonzero().double()
    distances = [torch.cdist(cells, region.nonzero().double()).amin(1) for region in regions]
    owner = torch.stack(distances).argmin(0).view(regions[0].shape)
    return [owner == index for index in range(len(regions))]
