"""How well maps show where objects are, against their masks.

Order, for every measure: a map is min-max normalised at its own size, then resized bilinearly to
its mask. Figures are times 100. A constant map gets 0. A pair whose mask is empty, or leaves no
outside, is skipped and counted as skipped.

Source: Li et al. (arXiv 2304.05653), Sec. 4: explanation IoU ("mIoU" there) and mSC; Zhang et al.,
"Top-down Neural Attention by Excitation Backprop" (ECCV 2016): pointing game.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

#: Thresholds among which explanation IoU takes the best, one for all pairs.
THRESHOLDS = torch.arange(101, dtype=torch.float64) / 100


@dataclass(frozen=True)
class Localization:
    """Measures over pairs of a map and a mask.

    `explanation_iou` (mean IoU in percent at the one best `threshold`), `msc` (mean score inside
    minus outside, in percent; negative is opposite visualization), `pointing` (percent of maxima
    inside), the number of `pairs`, and of pairs `skipped` because their mask is empty or full.
    """

    explanation_iou: float
    threshold: float
    msc: float
    pointing: float
    pairs: int
    skipped: int


def localization(pairs: Iterable[tuple[Tensor, Tensor]]) -> Localization:
    """Measure maps against masks.

    Args:
        pairs: maps (h, w) of any size, each with its mask (H, W) of bool.

    Raises:
        ValueError: no pair with a mask, or one of another shape, or a map that is not finite.

    Example::

        >>> mask = torch.tensor([[True, False], [False, False]])
        >>> localization([(mask.float(), mask)])
        Localization(explanation_iou=100.0, threshold=0.01, msc=100.0, pointing=100.0, pairs=1, \
skipped=0)
    """
    curves, contrasts, hits = [], [], []
    skipped = 0
    for attribution, mask in pairs:
        _check_pair(attribution, mask)
        attribution, mask = attribution.detach().cpu(), mask.cpu()
        if not mask.any() or mask.all():
            skipped += 1
            continue
        prepared = prepare(attribution, mask)
        curves.append(iou_curve(prepared, mask))
        contrasts.append(score_contrast(prepared, mask))
        hits.append(pointing_game(prepared, mask))
    if not curves:
        raise ValueError(f"no pair to measure ({skipped} skipped for an empty or full mask)")
    mean = torch.stack(curves).mean(0)
    best = int(mean.argmax())
    return Localization(
        explanation_iou=100 * float(mean[best]),
        threshold=float(THRESHOLDS[best]),
        msc=100 * sum(contrasts) / len(contrasts),
        pointing=100 * sum(hits) / len(hits),
        pairs=len(curves),
        skipped=skipped,
    )


def prepare(attribution: Tensor, mask: Tensor) -> Tensor | None:
    """A map min-max normalised, then resized to its mask, (H, W) of float64; None if constant."""
    values = attribution.double()
    low, high = values.min(), values.max()
    if low == high:
        return None
    scaled = (values - low) / (high - low)
    if scaled.shape == mask.shape:
        return scaled
    size = (mask.shape[0], mask.shape[1])
    return F.interpolate(scaled[None, None], size, mode="bilinear", align_corners=False)[0, 0]


def iou_curve(prepared: Tensor | None, mask: Tensor) -> Tensor:
    """IoU of `prepared >= t` with the mask for each of `THRESHOLDS`, in 0..1."""
    if prepared is None:
        return torch.zeros(len(THRESHOLDS), dtype=torch.float64)
    inside = _counts_at_least(prepared[mask])
    everywhere = _counts_at_least(prepared)
    return inside / (everywhere + mask.sum() - inside)


def _counts_at_least(values: Tensor) -> Tensor:
    """How many values reach each of `THRESHOLDS`."""
    reached = torch.bucketize(values.flatten(), THRESHOLDS, right=True)
    histogram = torch.bincount(reached, minlength=len(THRESHOLDS) + 1)
    return histogram.flip(0).cumsum(0).flip(0)[1:].double()


def score_contrast(prepared: Tensor | None, mask: Tensor) -> float:
    """Mean score inside the mask minus outside, in -1..1."""
    if prepared is None:
        return 0.0
    return float(prepared[mask].mean() - prepared[~mask].mean())


def pointing_game(prepared: Tensor | None, mask: Tensor) -> float:
    """Share of the map's maxima that lie inside the mask, in 0..1."""
    if prepared is None:
        return 0.0
    return float(mask[prepared == prepared.max()].double().mean())


def _check_pair(attribution: Tensor, mask: Tensor) -> None:
    if attribution.ndim != 2 or mask.ndim != 2:
        raise ValueError(
            f"a map is (h, w) and a mask (H, W), not {tuple(attribution.shape)} and "
            f"{tuple(mask.shape)}; image-shaped attributions are summed over channels first"
        )
    if mask.dtype != torch.bool:
        raise ValueError(f"a mask is of bool, not {mask.dtype}")
    if not torch.isfinite(attribution).all():
        raise ValueError("a map holds NaN or infinity")
