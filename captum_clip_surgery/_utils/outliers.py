"""Outliers among patch tokens on plain tensors: how they are found, and how they are replaced."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: A token is an outlier if its norm is at least this multiple of its image's median norm.
NORM_RATIO = 4.0
#: Number of neighbors, and share of tokens that are called outliers, in SC-CLIP.
NUM_NEIGHBORS = 30
SHARE = 0.05


def norm_outliers(tokens: Tensor, ratio: float = NORM_RATIO) -> Tensor:
    """Return a mask of the tokens whose norm is extreme for their image.

    Args:
        tokens: Patch tokens (..., L, D).
        ratio: Smallest norm of an outlier, as a multiple of the median norm of the L tokens.

    Returns:
        Mask (..., L).

    References:
        Darcet, Oquab, Mairal, Bojanowski: Vision Transformers Need Registers. ICLR 2024, Sec. 2,
        where the threshold is one number for all images of a model.

    Example::

        >>> norm_outliers(torch.tensor([[1.0], [2.0], [1.0], [9.0], [1.0]]))
        tensor([False, False, False,  True, False])
    """
    norms = tokens.norm(dim=-1, dtype=torch.promote_types(tokens.dtype, torch.float32))
    return norms >= ratio * norms.median(-1, keepdim=True).values


def local_outlier_factors(tokens: Tensor, num_neighbors: int = NUM_NEIGHBORS) -> Tensor:
    """Return the local outlier factors of tokens: about 1 for a token in a cluster, more outside.

    A factor is the mean density of a token's nearest neighbors divided by its own density, both
    estimated from the distances to nearest neighbors.

    Args:
        tokens: Tokens (..., L, D), compared by Euclidean distance.
        num_neighbors: Number of nearest neighbors, at least 1; L - 1 if there are fewer.

    Returns:
        Factors (..., L).

    Raises:
        ValueError: If there are fewer than two tokens, or `num_neighbors` is below 1.

    References:
        Breunig, Kriegel, Ng, Sander: LOF: Identifying Density-Based Local Outliers. SIGMOD 2000.

    Example::

        >>> line = torch.tensor([[0.0], [1.0], [2.0], [3.0], [30.0]])
        >>> int(local_outlier_factors(line, 2).argmax())
        4
    """
    count = tokens.shape[-2]
    if count < 2 or num_neighbors < 1:
        raise ValueError(
            f"got {count} tokens and num_neighbors={num_neighbors}; pass two tokens or more and at "
            "least 1 neighbor"
        )
    wide = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    # Without the matrix product, whose rounding exceeds the distances between similar tokens.
    distances = torch.cdist(wide, wide, compute_mode="donot_use_mm_for_euclid_dist")  # (..., L, L)
    itself = torch.eye(count, dtype=torch.bool, device=tokens.device)
    nearest = distances.masked_fill(itself, torch.inf).topk(
        min(num_neighbors, count - 1), largest=False
    )
    # The distance from a token to a neighbor counts as at least the neighbor's own k-th distance.
    reach = torch.maximum(nearest.values, _of_neighbors(nearest.values[..., -1], nearest.indices))
    density = 1 / (reach.mean(-1) + 1e-10)  # (..., L); identical tokens have no distance
    return _of_neighbors(density, nearest.indices).mean(-1) / density


def _of_neighbors(values: Tensor, indices: Tensor) -> Tensor:
    """Return the values (..., L) of each token's neighbors (..., L, k)."""
    return values[..., None].expand(*values.shape, indices.shape[-1]).gather(-2, indices)


def local_outliers(
    tokens: Tensor, num_neighbors: int = NUM_NEIGHBORS, share: float = SHARE
) -> Tensor:
    """Return a mask of the tokens with the largest local outlier factors, the same number for all.

    A single token has no neighbors to compare with and is not an outlier.

    Args:
        tokens: Patch tokens (..., L, D).
        num_neighbors: As for `local_outlier_factors`.
        share: Share of the L tokens that are called outliers, 0 to 1, rounded down.

    Returns:
        Mask (..., L).

    Raises:
        ValueError: If `num_neighbors` is below 1.

    References:
        Bai et al.: Self-Calibrated CLIP for Training-Free Open-Vocabulary Segmentation. IEEE
        Transactions on Image Processing, 2025: 30 neighbors, 5 %.
    """
    if tokens.shape[-2] == 1:
        return torch.zeros_like(tokens[..., 0], dtype=torch.bool)
    factors = local_outlier_factors(tokens, num_neighbors)
    largest = factors.topk(int(share * factors.shape[-1]), dim=-1).indices
    return torch.zeros_like(factors, dtype=torch.bool).scatter(-1, largest, True)


def fill_from_neighbors(tokens: Tensor, outliers: Tensor, grid: tuple[int, int]) -> Tensor:
    """Replace outliers by the mean of those of their 8 neighbors on the grid that are not outliers.

    Outliers whose neighbors are all outliers are replaced after these, from what replaced them, and
    so on. If all tokens of an image are outliers, they stay as they are.

    Args:
        tokens: Patch tokens (N, h*w, D).
        outliers: Mask (N, h*w).
        grid: Rows h and columns w.

    Returns:
        Patch tokens (N, h*w, D).

    Example::

        >>> tokens = torch.tensor([[[1.0], [2.0], [90.0], [4.0]]])
        >>> fill_from_neighbors(tokens, tokens[..., 0] > 9, (1, 4)).flatten()
        tensor([1., 2., 3., 4.])
    """
    filled = tokens.mT.unflatten(-1, grid)  # (N, D, h, w)
    sound = ~outliers.unflatten(-1, grid)[:, None]  # (N, 1, h, w)
    for _ in range(max(grid) - 1):
        around = _sum_around(sound.to(tokens.dtype))
        fillable = ~sound & (around > 0)
        if not torch.compiler.is_compiling() and not fillable.any():
            break
        mean = _sum_around(filled.where(sound, 0)) / around.clamp(min=1)
        filled, sound = mean.where(fillable, filled), sound | fillable
    return filled.flatten(2).mT


def _sum_around(maps: Tensor) -> Tensor:
    """Return the sums over the 3 x 3 cells around each cell of maps (N, D, h, w)."""
    return F.avg_pool2d(maps, 3, stride=1, padding=1) * 9
