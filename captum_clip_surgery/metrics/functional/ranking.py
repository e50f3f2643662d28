"""A map as a classifier of pixels, and the rank correlation of two maps.

Ranks depend neither on a threshold nor on the map's scale. In AUROC and average precision ties, and
therefore a constant map, score what guessing scores: 0.5 and the object's fraction of the pixels.

Written in torch because torchmetrics computes both in float32 and takes two sorts, and scikit-learn
and scipy are not dependencies. Tests compare with all three.
"""

from __future__ import annotations

import torch
from torch import Tensor

from captum_clip_surgery.metrics.functional._maps import quantize

__all__ = ["pixel_auroc", "pixel_average_precision"]


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
    return auroc_and_ap(prepared, mask)[0]


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
    return auroc_and_ap(prepared, mask)[1]


def auroc_and_ap(prepared: Tensor | None, mask: Tensor) -> tuple[float, float]:
    """Return `pixel_auroc` and `pixel_average_precision` from one sort.

    Args:
        prepared: Scores (H, W) from `prepare`.
        mask: Mask (H, W) of bool with pixels inside and outside.

    Example::

        >>> auroc_and_ap(torch.tensor([[1.0, 0.5]]), torch.tensor([[True, False]]))
        (1.0, 1.0)
    """
    scores = torch.zeros_like(mask, dtype=torch.float64) if prepared is None else prepared
    hits, misses = _hits_and_misses(scores, mask)
    recall_gain = hits.diff(prepend=hits.new_zeros(1)) / hits[-1]
    precision = hits / (hits + misses)
    # The trapezoid rule counts runs of ties half.
    area = torch.trapezoid(_from_origin(hits), _from_origin(misses)) / (hits[-1] * misses[-1])
    return float(area), float(recall_gain @ precision)


def _hits_and_misses(scores: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pixels inside and outside the mask that reach each distinct score, descending."""
    # Sorting score and mask packed into one integer takes a quarter of the time of sorting floats.
    # Negated, because sorting in descending order takes twice the time.
    keys = quantize(scores) * -2 + mask
    ordered = keys.flatten().sort().values
    level, inside = ordered >> 1, ordered & 1
    last_of_level = torch.ones_like(level, dtype=torch.bool)
    last_of_level[:-1] = level[1:] != level[:-1]
    ends = last_of_level.nonzero().flatten()
    hits = inside.cumsum(0)[ends]
    return hits.double(), (ends + 1 - hits).double()


def _from_origin(values: Tensor) -> Tensor:
    return torch.cat([values.new_zeros(1), values])


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
    last = counts.cumsum(0).double()
    ranks = (last - (counts - 1) / 2)[level]
    return ranks - (len(ranks) + 1) / 2
