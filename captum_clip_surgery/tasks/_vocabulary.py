"""The texts of each class of a segmentation, and its background."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.models.text._templates import check_texts

#: Name of the class of everything else.
BACKGROUND = "background"
#: Texts of common surroundings.
SURROUNDINGS = (
    "wall",
    "floor",
    "ceiling",
    "window",
    "building",
    "street",
    "sky",
    "cloud",
    "tree",
    "grass",
    "ground",
    "mountain",
    "water",
)
#: What the embedded model was trained to call its backgrounds.
EMBEDDED_BACKGROUND = ("a background",)
#: How the scores of several names of a class become one.
MERGES = ("max", "mean")


@dataclass(frozen=True)
class Vocabulary:
    """The classes of a segmentation and their texts.

    Args:
        clip: A classifier with the texts of all classes.
        classes: Names of the classes, by label.
        members: Indices of each class's texts; empty for a background without texts.
        merge: "max", where the best name of a class counts, or "mean".
        threshold: Probability in 0..1 below which a pixel is background, of a softmax over all
            names ("max") or classes ("mean"). None means no threshold.
        background: Label of the background.
        min_area: Share in 0..1 of the pixels that are not background; a class that covers less
            becomes background. None keeps all classes.
    """

    clip: ZeroShotClassifier
    classes: tuple[str, ...]
    members: tuple[tuple[int, ...], ...]
    merge: str = "max"
    threshold: float | None = None
    background: int = 0
    min_area: float | None = None

    @property
    def labels(self) -> list[int]:
        """The class of each row of `rows`."""
        one = self.merge == "mean"
        return [k for k, texts in enumerate(self.members) for _ in texts[: 1 if one else None]]

    def rows(self, scores: Tensor) -> Tensor:
        """Return the rows (N, R, h, w) that compete for pixels, from scores of texts (N, T, h, w).

        These are the names of all classes, or the means over each class's names. Of several names
        the best one is taken only after upsampling, as published evaluations do.
        """
        if self.merge == "mean":
            return torch.stack([scores[:, list(m)].mean(1) for m in self.members if m], 1)
        texts = [text for members in self.members for text in members]
        return scores if texts == list(range(scores.shape[1])) else scores[:, texts]


def make_vocabulary(
    clip: ZeroShotClassifier,
    classes: Mapping[str, Sequence[str]] | None = None,
    background: float | Sequence[str] | None = None,
    merge: str = "max",
    threshold: float | None = None,
    allow_single: bool = False,
    min_area: float | None = None,
) -> Vocabulary:
    """Check the options of `segment` that concern classes, and build their vocabulary.

    Args:
        clip: The classifier.
        classes: Names of each class, all of them texts of the classifier.
        background: Texts of the background, or a threshold.
        merge: One of `MERGES`.
        threshold: A threshold besides texts of the background.
        allow_single: Whether one class without a background is allowed.
        min_area: Share of the pixels that are not background, below which a class becomes
            background.

    Raises:
        TypeError: If `background` is a string or `classes` is not a mapping of lists of texts.
        ValueError: If a class has no names or shares one, `background` repeats a text of the
            classifier, a threshold is out of range, one class is left without an alternative, or
            differences compete with other queries.
    """
    if merge not in MERGES:
        raise ValueError(f"merge must be one of {', '.join(MERGES)}, got {merge!r}")
    if isinstance(background, str):
        raise TypeError(f"background must be a list, got {background!r}; pass [{background!r}]")
    members = _members(clip, classes)
    _check_disjoint(members)
    _check_differences(clip, members.values())
    names = tuple(members)
    if min_area is not None and (isinstance(min_area, bool) or not 0 <= min_area <= 1):
        raise ValueError(f"min_area must be a share from 0 to 1, got {min_area!r}")
    if background is None:
        if min_area is not None:
            raise ValueError(
                f"min_area {min_area!r} makes small classes background; pass background= as well"
            )
        if threshold is not None:
            raise ValueError(
                f"threshold {threshold!r} needs texts of the background; without them pass "
                f"background={threshold!r}"
            )
        if len(names) == 1 and not allow_single:
            raise ValueError(
                f"one class, {names[0]!r}, and no background: every pixel would get it. Pass more "
                "texts, or background=[...], texts for everything else"
            )
        return Vocabulary(clip, names, tuple(members.values()), merge)
    if BACKGROUND in names:
        raise ValueError(f"a class is named {BACKGROUND!r}; rename it, or pass its texts instead")
    names, texts = (BACKGROUND, *names), tuple(members.values())
    if isinstance(background, (int, float)):
        if threshold is not None:
            raise ValueError(
                f"background={background!r} and threshold={threshold!r} are both thresholds; pass "
                "one of them"
            )
        if len(texts) == 1:
            raise ValueError(
                f"one class, {names[1]!r}, whose probability is 1 everywhere; a threshold needs "
                "more, or pass background=[...], texts for everything else"
            )
        return Vocabulary(
            clip, names, ((), *texts), merge, _check_threshold(background), min_area=min_area
        )
    extended, added = _with_background(clip, background)
    _check_differences(extended, (added, *texts))
    limit = None if threshold is None else _check_threshold(threshold)
    return Vocabulary(extended, names, (added, *texts), merge, limit, min_area=min_area)


def default_background(clip: ZeroShotClassifier) -> list[str]:
    """Return texts for the background of `segment`, which no data set has tuned.

    Args:
        clip: The classifier; its own texts are left out.

    Example::

        >>> default_background(ZeroShotClassifier.demo(["dog"]))
        ['a background']
    """
    texts = SURROUNDINGS if clip.vocabulary is None else EMBEDDED_BACKGROUND
    own = {text.casefold() for text in clip.texts}
    return [text for text in texts if text not in own]


def _members(
    clip: ZeroShotClassifier, classes: Mapping[str, Sequence[str]] | None
) -> dict[str, tuple[int, ...]]:
    """Return the indices of each class's texts."""
    if classes is None:
        members: dict[str, tuple[int, ...]] = {text: (i,) for i, text in enumerate(clip.texts)}
        if len(members) < len(clip.texts):
            clip.index(next(text for text in members if clip.texts.count(text) > 1))  # raises
        return members
    if not isinstance(classes, Mapping) or not classes:
        raise TypeError(
            "classes must map names to lists of texts, such as "
            f'{{"person": ["person", "man"]}}, got {classes!r}'
        )
    return {
        name: tuple(clip.index(text) for text in check_texts(texts, f"name of {name!r},"))
        for name, texts in classes.items()
    }


def _check_disjoint(members: Mapping[str, Sequence[int]]) -> None:
    owner: dict[int, str] = {}
    for name, texts in members.items():
        if not texts:
            raise ValueError(f"class {name!r} has no names")
        if len(set(texts)) < len(texts):
            raise ValueError(f"class {name!r} has a name twice")
        for text in texts:
            if owner.setdefault(text, name) != name:
                raise ValueError(f"text {text} names both {owner[text]!r} and {name!r}")


def _check_differences(clip: ZeroShotClassifier, members: Iterable[Sequence[int]]) -> None:
    """Check that cosines do not compete with differences of cosines, which are around zero."""
    indices, are = [index for texts in members for index in texts], clip.differences
    ours = [index for index in indices if are[index]]
    others = [index for index in indices if not are[index]]
    if ours and others:
        raise ValueError(
            f"{clip.texts[ours[0]]!r} is a difference and {clip.texts[others[0]]!r} is not, so "
            "their scores cannot compete for pixels; make all classes differences, without texts "
            "of the background"
        )


def _with_background(
    clip: ZeroShotClassifier, background: Sequence[str]
) -> tuple[ZeroShotClassifier, tuple[int, ...]]:
    """Return a classifier with the background's texts added, and their indices."""
    texts = check_texts(background, "background text")
    if not texts:
        raise ValueError("background has no texts; None means no background")
    known = [text for text in texts if text in clip.texts]
    if known:
        raise ValueError(f"background text {known[0]!r} is also the text of a class")
    count = len(clip.texts)
    extended = clip.with_texts([*clip.texts, *texts], clip.distractors)
    return extended, tuple(range(count, count + len(texts)))


def _check_threshold(threshold: float) -> float:
    if isinstance(threshold, bool) or not 0 <= threshold <= 1:
        raise ValueError(f"background must be texts or a threshold from 0 to 1, got {threshold!r}")
    return float(threshold)
