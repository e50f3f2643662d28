"""Scores of many classes at an image's size, some classes at a time, and the best of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

#: Of enlarged scores that are held at once.
CHUNK_BYTES = 64 << 20
#: Of the guided filter: the image's side in windows, and how strong an edge must be to stay.
GUIDED_PART, GUIDED_EPSILON = 16, 1e-4
GUIDED_STEP = 2  # its coefficients are found on every second pixel (He and Sun, 2015)
GUIDED_BYTES = 8 << 20  # like CHUNK_BYTES: the filter holds many times what it is given

#: Scores (k, H, W) of some classes, with the number of the first.
Part = tuple[int, Tensor]


def enlarged(
    grid: Tensor, size: tuple[int, int], seen: Sequence[float], limit: int | None = None
) -> Iterator[Part]:
    """Scores (K, h, w) enlarged bilinearly.

    Args:
        grid: the scores.
        size: height and width of the image.
        seen: of these the pixels that the grid covers; beyond them its edge goes on.
        limit: bytes of one part; None is `CHUNK_BYTES`.
    """
    count = max(1, (limit or CHUNK_BYTES) // (size[0] * size[1] * grid.element_size()))
    covered = [max(1, round(side)) for side in seen]
    margin = (0, size[1] - covered[1], 0, size[0] - covered[0])
    for start in range(0, len(grid), count):
        part = grid[None, start : start + count]
        scores = F.interpolate(part, covered, mode="bilinear", align_corners=False)
        yield start, (F.pad(scores, margin, mode="replicate") if any(margin) else scores)[0]


def best_of(parts: Iterable[Part], size: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
    """The best class of each pixel, (H, W), and its score; of equal ones the first."""
    best = torch.full(size, -torch.inf, dtype=like.dtype, device=like.device)
    labels = torch.zeros(size, dtype=torch.long, device=like.device)
    for start, scores in parts:
        highest, at = scores.max(0)
        labels = torch.where(highest > best, at + start, labels)
        best = torch.maximum(best, highest)
    return labels, best


def probability_of(best: Tensor, parts: Iterable[Part], scale: float) -> Tensor:
    """Of each pixel's score `best`, (H, W), its softmax among `scale` times the scores in parts."""
    total = torch.full_like(best, -torch.inf, dtype=torch.float32)
    for _, scores in parts:
        total = torch.logaddexp(total, (scale * scores.float()).logsumexp(0))
    return (scale * best.float() - total).exp()


def guided(colours: Tensor, parts: Iterable[Part], size: tuple[int, int]) -> Iterator[Part]:
    """Scores that follow the edges of an image.

    Args:
        colours: the image (3, h, w) in 0..1, of any size.
        parts: the scores.
        size: their height and width.

    Raises:
        ImportError: without kornia.

    Source: He, Sun, Tang, "Guided Image Filtering" (ECCV 2010), as kornia carries it.
    """
    try:
        from kornia.filters import guided_blur
    except ImportError as error:
        raise ImportError(
            "refine needs kornia; install the extra: pip install 'captum_clip_surgery[refine]'"
        ) from error
    window = 2 * (min(size) // GUIDED_PART // 2) + 1
    guide = F.interpolate(colours[None].float(), size, mode="bilinear", align_corners=False)
    for start, scores in parts:
        if window < 3:
            yield start, scores  # too small an image to have edges
            continue
        filtered = guided_blur(
            guide, scores[None].float(), window, GUIDED_EPSILON, subsample=GUIDED_STEP
        )
        yield start, filtered[0].to(scores.dtype)
