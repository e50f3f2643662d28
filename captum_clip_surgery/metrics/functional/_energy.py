"""The fraction of a map's positive mass that is in the right place.

Both measures take the raw map. In a min-max normalized map 0 is the map's minimum, not "no
evidence". A constant map gets 0: it does not point anywhere, and would otherwise score the object's
area.
"""

from __future__ import annotations

import torch
from torch import Tensor

from captum_clip_surgery.metrics.functional._maps import (
    check_pair,
    positive_part,
    resize,
    safe_fraction,
)


def energy_pointing_game(attribution: Tensor, mask: Tensor) -> float:
    """Return the positive mass inside the mask divided by all positive mass, in 0..1.

    The positive part is taken at the map's own size and then resized bilinearly to the mask, so
    that negative cells do not reduce their neighbors. Without positive mass, and for a constant
    map, the result is 0.

    Args:
        attribution: Map (h, w), raw and signed.
        mask: Mask (H, W) of bool.

    Raises:
        TypeError: If the map or the mask is not a tensor.
        ValueError: If a shape or the mask's dtype is wrong, or the map is not finite.

    References:
        Wang et al.: Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural
        Networks. CVPR Workshops 2020.

    Example::

        >>> mask = torch.tensor([[True, False, False]])
        >>> energy_pointing_game(torch.tensor([[3.0, 1.0, -7.0]]), mask)
        0.75
    """
    check_pair(attribution, mask)
    return energy_share(attribution, mask)


def energy_share(attribution: Tensor, mask: Tensor, valid: Tensor | None = None) -> float:
    """Return the fraction of the valid pixels' positive mass that is inside the mask."""
    positive, mask = resize(positive_part(attribution), mask), mask.cpu()
    if valid is not None:
        positive = positive * valid.cpu()
    return safe_fraction((positive * mask).sum(), positive.sum())


def grid_pointing_game(attribution: Tensor, rows: int, columns: int, cell: int) -> float:
    """Return the positive mass in one cell of a grid of images divided by all positive mass.

    If the map's side is not a multiple of the grid's, a pixel on a border counts on each side by
    its area there. Without positive mass, and for a constant map, the result is 0.

    Args:
        attribution: Map (h, w) of `rows` x `columns` images tiled into one, raw and signed.
        rows: Number of rows of the grid.
        columns: Number of columns of the grid.
        cell: Position of the target's image, counted row by row from 0.

    Returns:
        The fraction, in 0..1.

    Raises:
        TypeError: If the map is not a tensor.
        ValueError: If the map's shape is wrong or it is not finite, or the grid has no cells.
        IndexError: If `cell` is out of range.

    References:
        Böhle et al.: Convolutional Dynamic Alignment Networks for Interpretable Classifications.
        CVPR 2021.

    Example::

        >>> grid_pointing_game(torch.tensor([[1.0, 0.0], [3.0, -9.0]]), 2, 2, cell=2)
        0.75
    """
    check_pair(attribution, torch.ones(1, 1, dtype=torch.bool, device="cpu"))
    if rows < 1 or columns < 1:
        raise ValueError(f"the grid must have at least 1 x 1 images, got {rows} x {columns}")
    if not 0 <= cell < rows * columns:
        raise IndexError(
            f"cell must be 0 to {rows * columns - 1} in a grid of {rows} x {columns}, got {cell}"
        )
    height, width = attribution.shape
    mass = _coverage(height, rows) @ positive_part(attribution) @ _coverage(width, columns).T
    return safe_fraction(mass.flatten()[cell], mass.sum())


def _coverage(pixels: int, cells: int) -> Tensor:
    """Return the fraction of each pixel that is in each of equal cells, (cells, pixels)."""
    pixel = torch.arange(pixels, dtype=torch.float64, device="cpu")
    edge = torch.arange(cells + 1, dtype=torch.float64, device="cpu")[:, None] * pixels / cells
    ends = torch.minimum(edge[1:], pixel + 1)
    return (ends - torch.maximum(edge[:-1], pixel)).clamp(min=0)
