"""Where a map is high, against where the object is: explanation IoU, mSC and the pointing game.

All take a map as `prepare` gives it, and its mask; a constant map, None there, gets 0.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_clip_surgery.metrics.maps import RESOLUTION, levels

#: Thresholds among which explanation IoU takes the best, one for all pairs.
THRESHOLDS = torch.arange(101, dtype=torch.float64) / 100


def iou_curve(prepared: Tensor | None, mask: Tensor) -> Tensor:
    """IoU of `prepared >= t` with the mask for each of `THRESHOLDS`: (101,) in 0..1.

    Explanation IoU ("mIoU" in the paper) is the highest point of the mean curve over all pairs:
    one threshold for all.

    Source: Li et al., "A Closer Look at the Explainability of Contrastive Language-Image
    Pre-training" (arXiv 2304.05653), Sec. 4.

    Example::

        >>> mask = torch.tensor([[True, False]])
        >>> iou_curve(torch.tensor([[1.0, 0.5]]).double(), mask)[[0, 50, 51, 100]]
        tensor([0.5000, 0.5000, 1.0000, 1.0000], dtype=torch.float64)
    """
    if prepared is None:
        return torch.zeros_like(THRESHOLDS, device=mask.device)
    # The highest threshold that each pixel reaches, without a search among them.
    highest = levels(prepared).flatten() // (RESOLUTION // (len(THRESHOLDS) - 1))
    inside, everywhere = (
        torch.bincount(highest, weights, len(THRESHOLDS)).flip(0).cumsum(0).flip(0)
        for weights in (mask.flatten().double(), torch.ones_like(highest, dtype=torch.float64))
    )
    return inside / (everywhere + mask.sum() - inside)


def score_contrast(prepared: Tensor | None, mask: Tensor) -> float:
    """Mean score inside the mask minus mean score outside, in -1..1; its mean over pairs is mSC.

    Below 0 is what the paper calls opposite visualization.

    Source: Li et al. (arXiv 2304.05653), Sec. 4.

    Example::

        >>> mask = torch.tensor([[True, False, False]])
        >>> score_contrast(torch.tensor([[0.0, 1.0, 0.5]]), mask)
        -0.75
    """
    if prepared is None:
        return 0.0
    inside, area = (prepared * mask).sum(), mask.sum()
    return float(inside / area - (prepared.sum() - inside) / (mask.numel() - area))


def pointing_game(prepared: Tensor | None, mask: Tensor, tolerance: float = 0) -> float:
    """Share of the map's maxima that lie inside the mask, in 0..1.

    Args:
        prepared: (H, W), see `prepare`.
        mask: (H, W) of bool.
        tolerance: a maximum at most so many pixels (Euclidean, between centres) from the mask
            counts as inside; the paper takes 15.

    Raises:
        ValueError: a tolerance that is negative, NaN or infinite.

    Source: Zhang et al., "Top-down Neural Attention by Excitation Backprop" (ECCV 2016).

    Example::

        >>> mask = torch.tensor([[True, False, False]])
        >>> scores = torch.tensor([[0.0, 0.5, 1.0]])
        >>> pointing_game(scores, mask), pointing_game(scores, mask, tolerance=2)
        (0.0, 1.0)
    """
    check_tolerance(tolerance)
    if prepared is None:
        return 0.0
    near = dilate(mask, tolerance) if tolerance else mask
    return float(near[prepared == prepared.max()].double().mean())


def check_tolerance(tolerance: float) -> None:
    """Raises ValueError for a tolerance that is no distance."""
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance {tolerance!r} must be a finite number of pixels, 0 or more")


def dilate(mask: Tensor, distance: float) -> Tensor:
    """The pixels at most so far from a mask: row by row of the disk, each a run of pixels."""
    height, width = mask.shape
    near = torch.zeros_like(mask)
    furthest = min(math.floor(distance), height - 1)
    for up in range(-furthest, furthest + 1):
        # Not by a root, which may fall short of a whole number.
        reach = min(math.isqrt(math.floor(distance**2 - up**2)), width - 1)
        wide = F.max_pool1d(mask.double(), 2 * reach + 1, stride=1, padding=reach) > 0
        near[max(0, up) : height + min(0, up)] |= wide[max(0, -up) : height - max(0, up)]
    return near
