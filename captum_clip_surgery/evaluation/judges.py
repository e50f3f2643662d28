"""What is measured on a data set: of each image a record of numbers, of all records the figures.

A record is all that an image adds. Figures follow from records in the order of the images, however
and wherever they were made, so that a run in parts gives the same table as a run in one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
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
from captum_clip_surgery.metrics import (
    PairMeasures,
    PointMeasures,
    percentiles,
    point_confusion,
    point_iou,
    prepare,
    resample,
)

Figures = dict[str, float]
Intervals = dict[str, tuple[float, float]]
#: Of a bootstrap over images.
RESAMPLES = 1000
#: Pixels a side to which a map of fewer is enlarged, bilinearly, to be held against points.
POINTED_SIDE = 224


class Judge(ABC):
    """One task on one data set."""

    #: Kinds of truth it can measure against.
    truths: ClassVar[tuple[type, ...]]

    def __init__(self, data: ImageDataset) -> None:
        self.data = data

    def targets(self, truth: Target) -> list[int]:
        """The classes that maps are asked for; empty where the task looks at all of them."""
        return []

    @abstractmethod
    def record(self, truth: Target, found: Tensor) -> Tensor:
        """What an image adds: `found` is of the task (maps of the targets, labels, scores)."""

    @abstractmethod
    def figures(self, records: Sequence[Tensor]) -> Figures:
        """Measures of all images."""

    def intervals(self, records: Sequence[Tensor]) -> Intervals:
        """Their 95 % confidence intervals by bootstrap over images, where they can be had."""
        return {}

    @abstractmethod
    def score(self, record: Tensor) -> float | None:
        """How well one image went, in 0..1 or so; None where it says nothing."""


class Localization(Judge):
    """Maps of the classes that an image shows, against their masks; the background is no class.

    A record holds the sums of `PairMeasures`, and how many pairs were skipped.
    """

    truths = (Labels, Masks)

    def targets(self, truth: Target) -> list[int]:
        return [label for label in _masks(truth).masks if label != self.data.background]

    def record(self, truth: Target, found: Tensor) -> Tensor:
        masks, measures = _masks(truth), PairMeasures()
        for label, attribution in zip(self.targets(truth), found, strict=True):
            ignored = masks.ignored.get(label)
            measures.update(
                attribution,
                torch.from_numpy(masks.masks[label]),
                0,
                None if ignored is None else torch.from_numpy(ignored),
            )
        return measures.stats(0)

    def figures(self, records: Sequence[Tensor]) -> Figures:
        return self._measures(records).compute()

    def intervals(self, records: Sequence[Tensor]) -> Intervals:
        return self._measures(records).confidence(resamples=RESAMPLES)

    def score(self, record: Tensor) -> float | None:
        measures = self._measures([record])
        return measures.compute()["explanation_iou"] / 100 if measures.n_pairs else None

    def _measures(self, records: Sequence[Tensor]) -> PairMeasures:
        measures = PairMeasures()
        for image, record in enumerate(records):
            measures.add_stats(image, record)
        return measures


class Segmentation(Judge):
    """Each pixel's class against the labels; the mean is over classes that are there or found.

    A record (3, K) counts pixels of each class: found rightly, found, and there.
    """

    truths = (Labels,)

    def record(self, truth: Target, found: Tensor) -> Tensor:
        assert isinstance(truth, Labels)
        labels = torch.from_numpy(truth.labels).long()
        judged, count = labels != IGNORE_INDEX, len(self.data.classes)
        there, chosen = labels[judged], found[judged]
        parts = (there[there == chosen], chosen, there)
        return torch.stack([torch.bincount(part, minlength=count) for part in parts]).double()

    def figures(self, records: Sequence[Tensor]) -> Figures:
        counts = torch.stack(list(records)).sum(0)
        if not counts.any():
            raise ValueError("no pixel to measure: all are ignored")
        return {name: float(value) for name, value in _segmentation(counts).items()}

    def intervals(self, records: Sequence[Tensor]) -> Intervals:
        table = torch.stack([record for record in records if record.any()])
        chunks = (
            _segmentation((drawn @ table.flatten(1)).unflatten(1, table.shape[1:]))
            for drawn in resample(len(table), RESAMPLES, 0)
        )
        return percentiles(chunks, 0.95)

    def score(self, record: Tensor) -> float | None:
        return float(_segmentation(record)["class_iou"]) / 100 if record.any() else None


class Recognition(Judge):
    """Scores of all classes for whole images, against those they show.

    A record (2, K) holds the scores, and 1, 0, or -1 where it is not known. Classes that no image
    shows have no precision and are left out of the mean.
    """

    truths = (Tags,)

    def __init__(self, data: ImageDataset) -> None:
        super().__init__(data)
        _binary_average_precision()  # what is missing is better told before hours of measuring

    def record(self, truth: Target, found: Tensor) -> Tensor:
        assert isinstance(truth, Tags)
        told = torch.zeros_like(found, dtype=torch.float64)
        told[list(truth.present)] = 1
        told[list(truth.unknown)] = -1
        return torch.stack([found.double(), told])

    def figures(self, records: Sequence[Tensor]) -> Figures:
        scores, told = torch.stack(list(records)).unbind(1)
        if not (told == 1).any():
            raise ValueError("no image shows any class: there is nothing to recognise")
        return {"mean_ap": 100 * float(average_precisions(scores, told).nanmean())}

    def score(self, record: Tensor) -> float | None:
        scores, told = record
        value = float(average_precisions(scores[:, None], told[:, None])[0])
        return None if value != value else value


class PointedOut(Judge):
    """Maps above half of their range, against places that were judged.

    A record has a row for each class of which the image has a point: the class, its points rightly
    and wrongly inside, wrongly and rightly outside.
    """

    truths = (Points,)

    def targets(self, truth: Target) -> list[int]:
        assert isinstance(truth, Points)
        return sorted({point.label for point in truth.points if point.positive})

    def record(self, truth: Target, found: Tensor) -> Tensor:
        assert isinstance(truth, Points)
        rows = []
        for label, attribution in zip(self.targets(truth), found, strict=True):
            points = [point for point in truth.points if point.label == label]
            counts = point_confusion(
                _scaled(attribution),
                [point.x for point in points],
                [point.y for point in points],
                [point.positive for point in points],
            )
            rows.append(torch.cat([torch.tensor([label], dtype=torch.float64), counts]))
        return torch.stack(rows) if rows else torch.zeros(0, 5, dtype=torch.float64)

    def figures(self, records: Sequence[Tensor]) -> Figures:
        measures = PointMeasures()
        for row in torch.cat(list(records)):
            measures.add(int(row[0]), row[1:])
        found = measures.compute()
        return {"p_miou": found.p_miou, "pair_iou": found.pair_iou, "n_pairs": float(found.n_pairs)}

    def score(self, record: Tensor) -> float | None:
        return float(point_iou(record[:, 1:]).mean()) if len(record) else None


JUDGES: Mapping[str, type[Judge]] = {
    "localization": Localization,
    "segmentation": Segmentation,
    "recognition": Recognition,
    "points": PointedOut,
}


def average_precisions(scores: Tensor, told: Tensor) -> Tensor:
    """Average precision of each class, (K,), NaN where no image shows it.

    The area under precision and recall without interpolation, as scikit-learn has it.

    Args:
        scores: (N, K).
        told: (N, K) of 1, 0, or -1, which is left out.

    Raises:
        ImportError: without torchmetrics.
    """
    binary_average_precision = _binary_average_precision()
    found = []
    for column, answers in zip(scores.T, told.T, strict=True):
        known = answers >= 0
        if not (answers == 1).any():
            found.append(torch.tensor(torch.nan, dtype=torch.float64))
            continue
        # Ranks, since torchmetrics takes scores in 0..1 and squeezes others there.
        ranks = column[known].unique(return_inverse=True)[1].double()
        ranks = ranks / max(1.0, float(ranks.max()))
        found.append(binary_average_precision(ranks, answers[known].long()).double())
    return torch.stack(found)


def _binary_average_precision() -> Callable[[Tensor, Tensor], Tensor]:
    try:
        from torchmetrics.functional.classification import binary_average_precision
    except ImportError as error:
        raise ImportError(
            "recognition needs torchmetrics; install the extra: "
            "pip install 'captum_clip_surgery[metrics]'"
        ) from error
    return binary_average_precision


def _masks(truth: Target) -> Masks:
    assert isinstance(truth, (Labels, Masks))
    return truth.masks() if isinstance(truth, Labels) else truth


def _segmentation(counts: Tensor) -> dict[str, Tensor]:
    """Counts (..., 3, K) as figures (...) in percent."""
    right, found, there = counts.unbind(-2)
    union = found + there - right
    iou, recall = right / union, right / there  # NaN where there is nothing to divide by
    return {
        "class_iou": 100 * iou.nanmean(-1),
        "class_accuracy": 100 * recall.nanmean(-1),
        "all_accuracy": 100 * right.sum(-1) / there.sum(-1),
    }


def _scaled(attribution: Tensor) -> Tensor:
    """A map min-max normalised, then enlarged to what points can be told apart on.

    A constant one is nowhere above half.
    """
    height, width = (max(side, POINTED_SIDE) for side in attribution.shape)
    everywhere = torch.ones(height, width, dtype=torch.bool)
    prepared = prepare(attribution, everywhere)
    return everywhere.double() * 0 if prepared is None else prepared
