"""Predictors for each task: from batches of images to maps, labels or scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from captum_clip_surgery.attr import DualPathAttribution, Method, attribute_many
from captum_clip_surgery.attr._coverage import cover_image
from captum_clip_surgery.attr._engine import Explainer, attribute_each
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.datasets import Classes, ImageDataset
from captum_clip_surgery.evaluation._data import EvalSample, stack_pixels
from captum_clip_surgery.evaluation._protocol import View
from captum_clip_surgery.queries._features import query_names
from captum_clip_surgery.tasks._prompts import PromptMaker, covered_part
from captum_clip_surgery.tasks._recognition import Recognizer
from captum_clip_surgery.tasks._segmenter import Segmenter
from captum_clip_surgery.tasks._sliding import Windows
from captum_clip_surgery.tasks._vocabulary import Vocabulary

#: What each method predicts for one image, on the CPU.
Predictions = dict[str, Tensor]


class Predictor(ABC):
    """Base class of predictors: methods run on a data set's images as a view shows them.

    Args:
        clip: The classifier, whose texts are replaced by names of the data set's classes.
        data: The data set.
        methods: Functions that create methods for a classifier, by name.
        view: How images are shown and classes are named.

    Attributes:
        names: Names of the methods that the task can run.

    Raises:
        ValueError: If the view has an option that the task does not support, its names do not fit
            the data set's classes, or the task can run none of the methods.
    """

    def __init__(
        self,
        clip: ZeroShotClassifier,
        data: ImageDataset,
        methods: Mapping[str, Method],
        view: View,
    ) -> None:
        self.clip, self.data, self.view, self.methods = clip, data, view, methods
        self.classes = class_names(data, view, clip)
        self.names = tuple(methods)
        self.prepare()

    @abstractmethod
    def prepare(self) -> None:
        """Check the view, embed the texts and create the methods."""

    @abstractmethod
    def predict(
        self, batch: Sequence[EvalSample], labels: Sequence[Sequence[int]]
    ) -> list[Predictions]:
        """Return the predictions of each method for each image.

        Args:
            batch: Images.
            labels: For each image the classes that the task needs maps of.
        """


class MapPredictor(Predictor):
    """Maps (K, h, w) of the classes that an image's annotation concerns.

    All classes except the background compete, or only those of the image.
    """

    def prepare(self) -> None:
        """Embed the classes' names, and create the methods if all classes compete."""
        if self.view.keep_aspect:
            raise ValueError("maps need squashed images; their view cannot have keep_aspect")
        labels = self.data.foreground
        # All texts are embedded at once in either case: the last bits of a feature depend on the
        # other texts, and must not depend on which images a process sees first.
        self.competing = self.clip.with_texts([self.classes.first[label] for label in labels])
        self.positions = {label: position for position, label in enumerate(labels)}
        self._shared = None if self.view.texts == "present" else self._make(self.competing)

    def _make(self, clip: ZeroShotClassifier) -> dict[str, Explainer]:
        return {name: method(clip) for name, method in self.methods.items()}

    @torch.no_grad()  # methods that need gradients enable them themselves
    def predict(
        self, batch: Sequence[EvalSample], labels: Sequence[Sequence[int]]
    ) -> list[Predictions]:
        """Return maps (K, h, w) of each image's `labels`."""
        images = stack_pixels(batch, self.clip.device)
        if self._shared is not None:
            targets = [[self.positions[label] for label in row] for row in labels]
            maps = attribute_each(self._shared, images, targets)
        else:
            maps = [
                self._among_present(image[None], row)
                for image, row in zip(images, labels, strict=True)
            ]
        nothing = torch.zeros(0, 1, 1)
        return [
            {
                name: cover_image(self.clip, by_method[name][None], images)[0].cpu()
                if by_method
                else nothing
                for name in self.names
            }
            for by_method in maps
        ]

    def _among_present(self, image: Tensor, labels: Sequence[int]) -> Predictions:
        """Return the maps of an image's classes, with no others competing."""
        if not labels:
            return {}
        local = self.clip.with_texts([self.classes.first[label] for label in labels])
        return {name: maps[0] for name, maps in attribute_many(self._make(local), image).items()}


class PointPredictor(MapPredictor):
    """Foreground (K, h, w) of the classes that an image's points are of, by `tasks.prompts`.

    It is where the mask that prompts SAM is positive: the upper half of the map's range.
    """

    def predict(
        self, batch: Sequence[EvalSample], labels: Sequence[Sequence[int]]
    ) -> list[Predictions]:
        """Return the foreground of each image's `labels`, of bool."""
        maps = super().predict(batch, labels)
        return [
            {name: self._foreground(values, sample, len(row)) for name, values in by_method.items()}
            for sample, row, by_method in zip(batch, labels, maps, strict=True)
        ]

    def _foreground(self, maps: Tensor, sample: EvalSample, count: int) -> Tensor:
        shown = (sample.pixels.shape[-2], sample.pixels.shape[-1])
        covered = covered_part(self.clip, maps, shown, sample.size)
        maker = PromptMaker(sample.size, covered, boxes=False, masks=True)
        prompts = maker.prompts([""] * count, maps)
        masks = [torch.from_numpy(prompt.foreground(sample.size)) for prompt in prompts]
        return torch.stack(masks) if masks else torch.zeros(0, 1, 1, dtype=torch.bool)


class SegmentationPredictor(Predictor):
    """Labels (H, W) of an image's pixels, by `tasks.segment`."""

    def prepare(self) -> None:
        """Create the segmenter."""
        view, background = self.view, self.data.background
        if background is None and (view.background, view.min_area) != (None, None):
            raise ValueError(
                f"the view has a threshold of the background; {self.data.name} has no background"
            )
        rows = [names if view.synonyms else names[:1] for names in self.classes.synonyms]
        if background is not None and not view.background_name:
            rows[background] = rows[background][1:]
            if not rows[background]:
                raise ValueError(
                    "background_name = false leaves the background without a name; set synonyms, "
                    "and classes to a file with further names"
                )
        texts = [name for names in rows for name in names]
        positions = iter(range(len(texts)))
        self._segmenter = Segmenter(
            Vocabulary(
                self.clip.with_texts(texts),
                self.classes.first,
                tuple(tuple(next(positions) for _ in names) for names in rows),
                threshold=view.background,
                background=background or 0,
                min_area=view.min_area,
            ),
            self.methods,
            Windows(view.window, view.stride),
            stepwise=view.keep_aspect,
            scale=view.scale,
            refine=view.refine,
        )

    def predict(
        self, batch: Sequence[EvalSample], labels: Sequence[Sequence[int]]
    ) -> list[Predictions]:
        """Return labels (H, W) at each image's own size."""
        images = stack_pixels(batch, self.clip.device)
        return [
            {name: segmentation.labels.cpu() for name, segmentation in by_method.items()}
            for by_method in self._segmenter(images, [sample.size for sample in batch])
        ]


class RecognitionPredictor(Predictor):
    """Scores (K,) of all classes for an image, by `tasks.recognize`."""

    def prepare(self) -> None:
        """Create the recognizer, of the methods that have feature surgery."""
        view = self.view
        if view.keep_aspect or view.synonyms or view.texts != "classes":
            raise ValueError(
                "recognition scores squashed images for all classes by one name each; its view "
                'cannot have keep_aspect, synonyms or texts = "present"'
            )
        local = self.clip.with_texts(self.classes.first)
        supported = {
            name: method
            for name, method in self.methods.items()
            if isinstance(method(local), DualPathAttribution)
        }
        if not supported:
            raise ValueError(
                "recognition needs dense methods with feature surgery (DualPathAttribution), got "
                f"{', '.join(self.methods)}"
            )
        self.names = tuple(supported)
        self._recognizer = Recognizer(local, supported)

    def predict(
        self, batch: Sequence[EvalSample], labels: Sequence[Sequence[int]]
    ) -> list[Predictions]:
        """Return scores (K,) of all classes."""
        by_method = self._recognizer(stack_pixels(batch, self.clip.device))
        scores = {name: values.cpu() for name, values in by_method.items()}
        return [{name: scores[name][i] for name in self.names} for i in range(len(batch))]


def class_names(data: ImageDataset, view: View, clip: ZeroShotClassifier) -> Classes:
    """Return the names of a data set's classes that a view uses.

    A class whose own name is that of a query of the classifier other than a text has only this one.

    Raises:
        ValueError: If there are not as many as the data set has classes, the background is a query,
            or another class has the name of a query, too.
    """
    classes = data.classes if view.classes is None else Classes.named(view.classes)
    if len(classes) != len(data.classes):
        raise ValueError(
            f"classes {view.classes!r} are {len(classes)}, {data.name} has {len(data.classes)}"
        )
    queries, rows = query_names(clip), []
    for label, names in enumerate(classes.synonyms):
        name = data.classes.first[label]
        if name not in queries:
            shared = queries.intersection(names if view.synonyms else names[:1])
            if shared:
                raise ValueError(
                    f"{min(shared)!r} names a query, and is a name of the class {name!r} as well; "
                    "choose a protocol without synonyms"
                )
        elif label == data.background:
            raise ValueError(
                f"the background {name!r} of {data.name} cannot be given by an image; leave out "
                "its query"
            )
        rows.append((name,) if name in queries else names)
    return Classes(tuple(rows), classes.source)
