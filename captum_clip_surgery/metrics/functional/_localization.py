"""Explanation IoU, score contrast (mSC) and the pointing game.

All take a map as `prepare` returns it and its mask. A constant map, for which `prepare` returns
None, gets 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from captum_clip_surgery._utils.tensors import double_device
from captum_clip_surgery.metrics.functional._maps import check_prepared, check_tolerance, quantize
from captum_clip_surgery.metrics.functional._ranked import THRESHOLDS, RankedPixels


def iou_curve(prepared: Tensor | None, mask: Tensor) -> Tensor:
    """Return the IoU of `prepared >= t` with the mask for each t of `THRESHOLDS`.

    Explanation IoU ("mIoU" in the paper) is the maximum of the mean curve over all pairs, so that
    one threshold applies to all of them.

    Args:
        prepared: Scores (H, W) from `prepare`.
        mask: Mask (H, W) of bool.

    Returns:
        IoUs (101,) of float64 in 0..1.

    References:
        Li et al.: A closer look at the explainability of Contrastive Language-Image Pre-training.
        arXiv 2304.05653, Sec. 4.

    Example::

        >>> mask = torch.tensor([[True, False]])
        >>> iou_curve(torch.tensor([[1.0, 0.5]]).double(), mask)[[0, 50, 51, 100]]
        tensor([0.5000, 0.5000, 1.0000, 1.0000], dtype=torch.float64)
    """
    check_prepared(prepared, mask)
    if prepared is None:
        return torch.zeros_like(THRESHOLDS, device=double_device(mask.device))
    return RankedPixels.of(quantize(prepared), mask).iou_curve()


def score_contrast(prepared: Tensor | None, mask: Tensor) -> float:
    """Return the mean score inside the mask minus the mean score outside, in -1..1.

    Its mean over pairs is mSC. Negative values are what the paper calls opposite visualization.

    Args:
        prepared: Scores (H, W) from `prepare`.
        mask: Mask (H, W) of bool.

    References:
        Li et al.: A closer look at the explainability of Contrastive Language-Image Pre-training.
        arXiv 2304.05653, Sec. 4.

    Example::

        >>> mask = torch.tensor([[True, False, False]])
        >>> score_contrast(torch.tensor([[0.0, 1.0, 0.5]]), mask)
        -0.75
    """
    check_prepared(prepared, mask)
    return 0.0 if prepared is None else RankedPixels.of(quantize(prepared), mask).contrast()


def pointing_game(prepared: Tensor | None, mask: Tensor, tolerance: float = 0) -> float:
    """Return the fraction of the map's maxima that are inside the mask, in 0..1.

    Args:
        prepared: Scores (H, W) from `prepare`.
        mask: Mask (H, W) of bool.
        tolerance: Distance in pixels (Euclidean, between centers) up to which a maximum outside
            the mask counts as inside; the paper uses 15.

    Raises:
        ValueError: If the tolerance is negative, NaN or infinite.

    References:
        Zhang et al.: Top-down Neural Attention by Excitation Backprop. ECCV 2016.

    Example::

        >>> mask = torch.tensor([[True, False, False]])
        >>> scores = torch.tensor([[0.0, 0.5, 1.0]])
        >>> pointing_game(scores, mask), pointing_game(scores, mask, tolerance=2)
        (0.0, 1.0)
    """
    check_tolerance(tolerance)
    check_prepared(prepared, mask)
    if prepared is None:
        return 0.0
    maxima = (prepared == prepared.max()).flatten().nonzero()[:, 0]
    return share_near(maxima, mask, tolerance)


def share_near(pixels: Tensor, mask: Tensor, tolerance: float) -> float:
    """Return the fraction of pixels that are at most `tolerance` from a mask, in 0..1.

    Args:
        pixels: Indices (K,) in the flattened mask.
        mask: Mask (H, W) of bool.
        tolerance: Distance in pixels.
    """
    device = double_device(pixels.device)
    pixels, mask = pixels.to(device), mask.to(device)
    near = mask.flatten()[pixels]
    others = pixels[~near]
    if tolerance and len(others):
        rows, columns = others // mask.shape[1], others % mask.shape[1]
        near[~near] = _is_near(mask, rows, columns, tolerance)
    return float(near.double().mean())


def _is_near(mask: Tensor, rows: Tensor, columns: Tensor, tolerance: float) -> Tensor:
    """Return a mask (K,) of the pixels that are at most `tolerance` from a mask.

    Only a window around the pixels is searched, which is far cheaper than dilating the whole mask,
    and exact because squared distances are integers.
    """
    reach = min(math.floor(tolerance), max(mask.shape))
    top, left = max(int(rows.min()) - reach, 0), max(int(columns.min()) - reach, 0)
    window = mask[top : int(rows.max()) + reach + 1, left : int(columns.max()) + reach + 1]
    rows, columns, height = rows - top, columns - left, len(window)
    column = torch.arange(window.shape[1], device=mask.device, dtype=torch.float64)
    before = torch.where(window, column, -math.inf).cummax(1).values
    after = torch.where(window, column, math.inf).flip(1).cummin(1).values.flip(1)
    # Columns from each pixel to the nearest mask pixel of its row, as the window.
    gaps = torch.minimum(column - before, after - column)
    near = torch.zeros_like(rows, dtype=torch.bool)
    for offset in range(-min(reach, height - 1), min(reach, height - 1) + 1):
        others = rows + offset
        inside = (others >= 0) & (others < height)
        squared = gaps[others.clamp(0, height - 1), columns] ** 2 + offset**2
        near |= inside & (squared <= tolerance**2)
    return near
