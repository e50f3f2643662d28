"""Masks against places that were judged: the IoU of points, which needs no mask of the truth.

For a class, of its positive points those inside the mask are hits, those outside misses, and its
negative points inside are false alarms; IoU is hits / (hits + misses + false alarms). Only pairs of
an image and a class with a positive point count: the classes that the image shows.

Source: p-mIoU on Open Images V7 in Bousselham et al., "Grounding Everything" (CVPR 2024) and
"LeGrad" (ICCV 2025), where maps above 0.5 are the masks; the points are of Benenson and Ferrari,
"From colouring-in to pointillism" (arXiv 2210.14142). No code of it is published. Whether theirs
sums the points of a class over images, as mIoU does, or is a mean over pairs, is thus not settled:
`PointMeasures` has both.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: Above which a map is the mask: the papers'.
THRESHOLD = 0.5


def point_confusion(
    prediction: Tensor,
    x: Sequence[float],
    y: Sequence[float],
    positive: Sequence[bool],
    threshold: float = THRESHOLD,
) -> Tensor:
    """Points (true positive, false positive, false negative, true negative): (4,) of float64.

    A point is in the pixel that holds it; 1 is the last pixel's far side.

    Args:
        prediction: (H, W), a mask of bool, or a map, of which what is above `threshold` is.
        x, y: of the points, in 0..1 of the sides, from the left and the top.
        positive: whether the class is there.
        threshold: of maps.

    Raises:
        TypeError, ValueError: a prediction that is no mask and no finite map, coordinates outside
            0..1, or columns of different lengths.

    Example::

        >>> mask = torch.tensor([[True, False], [False, False]])
        >>> point_confusion(mask, [0.1, 0.9, 0.4], [0.1, 0.9, 0.4], [True, True, False])
        tensor([1., 1., 1., 0.], dtype=torch.float64)
    """
    mask = _mask(prediction, threshold)
    if not len(x) == len(y) == len(positive):
        raise ValueError(f"{len(x)} x, {len(y)} y and {len(positive)} answers, expected as many")
    rows, columns = _pixels(y, mask.shape[0]), _pixels(x, mask.shape[1])
    inside = mask.cpu()[rows, columns]
    there = torch.as_tensor(positive, dtype=torch.bool)
    counts = [inside & there, inside & ~there, ~inside & there, ~inside & ~there]
    return torch.stack([part.sum() for part in counts]).double()


def point_iou(counts: Tensor) -> Tensor:
    """IoU of points, in 0..1: (...) of confusions (..., 4) that have a positive point.

    Example::

        >>> point_iou(torch.tensor([1.0, 1.0, 1.0, 0.0]))
        tensor(0.3333)
    """
    hits, false_positives, false_negatives, _ = counts.unbind(-1)
    return hits / (hits + false_positives + false_negatives)


@dataclass(frozen=True)
class PointResult:
    """`p_miou` (IoU of each class over all its images, their mean) and `pair_iou` (mean over pairs
    of an image and a class), in percent; of how many `classes`, `pairs` and `points`, and how many
    pairs were `skipped` because they have no positive point."""

    p_miou: float
    pair_iou: float
    n_classes: int
    n_pairs: int
    n_points: int
    skipped: int


class PointMeasures:
    """IoU of points, accumulated over pairs of an image and a class.

    A pair without a positive point is skipped, and counted as skipped.

    Args:
        threshold: above which a map is the mask.

    Example::

        >>> measures = PointMeasures()
        >>> mask = torch.tensor([[True, False]])
        >>> measures.update("cat", mask, [0.2, 0.8], [0.5, 0.5], [True, False])
        >>> measures.update("cat", ~mask, [0.2], [0.5], [True])
        >>> found = measures.compute()
        >>> found.p_miou, found.pair_iou, found.n_pairs
        (50.0, 50.0, 2)
    """

    def __init__(self, threshold: float = THRESHOLD) -> None:
        self.threshold = threshold
        self.skipped = 0
        self._counts: dict[Hashable, Tensor] = {}  # by class
        self._ious: list[float] = []

    def update(
        self,
        label: Hashable,
        prediction: Tensor,
        x: Sequence[float],
        y: Sequence[float],
        positive: Sequence[bool],
    ) -> None:
        """Add the points of one class in one image; arguments as of `point_confusion`."""
        self.add(label, point_confusion(prediction, x, y, positive, self.threshold))

    def add(self, label: Hashable, counts: Tensor) -> None:
        """Add the confusion (4,) of one class in one image."""
        if not counts[0] + counts[2]:
            self.skipped += 1
            return
        self._counts[label] = self._counts.get(label, 0) + counts
        self._ious.append(float(point_iou(counts)))

    def compute(self) -> PointResult:
        """The measures of all pairs so far.

        Raises:
            ValueError: no pair with a positive point.
        """
        if not self._ious:
            raise ValueError("no image has a positive point of a class; update with one first")
        counts = torch.stack(list(self._counts.values()))
        return PointResult(
            p_miou=100 * float(point_iou(counts).mean()),
            pair_iou=100 * sum(self._ious) / len(self._ious),
            n_classes=len(counts),
            n_pairs=len(self._ious),
            n_points=int(counts.sum()),
            skipped=self.skipped,
        )


def _mask(prediction: Tensor, threshold: float) -> Tensor:
    if prediction.ndim != 2 or not prediction.numel():
        raise ValueError(f"prediction has shape {tuple(prediction.shape)}, expected (H, W)")
    if prediction.dtype == torch.bool:
        return prediction
    if not prediction.is_floating_point():
        raise TypeError(f"prediction is of {prediction.dtype}, expected bool or a float")
    if not prediction.isfinite().all():
        raise ValueError("prediction has values that are not finite")
    return prediction > threshold


def _pixels(positions: Sequence[float], size: int) -> Tensor:
    places = torch.as_tensor(positions, dtype=torch.float64)
    if not ((places >= 0) & (places <= 1)).all():
        raise ValueError("points have coordinates outside 0..1")
    return (places * size).long().clamp(max=size - 1)
