"""A map as a classifier of pixels, and the rank correlation of two maps.

Ranks depend neither on a threshold nor on the map's scale. In AUROC and average precision ties, and
therefore a constant map, score what guessing scores: 0.5 and the object's fraction of the pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from captum_clip_surgery._utils.tensors import as_double
from captum_clip_surgery.metrics.functional._maps import check_prepared, quantize
from captum_clip_surgery.metrics.functional._ranked import RankedPixels


def pixel_auroc(prepared: Tensor | None, mask: Tensor) -> float:
    """Return the probability that a pixel inside the mask scores above one outside, in 0..1.

    Ties count half.

    Args:
        prepared: Scores (H, W) from `prepare`.
        mask: Mask (H, W) of bool with pixels inside and outside.

    References:
        Fawcett: An introduction to ROC analysis. Pattern Recognition Letters 27, 2006.

    Example::

        >>> pixel_auroc(torch.tensor([[1.0, 0.5, 0.5]]), torch.tensor([[True, True, False]]))
        0.75
    """
    return _rank(prepared, mask).auroc_and_ap()[0]


def pixel_average_precision(prepared: Tensor | None, mask: Tensor) -> float:
    """Return the mean, over the pixels of the mask, of the precision at their score, in 0..1.

    It is the sum over distinct scores of the gain in recall times the precision there, without
    interpolation, as in scikit-learn.

    Args:
        prepared: Scores (H, W) from `prepare`.
        mask: Mask (H, W) of bool with pixels inside and outside.

    References:
        Chefer et al.: Transformer Interpretability Beyond Attention Visualization. CVPR 2021. Their
        code ranks foreground and background scores in one list; this function ranks the foreground
        scores, as the paper describes.

    Example::

        >>> mask = torch.tensor([[False, True, True]])
        >>> round(pixel_average_precision(torch.tensor([[1.0, 0.5, 0.5]]), mask), 4)
        0.6667
    """
    return _rank(prepared, mask).auroc_and_ap()[1]


def _rank(prepared: Tensor | None, mask: Tensor) -> RankedPixels:
    check_prepared(prepared, mask)
    levels = torch.zeros_like(mask, dtype=torch.int32) if prepared is None else quantize(prepared)
    return RankedPixels.of(levels, mask)


def spearman(first: Tensor, second: Tensor) -> Tensor:
    """Return Spearman's rank correlation of pairs of maps; ties have their average rank.

    The correlation with a constant map is 0, where `scipy.stats.spearmanr` returns NaN.

    Args:
        first: Maps (N, h, w).
        second: Maps (N, h, w).

    Returns:
        Correlations (N,) of float64 in -1..1.

    Raises:
        ValueError: If the shapes differ.

    Example::

        >>> spearman(torch.tensor([[[1.0, 2.0, 4.0]]]), torch.tensor([[[-9.0, 3.0, 0.0]]]))
        tensor([0.5000], dtype=torch.float64)
    """
    if first.shape != second.shape:
        raise ValueError(
            f"both maps must have the same shape, got {tuple(first.shape)} and "
            f"{tuple(second.shape)}"
        )
    ranks = [torch.stack([_centered_ranks(one) for one in maps]) for maps in (first, second)]
    norms = ranks[0].norm(dim=1) * ranks[1].norm(dim=1)
    products = (ranks[0] * ranks[1]).sum(1)
    return torch.where(norms > 0, products / norms, 0.0)


def _centered_ranks(values: Tensor) -> Tensor:
    """Return average ranks minus their mean, flattened, as float64."""
    _, level, counts = values.flatten().unique(return_inverse=True, return_counts=True)
    last = as_double(counts.cumsum(0))
    ranks = (last - (counts.to(last) - 1) / 2)[level.to(last.device)]
    return ranks - (len(ranks) + 1) / 2
