"""Scores of a whole picture from windows that slide over its pixels, as dense protocols have it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor

from captum_clip_surgery.evaluation.protocol import View
from captum_clip_surgery.tasks.windows import starts

#: An image (1, 3, h, w) to each method's scores (1, T, rows, columns).
Score = Callable[[Tensor], Mapping[str, Tensor]]


def picture_scores(
    score: Score, image: Tensor, view: View, patch: Sequence[int]
) -> dict[str, Tensor]:
    """Each method's scores of an image (3, H, W).

    They are (T, H, W): each window's enlarged to its pixels, and averaged where windows overlap. A
    window shows the patches that fit in it whole, as a convolution does that leaves out the rest.
    """
    height, width = image.shape[-2:]
    totals: dict[str, Tensor] = {}
    seen = image.new_zeros(height, width)
    for down, across in _windows(height, width, view):
        part = image[:, down, across]
        fitting = [side // step * step for side, step in zip(part.shape[1:], patch, strict=True)]
        seen[down, across] += 1
        for name, scores in score(part[None, :, : fitting[0], : fitting[1]]).items():
            large = F.interpolate(scores, part.shape[-2:], mode="bilinear", align_corners=False)[0]
            if name not in totals:
                totals[name] = large.new_zeros(len(large), height, width)
            totals[name][:, down, across] += large
    return {name: total / seen for name, total in totals.items()}


def _windows(height: int, width: int, view: View) -> Iterator[tuple[slice, slice]]:
    sides = [min(view.window or side, side) for side in (height, width)]
    stride = view.stride or 1
    for top in starts(height, sides[0], stride):
        for left in starts(width, sides[1], stride):
            yield slice(top, top + sides[0]), slice(left, left + sides[1])
