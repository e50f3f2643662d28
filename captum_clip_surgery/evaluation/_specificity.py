"""Text specificity on data sets: does a class's map differ from those of absent classes?"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.datasets import Masks, Tags, Target
from captum_clip_surgery.evaluation._data import EvalSample
from captum_clip_surgery.evaluation._faithfulness import PairMeansEvaluator, shown_classes
from captum_clip_surgery.evaluation._predictors import Predictions, Predictor
from captum_clip_surgery.evaluation._store import Columns
from captum_clip_surgery.metrics._alone import NONSENSE, NUM_ABSENT, ask_alone


class SpecificityPredictor(Predictor):
    """Correlations (K, 2) of the maps of an image's classes: with absent ones, with nonsense.

    Each text is the only one. The absent classes are drawn from the classes that the image does not
    show; what is drawn depends only on the image's name.
    """

    def prepare(self) -> None:
        """Check the view, and embed all texts."""
        if self.view.keep_aspect:
            raise ValueError("maps need squashed images; their view cannot have keep_aspect")
        # All at once: the last bits of a feature depend on the other texts, and must not depend
        # on which images a process sees first.
        ZeroShotClassifier.with_texts(self.clip, [*self.classes.first, *NONSENSE])

    def predict(
        self, batch: Sequence[EvalSample], labels: Sequence[Sequence[int]]
    ) -> list[Predictions]:
        """Return the correlations of each image's `labels`, in -1..1."""
        return [self._correlations(sample, row) for sample, row in zip(batch, labels, strict=True)]

    def _correlations(self, sample: EvalSample, labels: Sequence[int]) -> Predictions:
        assert isinstance(sample.target, Tags)
        shown = sample.target.present | sample.target.unknown | {self.data.background}
        absent = [label for label in range(len(self.classes)) if label not in shown]
        drawn = random.Random(sample.name).sample(absent, min(NUM_ABSENT, len(absent)))
        if not labels or not drawn:
            return dict.fromkeys(self.names, torch.zeros(0, 2, dtype=torch.float64))
        names = self.classes.first
        image = sample.pixels[None].to(self.clip.device)
        texts, others = ([names[label] for label in row] for row in (labels, drawn))
        asked = ask_alone(self.clip, self.methods, image, [texts], [others])
        results = {name: asked.specificity(name) for name in self.names}
        return {
            name: torch.stack([result.absent[0], result.nonsense[0]], 1)
            for name, result in results.items()
        }


class SpecificityEvaluator(PairMeansEvaluator):
    """Text specificity of every class that an image shows, without the background."""

    predictor = SpecificityPredictor
    columns: ClassVar[Columns] = {"text_specificity": 1, "nonsense_specificity": 1}
    nothing = "no image shows some classes other than the background but not all of them"

    def prepare(self, target: Target) -> Target:
        """Return the classes that an image shows, and those of which it is not known."""
        unknown: frozenset[int] = frozenset()
        if isinstance(target, Tags):
            unknown = target.unknown
        elif isinstance(target, Masks):
            unknown = frozenset(target.ignored)
        return Tags(shown_classes(target), unknown)

    def labels(self, target: Target) -> list[int]:
        """Return the classes that the image shows, without the background."""
        return sorted(shown_classes(target) - {self.data.background})

    def stats(self, target: Target, prediction: Tensor) -> Tensor:
        """Return the correlations for every class."""
        labels = torch.tensor(self.labels(target)[: len(prediction)], dtype=torch.float64)
        return torch.cat([labels[:, None], prediction.double()], 1)

    def image_score(self, stats: Tensor) -> float | None:
        """Return one minus the mean correlation with maps of absent classes."""
        score = super().image_score(stats)
        return None if score is None else 1 - score
