"""Small maps and masks to measure."""

from __future__ import annotations

import torch
from torch import Tensor

#: A box of 3 x 4 pixels.
MASK = torch.zeros(8, 8, dtype=torch.bool)
MASK[2:5, 3:7] = True


def random_map(seed: int, side: int = 8) -> Tensor:
    """Return a map (side, side) of normal numbers."""
    return torch.randn(side, side, generator=torch.Generator().manual_seed(seed))


def random_mask(seed: int, side: int = 8) -> Tensor:
    """Return a mask (side, side) that is True at a third of the pixels."""
    return random_map(seed + 50, side) > 0.5
