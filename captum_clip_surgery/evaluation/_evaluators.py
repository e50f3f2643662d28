"""Evaluators of each task: statistics of every image, and the measures over all images.

The statistics are all that an image contributes. Measures are computed from the statistics in the
order of the images, wherever they were collected, so that a run in parts gives the same table as a
run in one piece.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from typing import ClassVar

import torch
from torch import Tensor

from captum_clip_surgery.datasets import (
    IGNORE_INDEX,
    ImageDataset,
    Labels,
    Masks,
    Points,
    Tags,
    Target,
)
from captum_clip_surgery.evaluation._average_precision import (
    average_precisions,
    binary_average_precision,
)
from captum_clip_surgery.evaluation._predictors import (
    MapPredictor,
    PointPredictor,
    Predictor,
    RecognitionPredictor,
    SegmentationPredictor,
)
from captum_clip_surgery.evaluation._store import Columns
from captum_clip_surgery.metrics import (
    PairMeasures,
    PointMeasures,
)
from captum_clip_surgery.metrics._bootstrap import percentiles, resample
from captum_clip_surgery.metrics._pairs import MEANS, pair_stats
from captum_clip_surgery.metrics.functional._points import point_confusion, point_iou
from captum_clip_surgery.metrics.functional._ranked import THRESHOLDS

Measures = dict[str, float]
Intervals = dict[str, tuple[float, float]]
#: Number of bootstrap resamples over images.
RESAMPLES = 1000
#: Label of the row that counts pixels without annotation.
UNLABELED = -1
#: Columns of true and false positives and negatives.
CONFUSION = dict.fromkeys(
    ("true_positives", "false_positives", "false_negatives", "true_negatives"), 1
)


class Evaluator(ABC):
    """One task on one data set.

    The statistics of an image have one row per class: the class and the values of `columns`.

    Args:
        data: The data set.
    """

    #: Types of annotations that the task can be measured against.
    target_types: ClassVar[tuple[type, ...]]
    #: How methods are run for the task.
    predictor: ClassVar[type[Predictor]]
    #: Names of the statistics with their widths.
    columns: ClassVar[Columns]
    #: Whether predictions are maps of `labels`.
    predicts_maps: ClassVar[bool] = False
    #: Whether predictions can be drawn.
    has_figure: ClassVar[bool] = True

    def __init__(self, data: ImageDataset) -> None:
        self.data = data
        #: The images that methods are shown.
        self.images = data

    def prepare(self, target: Target) -> Target:
        """Return an annotation as all methods are measured against it, once per image."""
        return target

    def labels(self, target: Target) -> list[int]:
        """Return the classes that maps are needed of; empty if the task concerns all of them."""
        return []

    @abstractmethod
    def stats(self, target: Target, prediction: Tensor) -> Tensor:
        """Return the statistics of one image, (n, 1 + W) of float64.

        Args:
            target: Its annotation, prepared.
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

    def of_image(self, stats: Tensor) -> Measures:
        """Return the measures of one image in percent; empty if there is nothing to measure."""
        try:
            return self.compute([stats])
        except ValueError:
            return {}

    def of_classes(self, stats: Sequence[Tensor]) -> dict[int, Measures]:
        """Return the measures of each class in percent, over all images."""
        labels = torch.cat([rows[:, 0] for rows in stats]).unique().tolist()
        by_class = {}
        for label in labels:
            parts = [rows[rows[:, 0] == label] for rows in stats]
            with suppress(ValueError):
                by_class[int(label)] = self.compute([rows for rows in parts if len(rows)])
        return by_class

    def remark(self, stats: Sequence[Tensor]) -> str | None:
        """Return a remark for readers of the measures, or None."""
        return None


class LocalizationEvaluator(Evaluator):
    """Maps of the classes in an image against their masks; the background is left out.

    The statistics are those of `pair_stats` and the number of ignored pixels; a pair that is
    skipped has NaN.
    """

    target_types = (Labels, Masks)
    predictor = MapPredictor
    predicts_maps = True
    columns: ClassVar[Columns] = {
        "iou_curve": len(THRESHOLDS),
        **dict.fromkeys(MEANS, 1),
        **CONFUSION,
        "ignored": 1,
    }

    def prepare(self, target: Target) -> Target:
        """Return the masks of all classes."""
        return target.masks() if isinstance(target, Labels) else target

    def labels(self, target: Target) -> list[int]:
        """Return the classes that have a mask, without the background."""
        assert isinstance(target, Masks)
        return [label for label in target.masks if label != self.data.background]

    def stats(self, target: Target, prediction: Tensor) -> Tensor:
        """Return a row for every class that has a mask."""
        assert isinstance(target, Masks)
        rows = torch.full((len(prediction), 1 + sum(self.columns.values())), torch.nan).double()
        for row, label, attribution in zip(rows, self.labels(target), prediction, strict=True):
            void = target.ignored.get(label)
            ignored = None if void is None else torch.from_numpy(void)
            row[0], row[-1] = label, 0 if ignored is None else int(ignored.sum())
            pair = pair_stats(attribution, torch.from_numpy(target.masks[label]), ignored)
            if pair is not None:
                row[1:-1] = pair
        return rows

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

    def remark(self, stats: Sequence[Tensor]) -> str | None:
        """Return the share of pixels that do not count."""
        rows = torch.cat(list(stats))
        rows = rows[~rows[:, 1].isnan()]
        return _remark_on_ignored(rows[:, -1].sum(), rows[:, -5:-1].sum())

    def _measures(self, stats: Sequence[Tensor]) -> PairMeasures:
        measures = PairMeasures()
        for image, rows in enumerate(stats):
            for row in rows:
                measures.add(None if row[1].isnan() else row[1:-1], image)
        return measures


class SegmentationEvaluator(Evaluator):
    """The class of every pixel against labels; means are over classes present or predicted.

    The statistics count the pixels of each class; the row of `UNLABELED` counts the others.
    """

    target_types = (Labels,)
    predictor = SegmentationPredictor
    columns: ClassVar[Columns] = {"correct": 1, "predicted": 1, "labeled": 1}

    def stats(self, target: Target, prediction: Tensor) -> Tensor:
        """Return a row for every class that is labeled or predicted."""
        assert isinstance(target, Labels)
        labels = torch.from_numpy(target.labels).long()
        valid, count = labels != IGNORE_INDEX, len(self.data.classes)
        ignored = labels.numel() - int(valid.sum())
        labels, prediction = labels[valid], prediction[valid]
        parts = (labels[labels == prediction], prediction, labels)
        counts = torch.stack([torch.bincount(part, minlength=count) for part in parts], 1)
        chosen = counts.any(1).nonzero()
        rows = torch.cat([chosen, counts[chosen[:, 0]]], 1).double()
        return torch.cat([rows, rows.new_tensor([[UNLABELED, 0, 0, ignored]])])

    def compute(self, stats: Sequence[Tensor]) -> Measures:
        """Return mean IoU and accuracy of classes, and the accuracy of all pixels."""
        counts = self._counts(stats).sum(0)
        if not counts.any():
            raise ValueError("no pixel to measure: all are ignored")
        return {name: float(value) for name, value in _segmentation_measures(counts).items()}

    def intervals(self, stats: Sequence[Tensor]) -> Intervals:
        """Return their 95 % confidence intervals by bootstrap over images."""
        table = self._counts(stats)
        table = table[table.flatten(1).any(1)]
        chunks = (
            _segmentation_measures((drawn @ table.flatten(1)).unflatten(1, table.shape[1:]))
            for drawn in resample(len(table), RESAMPLES, 0)
        )
        return percentiles(chunks, 0.95)

    def image_score(self, stats: Tensor) -> float | None:
        """Return the mean IoU within the image, or None if all its pixels are ignored."""
        counts = self._counts([stats])[0]
        return float(_segmentation_measures(counts)["class_iou"]) / 100 if counts.any() else None

    def of_classes(self, stats: Sequence[Tensor]) -> dict[int, Measures]:
        """Return IoU and accuracy of every class that is labeled or predicted."""
        correct, predicted, labeled = self._counts(stats).sum(0)
        iou, accuracy = correct / (predicted + labeled - correct), correct / labeled
        values = enumerate(zip((100 * iou).tolist(), (100 * accuracy).tolist(), strict=True))
        return {
            label: {"class_iou": one, "class_accuracy": other}
            for label, (one, other) in values
            if one == one
        }

    def remark(self, stats: Sequence[Tensor]) -> str | None:
        """Return the share of pixels that do not count."""
        rows = torch.cat(list(stats))
        unlabeled = rows[:, 0] == UNLABELED
        return _remark_on_ignored(rows[unlabeled, 3].sum(), rows[~unlabeled, 3].sum())

    def _counts(self, stats: Sequence[Tensor]) -> Tensor:
        """Return the pixels of each image by class, (N, 3, K)."""
        counts = torch.zeros(len(stats), 3, len(self.data.classes), dtype=torch.float64)
        for image, rows in zip(counts, stats, strict=True):
            known = rows[rows[:, 0] != UNLABELED]
            image[:, known[:, 0].long()] = known[:, 1:].T
        return counts


class RecognitionEvaluator(Evaluator):
    """Scores of all classes for whole images against the classes present.

    The statistics are the score, and 1 (present), 0 (absent) or -1 (unknown). Classes that no image
    shows have no precision and are left out of the mean.

    Raises:
        ImportError: If torchmetrics is not installed.
    """

    target_types = (Tags,)
    predictor = RecognitionPredictor
    columns: ClassVar[Columns] = {"score": 1, "answer": 1}

    def __init__(self, data: ImageDataset) -> None:
        super().__init__(data)
        binary_average_precision()  # a missing extra is reported before hours of work

    def stats(self, target: Target, prediction: Tensor) -> Tensor:
        """Return the score and the answer for every class."""
        assert isinstance(target, Tags)
        answers = torch.zeros_like(prediction, dtype=torch.float64)
        answers[list(target.present)] = 1
        answers[list(target.unknown)] = -1
        return torch.stack([torch.arange(len(answers)), prediction.double(), answers], 1)

    def compute(self, stats: Sequence[Tensor]) -> Measures:
        """Return the mean average precision over classes that an image shows."""
        values = [measures["mean_ap"] for measures in self.of_classes(stats).values()]
        if not values:
            raise ValueError("no image shows any class: there is nothing to recognize")
        return {"mean_ap": float(torch.tensor(values, dtype=torch.float64).mean())}

    def image_score(self, stats: Tensor) -> float | None:
        """Return the average precision within the image, or None if it shows no class."""
        value = float(average_precisions(stats[:, 1:2], stats[:, 2:])[0])
        return None if value != value else value

    def of_image(self, stats: Tensor) -> Measures:
        """Return the average precision of the classes within the image."""
        score = self.image_score(stats)
        return {} if score is None else {"mean_ap": 100 * score}

    def of_classes(self, stats: Sequence[Tensor]) -> dict[int, Measures]:
        """Return the average precision of every class that an image shows."""
        _, scores, answers = torch.stack(list(stats)).unbind(2)
        values = (100 * average_precisions(scores, answers)).tolist()
        return {label: {"mean_ap": value} for label, value in enumerate(values) if value == value}


class PointEvaluator(Evaluator):
    """The masks of `tasks.prompts` against annotated points.

    The statistics count the points of every class with a positive point.
    """

    target_types = (Points,)
    predictor = PointPredictor
    predicts_maps = True
    columns = CONFUSION

    def labels(self, target: Target) -> list[int]:
        """Return the classes with a positive point."""
        assert isinstance(target, Points)
        return sorted({point.label for point in target.points if point.positive})

    def stats(self, target: Target, prediction: Tensor) -> Tensor:
        """Return counts for every class with a positive point."""
        assert isinstance(target, Points)
        rows = []
        for label, foreground in zip(self.labels(target), prediction, strict=True):
            points = [point for point in target.points if point.label == label]
            counts = point_confusion(
                foreground,
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


def _remark_on_ignored(ignored: Tensor, counted: Tensor) -> str | None:
    share = float(ignored / (ignored + counted).clamp(min=1))
    if not share:
        return None
    return (
        f"{100 * share:.1f} % of the pixels are unlabeled and do not count; figures do not compare "
        "with those of a data set where they are background"
    )


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
