"""How each task asks the methods: batches of images to what each image adds, by method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from captum_clip_surgery.attr._base import Method
from captum_clip_surgery.attr._engine import Explainer, attribute_each, attribute_many
from captum_clip_surgery.attr.dual_path import DualPathAttribution
from captum_clip_surgery.attr.registry import make_all
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.datasets import Classes, ImageDataset
from captum_clip_surgery.evaluation.judges import Judge
from captum_clip_surgery.evaluation.protocol import View
from captum_clip_surgery.evaluation.records import Records
from captum_clip_surgery.evaluation.shown import Shown, stacked
from captum_clip_surgery.evaluation.windows import picture_scores
from captum_clip_surgery.tasks.enlarging import best_of, enlarged, probability_of
from captum_clip_surgery.tasks.pictures import seen_part
from captum_clip_surgery.tasks.recognition import pooled_scores


class Asking(ABC):
    """A task's way to ask methods; `names` are those that it can."""

    judge: Judge
    names: tuple[str, ...]

    @abstractmethod
    def found(self, batch: Sequence[Shown]) -> list[Records]:
        """What each method says of each image, on the CPU: maps, labels or scores."""

    def __call__(self, batch: Sequence[Shown]) -> list[Records]:
        """What each image adds."""
        return [
            {name: self.judge.record(shown.truth, said[name]) for name in self.names}
            for shown, said in zip(batch, self.found(batch), strict=True)
        ]


class AskForMaps(Asking):
    """Each image's maps of the classes that its truth is of.

    The texts are all classes but the background, so that these compete, or those of the image.
    """

    def __init__(
        self,
        clip: ZeroShotClassifier,
        data: ImageDataset,
        methods: Mapping[str, Method],
        view: View,
        judge: Judge,
    ) -> None:
        if view.keep_aspect:
            raise ValueError("maps are of squashed images: a view of them has no keep_aspect")
        self.judge, self.methods, self.clip = judge, methods, clip
        self.names = tuple(methods)
        self.texts = _names(data, view).first
        self.shared: dict[str, Explainer] | None = None
        asked = [label for label in range(len(self.texts)) if label != data.background]
        # Embedded at once whichever view it is: a text's last bits depend on those beside it, and
        # must not depend on which images a process happens to see first.
        everything = clip.with_texts([self.texts[label] for label in asked])
        if view.texts == "classes":
            self.places = {label: place for place, label in enumerate(asked)}
            self.shared = make_all(everything, methods)

    @torch.no_grad()  # methods that need gradients enable them themselves
    def found(self, batch: Sequence[Shown]) -> list[Records]:
        images = stacked(batch, self.clip.device)
        targets = [self.judge.targets(shown.truth) for shown in batch]
        if self.shared is not None:
            rows = [[self.places[label] for label in row] for row in targets]
            found = attribute_each(self.shared, images, rows)
        else:
            found = [
                self._own(image[None], row) for image, row in zip(images, targets, strict=True)
            ]
        nothing = torch.zeros(0, 1, 1)
        return [
            {name: maps[name].cpu() if maps else nothing for name in self.names} for maps in found
        ]

    def _own(self, image: Tensor, labels: Sequence[int]) -> Records:
        if not labels:
            return {}
        local = self.clip.with_texts([self.texts[label] for label in labels])
        found = attribute_many(make_all(local, self.methods), image)
        return {name: maps[0] for name, maps in found.items()}


class AskForLabels(Asking):
    """The best class of every pixel of the picture, or the background where none is likely."""

    def __init__(
        self,
        clip: ZeroShotClassifier,
        data: ImageDataset,
        methods: Mapping[str, Method],
        view: View,
        judge: Judge,
    ) -> None:
        if view.background is not None and data.background is None:
            raise ValueError(f"the view has a threshold of the background; {data.name} has none")
        self.judge, self.view, self.names = judge, view, tuple(methods)
        classes = _names(data, view)
        rows = [names if view.synonyms else names[:1] for names in classes.synonyms]
        self.clip = clip.with_texts([name for names in rows for name in names])
        owners = [label for label, names in enumerate(rows) for _ in names]
        self.owners = torch.tensor(owners, device=clip.device)
        self.methods = make_all(self.clip, methods)
        self.background = data.background or 0
        self.scale = view.scale or float(clip.model.logit_scale.detach().exp())

    @torch.no_grad()  # methods that need gradients enable them themselves
    def found(self, batch: Sequence[Shown]) -> list[Records]:
        images = stacked(batch, self.clip.device)
        if self.view.keep_aspect:
            patch = self.clip.tower.patch_size
            score = partial(attribute_many, self.methods)
            scores = [picture_scores(score, image, self.view, patch) for image in images]
        else:
            together = attribute_many(self.methods, images)
            scores = [
                {name: found[index] for name, found in together.items()}
                for index in range(len(batch))
            ]
        return [
            {name: self._labels(said[name], image, shown).cpu() for name in self.names}
            for shown, said, image in zip(batch, scores, images, strict=True)
        ]

    def _labels(self, scores: Tensor, image: Tensor, shown: Shown) -> Tensor:
        """(H, W) at the picture's size, of scores (T, h, w)."""
        seen: Sequence[float] = shown.size
        if not self.view.keep_aspect:
            seen = seen_part(self.clip, image.shape[-2:], shown.size)
        best, highest = best_of(enlarged(scores, shown.size, seen), shown.size, scores)
        labels = self.owners[best]
        if self.view.background is None:
            return labels
        parts = enlarged(scores, shown.size, seen)
        probability = probability_of(highest, parts, self.scale)
        return labels.where(probability >= self.view.background, self.background)


class AskForScores(Asking):
    """Every class's score of whole images, by each method's form of feature surgery."""

    def __init__(
        self,
        clip: ZeroShotClassifier,
        data: ImageDataset,
        methods: Mapping[str, Method],
        view: View,
        judge: Judge,
    ) -> None:
        if view.keep_aspect or view.synonyms or view.texts != "classes":
            raise ValueError("recognition asks squashed images for each class by one name")
        self.judge = judge
        self.clip = clip.with_texts(_names(data, view).first)
        self.forms = {
            name: (method.variant, method.inverse_temperature)
            for name, method in make_all(self.clip, methods).items()
            if isinstance(method, DualPathAttribution)
        }
        self.names = tuple(self.forms)
        if not self.names:
            raise ValueError(
                "recognition takes the dense methods of this package alone; none of "
                f"{', '.join(methods)} is"
            )

    @torch.no_grad()
    def found(self, batch: Sequence[Shown]) -> list[Records]:
        pooled = self.clip.image_features(stacked(batch, self.clip.device))
        scores = {
            name: pooled_scores(self.clip, pooled, form, inverse_temperature).cpu()
            for name, (form, inverse_temperature) in self.forms.items()
        }
        return [{name: scores[name][i] for name in self.names} for i in range(len(batch))]


Ask = Callable[[ZeroShotClassifier, ImageDataset, Mapping[str, Method], View, Judge], Asking]
ASKING: Mapping[str, Ask] = {
    "localization": AskForMaps,
    "segmentation": AskForLabels,
    "recognition": AskForScores,
    "points": AskForMaps,
}


def _names(data: ImageDataset, view: View) -> Classes:
    """The classes by the names that the view has for them.

    Raises:
        ValueError: as many names as the data set has no classes.
    """
    if view.classes is None:
        return data.classes
    classes = Classes.named(view.classes)
    if len(classes) != len(data.classes):
        raise ValueError(
            f"classes {view.classes!r} are {len(classes)}, {data.name} has {len(data.classes)}"
        )
    return classes
