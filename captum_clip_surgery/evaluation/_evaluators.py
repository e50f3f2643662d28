"""What is measured for each task: statistics of every image, and the measures of all of them.

The statistics are all that an image contributes. Measures are computed from the statistics in the
order of the images, wherever they were collected, so that a run in parts gives the same table as a
run in one piece.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from captum_clip_surgery.datasets import (
    IGNORE_INDEX as IGNORE_INDEX,
)
from captum_clip_surgery.datasets import (
    ImageDataset,
    Labels,
    Masks,
    Points,
    Tags,
    Target,
)
from captum_clip_surgery.evaluation._predictors import (
    MapPredictor,
    Predictor,
    RecognitionPredictor,
    SegmentationPredictor,
)
from captum_clip_surgery.metrics import (
    PairMeasures,
    PointMeasures,
    point_confusion,
    point_iou,
    prepare,
)
from captum_clip_surgery.metrics._bootstrap import percentiles, resample

Measures = dict[str, float]
Intervals = dict[str, tuple[float, float]]
#: Number of bootstrap resamples over images.
RESAMPLES = 1000
#: Side in pixels to which smaller maps are upsampled before they are compared with points.
POINT_SIDE = 224


class Evaluator(ABC):
    """One task on one data set.

    Args:
        data: The data set.
    """

    #: Types of annotations that the task can be measured against.
    target_types: ClassVar[tuple[type, ...]]
    #: How methods are run for the task.
    predictor: ClassVar[type[Predictor]]

    def __init__(self, data: ImageDataset) -> None:
        self.data = data

    def labels(self, target: Target) -> list[int]:
        """Return the classes that maps are needed of; empty if the task concerns all of them."""
        return []

    @abstractmethod
    def stats(self, target: Target, prediction: Tensor) -> Tensor:
        """Return the statistics of one image.

        Args:
            target: Its annotation.
            prediction: What a method predicted: maps of `labels(target)`, labels or scores.
        """

    @abstractmethod
    def compute(self, stats: Sequence[Tensor]) -> Measures:
        """Return the measures of all images in percent.

        Raises:
            ValueError: If there is nothing to measure.
        """

    def intervals(self, stats: Sequence[Tensor]) -> Intervals:
        """Return 95 % confidence intervals of measures by bootstrap over images."""
        return {}

    @abstractmethod
    def image_score(self, stats: Tensor) -> float | None:
        """Return the score of one image, about 0..1, or None if it has none."""


class LocalizationEvaluator(Evaluator):
    """Maps of the classes in an image against their masks; the background is left out.

    The statistics are the sums of `PairMeasures`, and the number of pairs skipped.
    """

    target_types = (Labels, Masks)
    predictor = MapPredictor

    def labels(self, target: Target) -> list[int]:
        """Return the classes that have a mask, without the background."""
        return [label for label in _masks(target).masks if label != self.data.background]

    def stats(self, target: Target, prediction: Tensor) -> Tensor:
        """Return the sums of `PairMeasures` over the image's classes."""
        masks, measures = _masks(target), PairMeasures()
        for label, attribution in zip(self.labels(target), prediction, strict=True):
            ignored = masks.ignored.get(label)
            measures.update(
                attribution,
                torch.from_numpy(masks.masks[label]),
                0,
                None if ignored is None else torch.from_numpy(ignored),
            )
        return measures.stats(0)

    def compute(self, stats: Sequence[Tensor]) -> Measures:
        """Return all measures of `PairMeasures`."""
        return self._measures(stats).compute()

    def intervals(self, stats: Sequence[Tensor]) -> Intervals:
        """Return their 95 % confidence intervals by bootstrap over images."""
        return self._measures(stats).confidence(resamples=RESAMPLES)

    def image_score(self, stats: Tensor) -> float | None:
        """Return the image's explanation IoU, or None if all its masks are empty or full."""
        measures = self._measures([stats])
        return measures.compute()["explanation_iou"] / 100 if measures.n_pairs else None

    def _measures(self, stats: Sequence[Tensor]) -> PairMeasures:
        measures = PairMeasures()
        for image, state in enumerate(stats):
            measures.add_stats(image, state)
        return measures


class SegmentationEvaluator(Evaluator):
    """The class of every pixel against labels; means are over classes present or predicted.

    The statistics (3, K) count the pixels of each class: predicted correctly, predicted, and
    labeled.
    """

    target_types = (Labels,)
    predictor = SegmentationPredictor

    def stats(self, target: Target, prediction: Tensor) -> Tensor:
        """Return counts (3, K) of pixels predicted correctly, predicted, and labeled."""
        assert isinstance(target, Labels)
        labels = torch.from_numpy(target.labels).long()
        valid, count = labels != IGNORE_INDEX, len(self.data.classes)
        labels, prediction = labels[valid], prediction[valid]
        parts = (labels[labels == prediction], prediction, labels)
        return torch.stack([torch.bincount(part, minlength=count) for part in parts]).double()

    def compute(self, stats: Sequence[Tensor]) -> Measures:
        """Return mean IoU and accuracy of classes, and the accuracy of all pixels."""
        counts = torch.stack(list(stats)).sum(0)
        if not counts.any():
            raise ValueError("no pixel to measure: all are ignored")
        return {name: float(value) for name, value in _segmentation_measures(counts).items()}

    def intervals(self, stats: Sequence[Tensor]) -> Intervals:
        """Return their 95 % confidence intervals by bootstrap over images."""
        table = torch.stack([counts for counts in stats if counts.any()])
        chunks = (
            _segmentation_measures((drawn @ table.flatten(1)).unflatten(1, table.shape[1:]))
            for drawn in resample(len(table), RESAMPLES, 0)
        )
        return percentiles(chunks, 0.95)

    def image_score(self, stats: Tensor) -> float | None:
        """Return the mean IoU within the image, or None if all its pixels are ignored."""
        return float(_segmentation_measures(stats)["class_iou"]) / 100 if stats.any() else None


class RecognitionEvaluator(Evaluator):
    """Scores of all classes for whole images against the classes present.

    The statistics (2, K) are the scores, and 1 (present), 0 (absent) or -1 (unknown). Classes that
    no image shows have no precision and are left out of the mean.

    Raises:
        ImportError: If torchmetrics is not installed.
    """

    target_types = (Tags,)
    predictor = RecognitionPredictor

    def __init__(self, data: ImageDataset) -> None:
        super().__init__(data)
        _binary_average_precision()  # a missing extra is reported before hours of work

    def stats(self, target: Target, prediction: Tensor) -> Tensor:
        """Return scores and answers (2, K)."""
        assert isinstance(target, Tags)
        answers = torch.zeros_like(prediction, dtype=torch.float64)
        answers[list(target.present)] = 1
        answers[list(target.unknown)] = -1
        return torch.stack([prediction.double(), answers])

    def compute(self, stats: Sequence[Tensor]) -> Measures:
        """Return the mean average precision over classes that an image shows."""
        scores, answers = torch.stack(list(stats)).unbind(1)
        if not (answers == 1).any():
            raise ValueError("no image shows any class: there is nothing to recognize")
        return {"mean_ap": 100 * float(average_precisions(scores, answers).nanmean())}

    def image_score(self, stats: Tensor) -> float | None:
        """Return the average precision within the image, or None if it shows no class."""
        scores, answers = stats
        value = float(average_precisions(scores[:, None], answers[:, None])[0])
        return None if value != value else value


class PointEvaluator(Evaluator):
    """Maps above half of their range against annotated points.

    The statistics have one row (class, TP, FP, FN, TN) for every class with a positive point.
    """

    target_types = (Points,)
    predictor = MapPredictor

    def labels(self, target: Target) -> list[int]:
        """Return the classes with a positive point."""
        assert isinstance(target, Points)
        return sorted({point.label for point in target.points if point.positive})

    def stats(self, target: Target, prediction: Tensor) -> Tensor:
        """Return a row (class, TP, FP, FN, TN) for every class with a positive point."""
        assert isinstance(target, Points)
        rows = []
        for label, attribution in zip(self.labels(target), prediction, strict=True):
            points = [point for point in target.points if point.label == label]
            counts = point_confusion(
                _scale_map(attribution),
                [point.x for point in points],
                [point.y for point in points],
                [point.positive for point in points],
            )
            rows.append(torch.cat([torch.tensor([label], dtype=torch.float64), counts]))
        return torch.stack(rows) if rows else torch.zeros(0, 5, dtype=torch.float64)

    def compute(self, stats: Sequence[Tensor]) -> Measures:
        """Return p-mIoU, the mean IoU over pairs of image and class, and the number of pairs."""
        measures = PointMeasures()
        for row in torch.cat(list(stats)):
            measures.add(int(row[0]), row[1:])
        result = measures.compute()
        return {
            "p_miou": result.p_miou,
            "pair_iou": result.pair_iou,
            "n_pairs": float(result.n_pairs),
        }

    def image_score(self, stats: Tensor) -> float | None:
        """Return the mean IoU over the image's classes, or None if no point is positive."""
        return float(point_iou(stats[:, 1:]).mean()) if len(stats) else None


#: The tasks that can be evaluated, by name.
EVALUATORS: Mapping[str, type[Evaluator]] = {
    "localization": LocalizationEvaluator,
    "segmentation": SegmentationEvaluator,
    "recognition": RecognitionEvaluator,
    "points": PointEvaluator,
}


def average_precisions(scores: Tensor, answers: Tensor) -> Tensor:
    """Return the average precision of each class.

    It is the area under the precision-recall curve without interpolation, as in scikit-learn.

    Args:
        scores: Scores (N, K) of images.
        answers: 1 (present), 0 (absent) or -1 (left out), (N, K).

    Returns:
        Average precisions (K,), NaN for classes that no image shows.

    Raises:
        ImportError: If torchmetrics is not installed.
    """
    binary_average_precision = _binary_average_precision()
    precisions = []
    for column, target in zip(scores.T, answers.T, strict=True):
        valid = target >= 0
        if not (target == 1).any():
            precisions.append(torch.tensor(torch.nan, dtype=torch.float64))
            continue
        # Ranks, since torchmetrics takes scores in 0..1 and squashes others to that range.
        ranks = column[valid].unique(return_inverse=True)[1].double()
        ranks = ranks / max(1.0, float(ranks.max()))
        precisions.append(binary_average_precision(ranks, target[valid].long()).double())
    return torch.stack(precisions)


def _binary_average_precision() -> Callable[[Tensor, Tensor], Tensor]:
    try:
        from torchmetrics.functional.classification import binary_average_precision
    except ImportError as error:
        raise ImportError(
            "recognition needs torchmetrics; install the extra: "
            "pip install 'captum_clip_surgery[metrics]'"
        ) from error
    return binary_average_precision


def _masks(target: Target) -> Masks:
    assert isinstance(target, (Labels, Masks))
    return target.masks() if isinstance(target, Labels) else target


def _segmentation_measures(counts: Tensor) -> dict[str, Tensor]:
    """Return measures (...) in percent from counts (..., 3, K)."""
    correct, predicted, labeled = counts.unbind(-2)
    union = predicted + labeled - correct
    iou, recall = correct / union, correct / labeled  # NaN for classes without pixels
    return {
        "class_iou": 100 * iou.nanmean(-1),
        "class_accuracy": 100 * recall.nanmean(-1),
        "all_accuracy": 100 * correct.sum(-1) / labeled.sum(-1),
    }


def _scale_map(attribution: Tensor) -> Tensor:
    """Min-max normalize a map and upsample it; a constant map becomes 0, nowhere above half."""
    height, width = (max(side, POINT_SIDE) for side in attribution.shape)
    everywhere = torch.ones(height, width, dtype=torch.bool)
    prepared = prepare(attribution, everywhere)
    return everywhere.double() * 0 if prepared is None else prepared
