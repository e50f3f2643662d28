"""The pixels of a map in the order of their scores: one sort, from which many measures follow.

Written in torch because scikit-learn and torchmetrics sort for every measure, the latter in
float32. Tests compare with both.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from captum_clip_surgery._utils.tensors import double_device
from captum_clip_surgery.metrics.functional._maps import RESOLUTION

#: Thresholds of explanation IoU: 0, 0.01, ..., 1.
THRESHOLDS = torch.arange(101, dtype=torch.float64, device="cpu") / 100


@dataclass(frozen=True)
class RankedPixels:
    """The pixels of a map and its mask, by ascending score.

    Args:
        levels: Scores (P,) of int32, as `quantize` returns them.
        places: Index of each pixel in the flattened mask, (P,).
        ranks: Positions among `levels` of the pixels inside the mask, (M,).
    """

    levels: Tensor
    places: Tensor
    ranks: Tensor

    @classmethod
    def of(cls, levels: Tensor, mask: Tensor, valid: Tensor | None = None) -> Self:
        """Sort pixels.

        Args:
            levels: Scores (H, W) of int32.
            mask: Mask (H, W) of bool.
            valid: Pixels (H, W) of bool that count; None means all.
        """
        device = double_device(levels.device)
        levels, mask = levels.to(device), mask.to(device)
        if valid is None:
            ordered, places = levels.flatten().sort()
        else:  # ignored pixels come first and are cut off
            ordered, places = ((levels + 1) * valid.to(device)).flatten().sort()
            ignored = valid.numel() - int(valid.sum())
            ordered, places = ordered[ignored:] - 1, places[ignored:]
        return cls(ordered, places, mask.flatten().index_select(0, places).nonzero()[:, 0])

    @cached_property
    def inside(self) -> Tensor:
        """Scores of the pixels inside the mask, (M,)."""
        return self.levels[self.ranks]

    @property
    def maxima(self) -> Tensor:
        """Indices of the pixels with the highest score, in the flattened mask."""
        return self.places[torch.searchsorted(self.levels, self.levels[-1:]) :]

    def iou_curve(self) -> Tensor:
        """Return `iou_curve`, (101,)."""
        steps = torch.arange(len(THRESHOLDS), device="cpu").to(self.levels)
        below = torch.searchsorted(self.levels, steps * (RESOLUTION // (len(THRESHOLDS) - 1)))
        hits = len(self.ranks) - torch.searchsorted(self.ranks, below)
        return hits.double() / (len(self.levels) - below + len(self.ranks) - hits)

    def contrast(self) -> float:
        """Return `score_contrast`."""
        inside, total = self.inside.double().sum(), self.levels.double().sum()
        area, pixels = len(self.ranks), len(self.levels)
        return float(inside / area - (total - inside) / (pixels - area)) / RESOLUTION

    def confusion(self) -> Tensor:
        """Return `confusion`, (4,)."""
        mean = self.levels.double().mean().floor().int()
        background = torch.searchsorted(self.levels, mean[None], right=True)
        hits = len(self.ranks) - torch.searchsorted(self.ranks, background)
        predicted = len(self.levels) - background
        missed = len(self.ranks) - hits
        return torch.cat([hits, predicted - hits, missed, background - missed]).double()

    def auroc_and_ap(self) -> tuple[float, float]:
        """Return `pixel_auroc` and `pixel_average_precision`."""
        below, inside_below = self._places_of_scores(right=False)
        reached, inside_reached = self._places_of_scores(right=True)
        # Outside pixels with a lower score count once, with the same score half.
        wins = (below - inside_below + reached - inside_reached).sum().double() / 2
        outside = len(self.levels) - len(self.ranks)
        hits, predicted = len(self.ranks) - inside_below.double(), len(self.levels) - below
        return float(wins / outside) / max(len(self.ranks), 1), float((hits / predicted).mean())

    def _places_of_scores(self, right: bool) -> tuple[Tensor, Tensor]:
        """Return how many pixels, and how many inside, are below the score of each pixel inside.

        Args:
            right: Whether pixels of the same score are counted too.
        """
        # Few scores are tied with others; only these are searched for.
        beside = (self.ranks + (1 if right else -1)).clamp(0, len(self.levels) - 1)
        tied = self.levels[beside] == self.inside
        pixels = self.ranks + int(right)
        inside = torch.arange(len(self.ranks), device=self.ranks.device) + int(right)
        pixels[tied] = torch.searchsorted(self.levels, self.inside[tied], right=right)
        inside[tied] = torch.searchsorted(self.ranks, pixels[tied])
        return pixels, inside
