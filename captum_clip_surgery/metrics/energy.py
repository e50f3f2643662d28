"""How much of a map's positive mass lies where it should.

Both take the raw map, not the min-max normalised one: there 0 means "no evidence", and normalising
would turn the least of a map into its zero. A constant map gets 0: it points nowhere, and would
else be paid for the size of the object.
"""

from __future__ import annotations

import torch
from torch import Tensor

from captum_clip_surgery.metrics.maps import check_pair, resize


def energy_pointing_game(attribution: Tensor, mask: Tensor) -> float:
    """Positive mass inside the mask over all positive mass, in 0..1.

    The positive part is taken at the map's own size and then resized bilinearly to the mask, so
    that negative cells take nothing from their neighbours. No positive mass, or a constant map: 0.

    Args:
        attribution: (h, w), raw and signed.
        mask: (H, W) of bool.

    Raises:
        TypeError, ValueError: see `check_pair`.

    Source: Wang et al., "Score-CAM" (CVPR Workshops 2020).

    Example::

        >>> mask = torch.tensor([[True, False, False]])
        >>> energy_pointing_game(torch.tensor([[3.0, 1.0, -7.0]]), mask)
        0.75
    """
    check_pair(attribution, mask)
    positive = resize(positive_part(attribution), mask)
    return share(positive[mask].sum(), positive.sum())


def grid_pointing_game(attribution: Tensor, rows: int, columns: int, cell: int) -> float:
    """Positive mass in one cell of a grid of images over all positive mass, in 0..1.

    Where the map's side is no multiple of the grid's, a pixel on a border counts to each side by
    its area there. No positive mass, or a constant map: 0.

    Args:
        attribution: (h, w) of `rows` x `columns` images tiled into one, raw and signed.
        rows, columns: of the grid.
        cell: where the image of the target is, row by row from 0.

    Raises:
        TypeError, ValueError: a map as in `check_pair`; a grid without cells.
        IndexError: a cell past the grid.

    Source: Böhle et al., "Convolutional Dynamic Alignment Networks for Interpretable
    Classifications" (CVPR 2021).

    Example::

        >>> grid_pointing_game(torch.tensor([[1.0, 0.0], [3.0, -9.0]]), 2, 2, cell=2)
        0.75
    """
    check_pair(attribution, torch.ones(1, 1, dtype=torch.bool))
    if rows < 1 or columns < 1:
        raise ValueError(
            f"a grid of {rows} x {columns} images has no cell; expected at least 1 x 1"
        )
    if not 0 <= cell < rows * columns:
        raise IndexError(f"cell {cell} of {rows} x {columns}; 0 to {rows * columns - 1} exist")
    height, width = attribution.shape
    mass = _coverage(height, rows) @ positive_part(attribution) @ _coverage(width, columns).T
    return share(mass.flatten()[cell], mass.sum())


def positive_part(attribution: Tensor) -> Tensor:
    """Of float64 on the CPU; zero for a constant map."""
    values = attribution.detach().cpu().double()
    return values.clamp(min=0) * (values.min() < values.max())


def share(part: Tensor, whole: Tensor) -> float:
    return float(part / whole) if whole > 0 else 0.0


def _coverage(pixels: int, cells: int) -> Tensor:
    """How much of each pixel lies in each of equal cells: (cells, pixels) in 0..1."""
    pixel = torch.arange(pixels, dtype=torch.float64)
    edge = torch.arange(cells + 1, dtype=torch.float64)[:, None] * pixels / cells
    ends = torch.minimum(edge[1:], pixel + 1)
    return (ends - torch.maximum(edge[:-1], pixel)).clamp(min=0)
