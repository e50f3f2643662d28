"""A map as a classifier of pixels: whether those of the object rank before the others.

No threshold is chosen and no scale matters. Ties, and so a constant map, are worth what guessing
is: 0.5 of AUROC, the object's share of the pixels of average precision.
"""

from __future__ import annotations

import torch
from torch import Tensor

from captum_clip_surgery.metrics.maps import levels


def pixel_auroc(prepared: Tensor | None, mask: Tensor) -> float:
    """Chance that a pixel inside the mask scores above one outside, ties half: in 0..1.

    Args:
        prepared: (H, W), see `prepare`.
        mask: (H, W) of bool, with an inside and an outside.

    Source: Fawcett, "An Introduction to ROC Analysis" (Pattern Recognition Letters 2006).

    Example::

        >>> pixel_auroc(torch.tensor([[1.0, 0.5, 0.5]]), torch.tensor([[True, True, False]]))
        0.75
    """
    return ranking(prepared, mask)[0]


def pixel_average_precision(prepared: Tensor | None, mask: Tensor) -> float:
    """Mean precision over the pixels of the mask, at each one's score: in 0..1.

    The sum over distinct scores of the gain in recall times the precision there, without
    interpolation, as scikit-learn has it.

    Args:
        prepared: (H, W), see `prepare`.
        mask: (H, W) of bool, with an inside and an outside.

    Source: Chefer et al., "Transformer Interpretability Beyond Attention Visualization" (CVPR
    2021). Their code ranks foreground and background scores in one list; this ranks the
    foreground's, as the text has it.

    Example::

        >>> mask = torch.tensor([[False, True, True]])
        >>> round(pixel_average_precision(torch.tensor([[1.0, 0.5, 0.5]]), mask), 4)
        0.6667
    """
    return ranking(prepared, mask)[1]


def ranking(prepared: Tensor | None, mask: Tensor) -> tuple[float, float]:
    """AUROC and average precision, from one sort."""
    scores = torch.zeros_like(mask, dtype=torch.float64) if prepared is None else prepared
    hits, misses = _hits_and_misses(scores, mask)
    gained = hits.diff(prepend=hits.new_zeros(1)) / hits[-1]
    precision = hits / (hits + misses)
    # The trapezoid under a run of ties counts them half.
    area = torch.trapezoid(_from_origin(hits), _from_origin(misses)) / (hits[-1] * misses[-1])
    return float(area), float(gained @ precision)


def _hits_and_misses(scores: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels inside and outside the mask that reach each distinct score, highest first."""
    # Score and mask in one whole number: sorting those takes a quarter of the time of floats. The
    # sign puts the highest first, for sorting downwards takes twice the time.
    keys = levels(scores) * -2 + mask
    ordered = keys.flatten().sort().values
    level, inside = ordered >> 1, ordered & 1
    last_of_level = torch.ones_like(level, dtype=torch.bool)
    last_of_level[:-1] = level[1:] != level[:-1]
    reached = last_of_level.nonzero().flatten()
    hits = inside.cumsum(0)[reached]
    return hits.double(), (reached + 1 - hits).double()


def _from_origin(values: Tensor) -> Tensor:
    return torch.cat([values.new_zeros(1), values])
