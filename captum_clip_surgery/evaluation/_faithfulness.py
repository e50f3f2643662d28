"""Insertion and deletion on data sets: does the model need the pixels that a map ranks first?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from captum_clip_surgery.datasets import Labels, Masks, Tags, Target
from captum_clip_surgery.evaluation._data import EvalSample
from captum_clip_surgery.evaluation._evaluators import RESAMPLES, Evaluator, Intervals, Measures
from captum_clip_surgery.evaluation._predictors import MapPredictor, Predictions
from captum_clip_surgery.evaluation._store import Columns
from captum_clip_surgery.metrics import insertion_deletion
from captum_clip_surgery.metrics._bootstrap import percentiles, resample


class FaithfulnessPredictor(MapPredictor):
    """Insertion and deletion (K, 2) of the maps of an image's classes, among all classes."""

    def predict(
        self, batch: Sequence[EvalSample], labels: Sequence[Sequence[int]]
    ) -> list[Predictions]:
        """Return insertion and deletion of each image's `labels`, in 0..1."""
        predictions = []
        for sample, row, by_method in zip(
            batch, labels, super().predict(batch, labels), strict=True
        ):
            image = sample.pixels[None].to(self.clip.device)
            targets = [self.positions[label] for label in row]
            predictions.append(
                {name: self._areas(image, own, targets) for name, own in by_method.items()}
            )
        return predictions

    def _areas(self, image: Tensor, maps: Tensor, targets: Sequence[int]) -> Tensor:
        areas = [
            torch.cat(insertion_deletion(self.competing, image, one[None], target, self.view.steps))
            for one, target in zip(maps, targets, strict=True)
        ]
        return torch.stack(areas).cpu() if areas else torch.zeros(0, 2)


def shown_classes(target: Target) -> frozenset[int]:
    """Return the classes that an image shows, by its labels, masks or tags."""
    if isinstance(target, Labels):
        target = target.masks()
    if isinstance(target, Masks):
        return frozenset(label for label, mask in target.masks.items() if mask.any())
    assert isinstance(target, Tags)
    return target.present


class PairMeansEvaluator(Evaluator):
    """Base class of measures that are means over pairs of an image and a class."""

    target_types = (Labels, Masks, Tags)
    has_figure = False
    #: Why there may be nothing to measure.
    nothing: ClassVar[str] = "no image shows a class besides the background"

    def compute(self, stats: Sequence[Tensor]) -> Measures:
        """Return means over pairs of an image and a class."""
        rows = torch.cat(list(stats))[:, 1:]
        if not len(rows):
            raise ValueError(self.nothing)
        return dict(zip(self.columns, (100 * rows.mean(0)).tolist(), strict=True))

    def intervals(self, stats: Sequence[Tensor]) -> Intervals:
        """Return their 95 % confidence intervals by bootstrap over images."""
        table = torch.stack(
            [torch.cat([r[:, 1:].sum(0), r.new_tensor([len(r)])]) for r in stats if len(r)]
        )
        sums = (counts @ table for counts in resample(len(table), RESAMPLES, 0))
        chunks = (
            dict(zip(self.columns, (100 * s[:, :-1] / s[:, -1:]).unbind(1), strict=True))
            for s in sums
        )
        return percentiles(chunks, 0.95)

    def image_score(self, stats: Tensor) -> float | None:
        """Return the image's mean of the first measure, or None if it has no pair."""
        return float(stats[:, 1].mean()) if len(stats) else None


class FaithfulnessEvaluator(PairMeansEvaluator):
    """Insertion and deletion of every class that an image shows, without the background."""

    predictor = FaithfulnessPredictor
    columns: ClassVar[Columns] = {"insertion": 1, "deletion": 1}

    def prepare(self, target: Target) -> Target:
        """Return the classes that an image shows."""
        return Tags(shown_classes(target))

    def labels(self, target: Target) -> list[int]:
        """Return the classes that the image shows, without the background."""
        return sorted(shown_classes(target) - {self.data.background})

    def stats(self, target: Target, prediction: Tensor) -> Tensor:
        """Return insertion and deletion for every class."""
        labels = torch.tensor(self.labels(target), dtype=torch.float64)
        return torch.cat([labels[:, None], prediction.double()], 1)
