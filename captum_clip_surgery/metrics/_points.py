"""IoU of annotated points over many images and classes.

For a class, its positive points inside the mask are true positives, those outside false negatives,
and its negative points inside false positives; IoU is TP / (TP + FP + FN). Only pairs of an image
and a class with a positive point count, that is, the classes that the image shows.

References:
    p-mIoU on Open Images V7 in Bousselham et al.: Grounding Everything. CVPR 2024, and LeGrad. ICCV
    2025, where maps above 0.5 are the masks. The points are described in Benenson and Ferrari: From
    colouring-in to pointillism. arXiv 2210.14142. No code has been published, so it is open whether
    the papers sum the points of a class over images, as mIoU does, or average over pairs;
    `PointMeasures` returns both.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_clip_surgery.metrics.functional._points import THRESHOLD, point_confusion, point_iou


@dataclass(frozen=True)
class PointResult:
    """IoU of points.

    Args:
        p_miou: IoU of each class over all its images, mean over classes, in percent.
        pair_iou: IoU of each image and class, mean over these pairs, in percent.
        n_classes: Number of classes.
        n_pairs: Number of pairs of an image and a class.
        n_points: Number of points.
        skipped: Number of further pairs, skipped because they have no positive point.
    """

    p_miou: float
    pair_iou: float
    n_classes: int
    n_pairs: int
    n_points: int
    skipped: int


class PointMeasures:
    """IoU of points, accumulated over pairs of an image and a class.

    A pair without a positive point is skipped and counted as skipped.

    Args:
        threshold: Value above which a map is foreground.

    Example::

        >>> measures = PointMeasures()
        >>> mask = torch.tensor([[True, False]])
        >>> measures.update("cat", mask, [0.2, 0.8], [0.5, 0.5], [True, False])
        >>> measures.update("cat", ~mask, [0.2], [0.5], [True])
        >>> result = measures.compute()
        >>> result.p_miou, result.pair_iou, result.n_pairs
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
        """Add the points of one class in one image.

        Args:
            label: The class.
            prediction: Mask (H, W) of bool, or map (H, W).
            x: Positions from the left, in 0..1 of the width.
            y: Positions from the top, in 0..1 of the height.
            positive: Whether the class is at the point.

        Raises:
            TypeError: If `prediction` is neither of bool nor floating-point.
            ValueError: If `prediction` has another shape or is not finite, coordinates are outside
                0..1, or the sequences differ in length.
        """
        self.add(label, point_confusion(prediction, x, y, positive, self.threshold))

    def add(self, label: Hashable, counts: Tensor) -> None:
        """Add the counts (4,) of one class in one image, from `point_confusion`."""
        if not counts[0] + counts[2]:
            self.skipped += 1
            return
        self._counts[label] = self._counts.get(label, 0) + counts
        self._ious.append(float(point_iou(counts)))

    def compute(self) -> PointResult:
        """Return the measures of all pairs so far.

        Raises:
            ValueError: If no pair has a positive point.
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
