"""Results of an audit for each class and for the collection."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_clip_surgery.collection._evidence import centered
from captum_clip_surgery.datasets import ImageDataset
from captum_clip_surgery.decomposition import Decomposition


@dataclass(frozen=True)
class HeadLift:
    """An attention head that carries evidence for a class from outside its object.

    Args:
        block: Index of the block.
        head: Index of the head.
        lift: Its part of the lift, as a mean over the class's images.
        excess: Its lift minus the median over the other classes.
    """

    block: int
    head: int
    lift: float
    excess: float


@dataclass(frozen=True)
class Recognition:
    """Recognition rates of a class.

    Args:
        recall: Share of the class's images in which it scores above all classes not shown.
        false_calls: Share of the other images in which it scores highest.
    """

    recall: float
    false_calls: float


@dataclass(frozen=True)
class Rise:
    """How much a pasted part of an image raises the evidence for a class.

    Args:
        mean: Mean over the images that the part comes from, in units of the cosine; NaN if none
            has such a part.
        error: Standard error of the mean; NaN for fewer than two images.
    """

    mean: float
    error: float


@dataclass(frozen=True)
class Cue:
    """Where the cue is that a class leans on.

    Parts of the class's images are pasted into images that do not show it. From the rise of the
    evidence for the class, that of pasting the same patches of a third image without the class is
    subtracted.

    Args:
        place: "border" or "background", whichever raises the evidence more; None if neither rise
            exceeds 3 standard errors.
        border: Rise by what is outside the object in the outer eighth of the image.
        background: Rise by the rest of what is outside the object.
        texts: Up to 5 of the cue texts, by how much the cosine with them rises; only those whose
            cosine rises.
    """

    place: str | None
    border: Rise
    background: Rise
    texts: tuple[tuple[str, float], ...] = ()

    def __str__(self) -> str:
        """Return the cue in words."""
        return {
            "border": "the border of the image",
            "background": "the background",
            None: "something outside its object",
        }[self.place]


@dataclass(frozen=True)
class ClassAudit:
    """Result of an audit for one class.

    Args:
        name: Name of the class.
        images: Number of images that show it.
        lift: Evidence from outside the object, beyond what as many background patches of images
            without the class give, in the median of the class's images; in units of the cosine.
        share: Share outside the object, 0..1, of the positive evidence of patches, each beyond the
            mean background patch of images without the class; NaN if there is none.
        area: Share of the patches that are outside the object, 0..1.
        z: Robust standard deviations of `lift` above the median of the classes.
        leans: Whether `z` exceeds the audit's critical value.
        heads: Heads that carry at least half of the excess of the mean lift over the median of the
            other classes, strongest first; empty if there is no excess.
        before: How the class is recognized.
        after: The same, if the class is scored without these heads' contributions.
        strongest: Names of the images with the most evidence outside the object, each with it.
        maps: Evidence of the patches outside the object in these images, (images, h, w).
        cue: Where the cue is, if the class leans on one.
    """

    name: str
    images: int
    lift: float
    share: float
    area: float
    z: float
    leans: bool
    heads: tuple[HeadLift, ...]
    before: Recognition
    after: Recognition
    strongest: tuple[tuple[str, float], ...]
    maps: Tensor
    cue: Cue | None = None


@dataclass(frozen=True)
class Audit:
    """Result of `audit`.

    Args:
        data: The data set.
        texts: Names of all classes.
        images: Number of images that were read.
        source: How objects were located: "masks" or "surgery".
        classes: The audited classes, by decreasing lift.
        left_out: Reason by name of each class that was not audited.
        unreadable: Reason by name of each image that could not be read.
        false_alarms: Probability that any class is named if their lifts are normally distributed.
        critical: Robust z from which a class is named; None for fewer than 4 classes, of which none
            is named.
        means: Mean contribution (K, blocks, heads) of each head to the evidence for each class, in
            images that do not show it.
        size: (height, width) in pixels of images as the model sees them.
        covered: (height, width) of the part of them that the patches cover.
    """

    data: ImageDataset
    texts: tuple[str, ...]
    images: int
    source: str
    classes: tuple[ClassAudit, ...]
    left_out: Mapping[str, str]
    unreadable: Mapping[str, str]
    false_alarms: float
    critical: float | None
    means: Tensor
    size: tuple[int, int]
    covered: tuple[int, int]

    @property
    def leaning(self) -> tuple[ClassAudit, ...]:
        """The classes that lean on what is outside their object."""
        return tuple(entry for entry in self.classes if entry.leans)

    def scores_without(self, parts: Decomposition) -> Tensor:
        """Return the scores (N, K) of images, with named classes scored without their heads.

        For every class in `leaning`, the contributions of its heads are replaced by their means
        over the audited images that do not show it. Scores of other classes do not change.

        Args:
            parts: Decomposition of images for the audited texts, by the same model.

        Returns:
            Cosines minus their mean over the classes; the largest one is the most likely class.

        Raises:
            ValueError: If the decomposition has other texts.
        """
        if parts.texts != self.texts:
            raise ValueError(
                f"the decomposition has the texts {parts.texts!r:.80}, expected those of the "
                f"audit, {self.texts!r:.80}"
            )
        scores, attention = centered(parts)
        for entry in self.leaning:
            text = self.texts.index(entry.name)
            scores[:, text] -= removed(attention[:, text].sum(-1), self.means[text], entry.heads)
        return scores

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        classes = []
        for entry in self.classes:
            values = asdict(entry)
            del values["maps"]
            classes.append(_finite(values))
        return {
            "data": self.data.name,
            "images": self.images,
            "objects": self.source,
            "leaning": [entry.name for entry in self.leaning],
            "false_alarms": self.false_alarms,
            "critical": self.critical,
            "classes": classes,
            "left_out": dict(self.left_out),
            "unreadable": dict(self.unreadable),
        }

    def write(self, folder: Path | str) -> Path:
        """Write `audit.json`, the report `audit.md`, and its pictures.

        Args:
            folder: The folder, created if it does not exist.

        Returns:
            Path of the report.
        """
        from captum_clip_surgery.collection._report import write_report

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        content = json.dumps(self.to_dict(), indent=2) + "\n"
        (folder / "audit.json").write_text(content, encoding="utf-8")
        return write_report(self, folder)


def removed(heads: Tensor, means: Tensor, chosen: tuple[HeadLift, ...]) -> Tensor:
    """Return the contribution of heads to scores (N,), relative to its mean.

    Args:
        heads: Contributions (N, blocks, heads).
        means: Means (blocks, heads) that replace them.
        chosen: The heads.
    """
    difference = heads - means
    total = torch.zeros(len(heads), dtype=difference.dtype)
    for entry in chosen:
        total += difference[:, entry.block, entry.head]
    return total


def _finite(value: Any) -> Any:
    """Replace numbers that JSON does not have by None, in nested dictionaries as well."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return None if isinstance(value, float) and not abs(value) < float("inf") else value
