"""The measures as torchmetrics classes, for batches and several processes.

Localization metrics take `update(maps, masks)` with raw, signed maps (N, h, w) and masks (N, H, W)
of bool, and return percent like `PairMeasures`; NaN before the first pair. Pairs whose mask is
empty or full are skipped. States are sums on the metric's device; pairs are measured on the CPU.
Derive from `PairMetric` for a measure of your own.

The module needs torchmetrics: `pip install 'captum_clip_surgery[metrics]'`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.metrics._faithfulness import insertion_deletion
from captum_clip_surgery.metrics._pair_metric import PairMetric, PercentMean
from captum_clip_surgery.metrics.functional import (
    energy_pointing_game,
    grid_pointing_game,
    image_specificity,
    iou_curve,
    pixel_auroc,
    pixel_average_precision,
    pointing_game,
    prepare,
    score_contrast,
    text_specificity,
)
from captum_clip_surgery.metrics.functional._maps import check_maps, check_tolerance
from captum_clip_surgery.metrics.functional._ranked import THRESHOLDS
from captum_clip_surgery.metrics.functional._segmentation import (
    confusion,
    pixel_accuracy,
    segmentation_miou,
)
from captum_clip_surgery.models._validation import Target

__all__ = [
    "EnergyPointingGame",
    "ExplanationIoU",
    "GridPointingGame",
    "ImageSpecificity",
    "InsertionDeletion",
    "PairMetric",
    "PixelAUROC",
    "PixelAveragePrecision",
    "PointingGame",
    "ScoreContrast",
    "SegmentationProtocol",
    "TextSpecificity",
]


class ExplanationIoU(PairMetric):
    """Mean IoU of the thresholded map with the mask, at the threshold that is best for all pairs.

    Example::

        >>> metric, masks = ExplanationIoU(), torch.tensor([[[True, False]]])
        >>> metric.update(torch.tensor([[[0.4, -2.0]]]), masks)
        >>> metric.compute()
        tensor(100., dtype=torch.float64)
    """

    width = len(THRESHOLDS)

    def measure(self, attribution: Tensor, mask: Tensor) -> Tensor:
        """Return the IoU at each threshold, (101,)."""
        return iou_curve(prepare(attribution, mask), mask)

    def compute(self) -> Tensor:
        """Return the maximum of the mean curve in percent."""
        return self.mean().max()


class ScoreContrast(PairMetric):
    """mSC: the mean score inside the mask minus the mean score outside, in -100..100.

    Example::

        >>> metric, masks = ScoreContrast(), torch.tensor([[[True, False]]])
        >>> metric(torch.tensor([[[0.4, 2.0]]]), masks)
        tensor(-100., dtype=torch.float64)
    """

    def measure(self, attribution: Tensor, mask: Tensor) -> float:
        """Return the contrast of one pair."""
        return score_contrast(prepare(attribution, mask), mask)


class PointingGame(PairMetric):
    """Percentage of the maps' maxima inside the mask, or at most `tolerance` pixels away.

    Args:
        tolerance: Tolerance in pixels of the mask.
        **options: Options of `torchmetrics.Metric`, such as `sync_on_compute`.

    Raises:
        ValueError: If the tolerance is negative, NaN or infinite.

    Example::

        >>> metric, masks = PointingGame(tolerance=1), torch.tensor([[[True, False]]])
        >>> metric(torch.tensor([[[0.4, 2.0]]]), masks)
        tensor(100., dtype=torch.float64)
    """

    def __init__(self, tolerance: float = 0, **options: Any) -> None:
        check_tolerance(tolerance)
        super().__init__(variant=tolerance, **options)
        self.tolerance = tolerance

    def measure(self, attribution: Tensor, mask: Tensor) -> float:
        """Return the fraction of the maxima that count as inside."""
        return pointing_game(prepare(attribution, mask), mask, self.tolerance)


class EnergyPointingGame(PairMetric):
    """Percentage of the map's positive mass inside the mask.

    Example::

        >>> metric, masks = EnergyPointingGame(), torch.tensor([[[True, False]]])
        >>> metric(torch.tensor([[[3.0, 1.0]]]), masks)
        tensor(75., dtype=torch.float64)
    """

    def measure(self, attribution: Tensor, mask: Tensor) -> float:
        """Return the fraction of the positive mass inside the mask."""
        return energy_pointing_game(attribution, mask)


class PixelAUROC(PairMetric):
    """Probability that a pixel inside the mask scores above one outside, mean over pairs.

    Example::

        >>> metric, masks = PixelAUROC(), torch.tensor([[[True, False]]])
        >>> metric(torch.tensor([[[1.0, 1.0]]]), masks)
        tensor(50., dtype=torch.float64)
    """

    def measure(self, attribution: Tensor, mask: Tensor) -> float:
        """Return the AUROC of one pair."""
        return pixel_auroc(prepare(attribution, mask), mask)


class PixelAveragePrecision(PairMetric):
    """Average precision of the pixels inside the mask, mean over pairs.

    Example::

        >>> metric, masks = PixelAveragePrecision(), torch.tensor([[[True, False]]])
        >>> metric(torch.tensor([[[1.0, 2.0]]]), masks)
        tensor(50., dtype=torch.float64)
    """

    def measure(self, attribution: Tensor, mask: Tensor) -> float:
        """Return the average precision of one pair."""
        return pixel_average_precision(prepare(attribution, mask), mask)


class SegmentationProtocol(PairMetric):
    """Pixel accuracy and mean IoU at each map's mean, over the pixels of all pairs together.

    Example::

        >>> metric, masks = SegmentationProtocol(), torch.tensor([[[True, False]]])
        >>> figures = metric(torch.tensor([[[2.0, 1.0]]]), masks)
        >>> figures["pixel_accuracy"], figures["segmentation_miou"]
        (tensor(100., dtype=torch.float64), tensor(100., dtype=torch.float64))
    """

    width = 4

    def measure(self, attribution: Tensor, mask: Tensor) -> Tensor:
        """Return the counts (TP, FP, FN, TN) of one pair."""
        return confusion(prepare(attribution, mask), mask)

    def compute(self) -> dict[str, Tensor]:
        """Return `pixel_accuracy` and `segmentation_miou` in percent."""
        counts = self.mean()
        return {
            "pixel_accuracy": 100 * pixel_accuracy(counts),
            "segmentation_miou": 100 * segmentation_miou(counts),
        }


class GridPointingGame(PercentMean):
    """Percentage of the map's positive mass in the right cell of a grid of images.

    Args:
        rows: Number of rows of the grid.
        columns: Number of columns of the grid.
        **options: Options of `torchmetrics.Metric`, such as `sync_on_compute`.

    Example::

        >>> metric = GridPointingGame(rows=1, columns=2)
        >>> metric(torch.tensor([[[3.0, 1.0]]]), cells=[1])
        tensor(25., dtype=torch.float64)
    """

    def __init__(self, rows: int = 2, columns: int = 2, **options: Any) -> None:
        super().__init__(variant=f"{rows}_{columns}", **options)
        self.rows, self.columns = rows, columns

    def update(self, maps: Tensor, cells: Tensor | Sequence[int]) -> None:
        """Add maps, each with the cell of its target.

        Args:
            maps: Maps (N, h, w) of tiled images, raw and signed.
            cells: Cells (N,), counted row by row from 0.

        Raises:
            TypeError: If the maps are not a tensor.
            ValueError: If the shape is wrong or a map is not finite.
            IndexError: If a cell is out of range.
        """
        check_maps(maps, len(cells))
        for attribution, cell in zip(maps, cells, strict=True):
            fraction = grid_pointing_game(attribution, self.rows, self.columns, int(cell))
            self.add(torch.tensor([[fraction]], dtype=torch.float64, device="cpu"))


class _Correlation(PercentMean):
    """Mean of rank correlations with other maps."""

    higher_is_better = False
    _measure: Callable[[Tensor, Tensor], float]

    def update(self, maps: Tensor, others: Tensor) -> None:
        """Add maps, each with the maps that it should differ from.

        Args:
            maps: Maps (N, h, w), raw and signed.
            others: Other maps (N, M, h, w), M for each.

        Raises:
            TypeError: If the maps are not tensors.
            ValueError: If a shape is wrong or a map is not finite.
        """
        check_maps(maps, len(others))
        for attribution, row in zip(maps, others, strict=True):
            value = self._measure(attribution, row)
            self.add(torch.tensor([[value]], dtype=torch.float64, device="cpu"))


class TextSpecificity(_Correlation):
    """Rank correlation of a text's map with maps for other texts in percent, -100..100.

    100 stands for maps that do not depend on the text. See `text_specificity`.

    Example::

        >>> metric, maps = TextSpecificity(), torch.tensor([[[1.0, 2.0, 4.0]]])
        >>> metric(maps, torch.stack([2 * maps, -maps], dim=1))
        tensor(0., dtype=torch.float64)
    """

    _measure = staticmethod(text_specificity)


class ImageSpecificity(_Correlation):
    """Rank correlation of an image's map with maps of other images in percent, -100..100.

    100 stands for maps that do not depend on the image. See `image_specificity`.

    Example::

        >>> metric, maps = ImageSpecificity(), torch.tensor([[[0.0, 1.0, 0.0]]])
        >>> metric(maps, maps[:, None])
        tensor(100., dtype=torch.float64)
    """

    _measure = staticmethod(image_specificity)


class InsertionDeletion(PercentMean):
    """Areas under the target's probability as pixels enter a baseline or leave the image.

    Args:
        clip: The classifier, with at least two texts.
        steps: Number of steps, 1 to the number of pixels.
        baseline: Replacement of pixels: "blur", "mean" or "noise".
        batch_size: Number of images in one forward pass.
        seed: Seed of the noise.
        **options: Options of `torchmetrics.Metric`, such as `sync_on_compute`.

    Example::

        >>> from captum_clip_surgery import ZeroShotClassifier
        >>> clip = ZeroShotClassifier.demo(["dog", "pizza"])
        >>> metric = InsertionDeletion(clip, steps=5)
        >>> metric.update(torch.zeros(1, 3, *clip.native_size), torch.rand(1, 8, 8), 0)
        >>> sorted(metric.compute())
        ['deletion', 'insertion']
    """

    width = 2
    higher_is_better = None  # true of insertion, not of deletion

    def __init__(
        self,
        clip: ZeroShotClassifier,
        steps: int = 100,
        baseline: str = "blur",
        batch_size: int = 32,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(variant=f"{steps}_{baseline}_{seed}", **options)
        # A partial, because a model as an attribute would become a submodule of the metric.
        self._areas: Callable[..., tuple[Tensor, Tensor]] = partial(
            insertion_deletion,
            clip,
            steps=steps,
            baseline=baseline,
            batch_size=batch_size,
            seed=seed,
        )

    def update(self, images: Tensor, maps: Tensor, targets: Target) -> None:
        """Add images with their maps.

        Args:
            images: Images (N, 3, H, W), preprocessed.
            maps: Maps (N, h, w), raw and signed.
            targets: Index of the maps' text, or one per image.

        Raises:
            TypeError: If an argument has another type.
            ValueError: If the arguments do not fit the classifier or each other.
            IndexError: If a target is out of range.
        """
        self.add(torch.stack(self._areas(images, maps, targets), dim=1))

    def compute(self) -> dict[str, Tensor]:
        """Return `insertion` and `deletion` in percent."""
        insertion, deletion = self.mean()
        return {"insertion": insertion, "deletion": deletion}
