"""Scores at an image's size, some classes at a time so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_clip_surgery.tasks._images import Size
from captum_clip_surgery.tasks._sliding import Box

#: Bytes of upsampled scores that are held at once.
CHUNK_BYTES = 64 << 20

#: The index of the first row, and upsampled scores (k, H, W) of rows from there.
Chunk = tuple[int, Tensor]


@dataclass(frozen=True)
class ImageScores:
    """Scores of one image, as small as the model gave them.

    Attributes:
        grids: Scores (R, h, w) of each window, or of the whole image.
        boxes: The pixels of the model's image that each window shows. Empty if the image was shown
            whole and squashed: its grid is then upsampled to the image's size in one step.
        shown: (height, width) of the image that the model saw.
        covered: (height, width) of its part that a grid of the whole image covers.
    """

    grids: tuple[Tensor, ...]
    boxes: tuple[Box, ...]
    shown: Size
    covered: Size

    @property
    def num_rows(self) -> int:
        """The number of rows R: texts or classes."""
        return len(self.grids[0])

    def select(self, rows: Tensor) -> ImageScores:
        """Return the scores of some rows."""
        return replace(self, grids=tuple(grid[rows] for grid in self.grids))


def upsample(
    scores: ImageScores,
    size: Size,
    dtype: torch.dtype = torch.float32,
    chunk_bytes: int | None = None,
) -> Iterator[Chunk]:
    """Upsample scores bilinearly, some rows at a time.

    Windows are upsampled to their pixels and averaged where they overlap, and the result is
    resized, as published evaluations of dense methods do.

    Args:
        scores: The scores of an image.
        size: (height, width) of the result.
        dtype: Dtype of the result; float16 halves its memory.
        chunk_bytes: Bytes of one chunk; None means `CHUNK_BYTES`.

    Yields:
        The index of the first row, and the upsampled scores (k, H, W) of k rows.
    """
    pixels = max(size[0] * size[1], scores.shown[0] * scores.shown[1])
    step = max(1, (chunk_bytes or CHUNK_BYTES) // (pixels * dtype.itemsize))
    for start in range(0, scores.num_rows, step):
        grids = [grid[start : start + step].to(dtype) for grid in scores.grids]
        if scores.boxes:
            yield start, resize(_average(grids, scores.boxes, scores.shown), size)
        else:
            yield start, _extend(grids[0], size, scores)


def resize(values: Tensor, size: Size) -> Tensor:
    """Resize (k, h, w) bilinearly."""
    if values.shape[-2:] == size:
        return values
    return F.interpolate(values[None], size, mode="bilinear", align_corners=False)[0]


def _average(grids: Sequence[Tensor], boxes: Sequence[Box], shown: Size) -> Tensor:
    """Return the mean (k, *shown) of windows' upsampled scores where they overlap."""
    total = grids[0].new_zeros(len(grids[0]), *shown)
    count = grids[0].new_zeros(shown)
    for grid, (rows, columns) in zip(grids, boxes, strict=True):
        side = (rows.stop - rows.start, columns.stop - columns.start)
        total[:, rows, columns] += resize(grid, side)
        count[rows, columns] += 1
    return total / count


def _extend(grid: Tensor, size: Size, scores: ImageScores) -> Tensor:
    """Resize a grid to the part of an image that it covers; its edge continues beyond."""
    sides = zip(size, scores.covered, scores.shown, strict=True)
    height, width = (max(1, round(side * covered / shown)) for side, covered, shown in sides)
    margin = (0, size[1] - width, 0, size[0] - height)
    values = resize(grid, (height, width))
    return F.pad(values[None], margin, mode="replicate")[0] if any(margin) else values


def streaming_argmax(
    chunks: Iterable[Chunk], scale: float | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the best row of every pixel without holding all rows at once.

    Args:
        chunks: Scores (k, H, W) of rows, in order.
        scale: Factor of the scores in a softmax over all rows; None skips it.

    Returns:
        The best row (H, W), the first of equal ones; its score; and, with `scale`, the logarithm of
        the softmax's denominator.
    """
    rows = best = log_total = None
    for start, scores in chunks:
        highest, places = scores.max(0)
        if rows is None or best is None:
            rows, best = places + start, highest
        else:
            rows = torch.where(highest > best, places + start, rows)
            best = torch.maximum(best, highest)
        if scale is not None:
            chunk_total = (scale * scores.float()).logsumexp(0)
            log_total = (
                chunk_total if log_total is None else torch.logaddexp(log_total, chunk_total)
            )
    assert rows is not None
    assert best is not None
    return rows, best, log_total
