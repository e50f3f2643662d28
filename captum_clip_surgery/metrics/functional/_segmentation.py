"""A map as a segmentation: the foreground is what exceeds the map's own mean.

This is the ImageNet-Segmentation protocol. Pixels are counted over all pairs together, so both
figures are computed from the sum of `confusion`. The protocol's third figure is
`pixel_average_precision`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from captum_clip_surgery.metrics.functional._maps import check_prepared, quantize
from captum_clip_surgery.metrics.functional._ranked import RankedPixels


def confusion(prepared: Tensor | None, mask: Tensor) -> Tensor:
    """Count pixels as true and false positives, false and true negatives.

    A constant map has no foreground because no pixel exceeds the mean.

    Args:
        prepared: Scores (H, W) from `prepare`.
        mask: Mask (H, W) of bool.

    Returns:
        Counts (TP, FP, FN, TN), (4,) of float64.

    References:
        Chefer et al.: Transformer Interpretability Beyond Attention Visualization. CVPR 2021, and
        its code, where the foreground is strictly above the mean.

    Example::

        >>> mask = torch.tensor([[True, True, False, False]])
        >>> confusion(torch.tensor([[1.0, 0.0, 0.1, 0.2]]), mask)
        tensor([1., 0., 1., 2.], dtype=torch.float64)
    """
    check_prepared(prepared, mask)
    levels = torch.zeros_like(mask, dtype=torch.int32) if prepared is None else quantize(prepared)
    return RankedPixels.of(levels, mask).confusion()


def pixel_accuracy(counts: Tensor) -> Tensor:
    """Return the fraction of correctly classified pixels, in 0..1.

    Args:
        counts: Counts (..., 4) from `confusion`.

    Example::

        >>> pixel_accuracy(torch.tensor([1.0, 0.0, 1.0, 2.0]))
        tensor(0.7500)
    """
    return (counts[..., 0] + counts[..., 3]) / counts.sum(-1)


def segmentation_miou(counts: Tensor) -> Tensor:
    """Return the mean of the IoU of the foreground and of the background, in 0..1.

    Args:
        counts: Counts (..., 4) from `confusion`.

    Example::

        >>> segmentation_miou(torch.tensor([1.0, 0.0, 1.0, 2.0]))
        tensor(0.5833)
    """
    hits, false_positives, false_negatives, rejected = counts.unbind(-1)
    wrong = false_positives + false_negatives
    return (hits / (hits + wrong) + rejected / (rejected + wrong)) / 2
