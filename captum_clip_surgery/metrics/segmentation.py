"""A map as a segmentation: foreground is what lies above the map's own mean.

The ImageNet-Segmentation protocol. Pixels are counted over all pairs together, so figures follow
from sums of `confusion`; the protocol's third figure, average precision, is in `ranking`.

Source: Chefer et al., "Transformer Interpretability Beyond Attention Visualization" (CVPR 2021),
and their code: strictly above the mean.
"""

from __future__ import annotations

import torch
from torch import Tensor


def confusion(prepared: Tensor | None, mask: Tensor) -> Tensor:
    """Pixels (true positive, false positive, false negative, true negative): (4,) of float64.

    In a constant map nothing lies above the mean: all is background.

    Args:
        prepared: (H, W), see `prepare`.
        mask: (H, W) of bool.

    Example::

        >>> mask = torch.tensor([[True, True, False, False]])
        >>> confusion(torch.tensor([[1.0, 0.0, 0.1, 0.2]]), mask)
        tensor([1., 0., 1., 2.], dtype=torch.float64)
    """
    chosen = torch.zeros_like(mask) if prepared is None else prepared > prepared.mean()
    hits, picked, inside = (chosen & mask).sum(), chosen.sum(), mask.sum()
    counts = [hits, picked - hits, inside - hits, mask.numel() - picked - inside + hits]
    return torch.stack(counts).double()


def pixel_accuracy(counts: Tensor) -> Tensor:
    """Share of pixels on the right side, in 0..1: (...) of confusions (..., 4).

    Example::

        >>> pixel_accuracy(torch.tensor([1.0, 0.0, 1.0, 2.0]))
        tensor(0.7500)
    """
    right = counts[..., 0] + counts[..., 3]
    return right / counts.sum(-1)


def segmentation_miou(counts: Tensor) -> Tensor:
    """Mean of the IoU of foreground and of background, in 0..1: (...) of confusions (..., 4).

    Example::

        >>> segmentation_miou(torch.tensor([1.0, 0.0, 1.0, 2.0]))
        tensor(0.5833)
    """
    hits, false_positives, false_negatives, rejected = counts.unbind(-1)
    wrong = false_positives + false_negatives
    return (hits / (hits + wrong) + rejected / (rejected + wrong)) / 2
