"""Which texts make which class of a segmentation, and what is background."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.models.text import check_texts

BACKGROUND = "background"
#: Ways to make one score of several names of a class.
MERGES = ("max", "mean")


@dataclass(frozen=True)
class Vocabulary:
    """Which texts make which class.

    `clip` has the texts of all `classes` and of the background, `members` holds for each class that
    has texts their indices. `threshold` makes pixels the background, whose class has no texts then.
    """

    clip: ZeroShotClassifier
    classes: tuple[str, ...]
    members: tuple[tuple[int, ...], ...]
    merge: str
    threshold: float | None

    @classmethod
    def of(
        cls,
        clip: ZeroShotClassifier,
        classes: Mapping[str, Sequence[str]] | None,
        background: float | Sequence[str] | None,
        merge: str,
        alone: bool = False,
    ) -> Vocabulary:
        """The classes that `segment`'s arguments ask for; `alone` allows a single one."""
        if merge not in MERGES:
            raise ValueError(f"merge {merge!r} is none of {', '.join(MERGES)}")
        if isinstance(background, str):
            raise TypeError(f"background is the string {background!r}; pass [{background!r}]")
        named = _named(clip, classes)
        _check_once(named)
        names, members = tuple(named), tuple(named.values())
        if background is None:
            if len(members) == 1 and not alone:
                raise ValueError(
                    f"one class, {names[0]!r}, and no background: every pixel would be it. Give "
                    "more texts, or background=[...] texts for what it is not"
                )
            return cls(clip, names, members, merge, None)
        if BACKGROUND in names:
            raise ValueError(
                f"a class is named {BACKGROUND!r}; name it otherwise, or pass its texts"
            )
        if isinstance(background, (int, float)):
            return cls(clip, (BACKGROUND, *names), members, merge, _threshold(background, names))
        texts = check_texts(background, "background text")
        if not texts:
            raise ValueError("background has no texts; None is no background")
        double = [text for text in texts if text in clip.texts]
        if double:
            raise ValueError(f"background text {double[0]!r} is a text of the classifier as well")
        start = len(clip.texts)
        own = tuple(range(start, start + len(texts)))
        extended = clip.with_texts([*clip.texts, *texts])
        return cls(extended, (BACKGROUND, *names), (own, *members), merge, None)

    def merged(self, scores: Tensor) -> Tensor:
        """Scores of texts (N, T, h, w) as scores of classes (N, K, h, w)."""
        if self.members == tuple((i,) for i in range(scores.shape[1])):
            return scores
        reduce = torch.Tensor.amax if self.merge == "max" else torch.Tensor.mean
        return torch.stack([reduce(scores[:, list(rows)], 1) for rows in self.members], dim=1)


def _named(
    clip: ZeroShotClassifier, classes: Mapping[str, Sequence[str]] | None
) -> dict[str, tuple[int, ...]]:
    """Indices of each class's texts."""
    if classes is None:
        named: dict[str, tuple[int, ...]] = {t: (i,) for i, t in enumerate(clip.texts)}
        if len(named) < len(clip.texts):
            twice = next(t for t in named if clip.texts.count(t) > 1)
            clip.index(twice)  # refuses it, and says where it stands
        return named
    if not isinstance(classes, Mapping) or not classes:
        raise TypeError(
            f'classes is {classes!r}, expected names by class: {{"person": ["person", "man"]}}'
        )
    return {
        name: tuple(clip.index(text) for text in check_texts(texts, f"name of {name!r},"))
        for name, texts in classes.items()
    }


def _check_once(named: Mapping[str, Sequence[int]]) -> None:
    owner: dict[int, str] = {}
    for name, members in named.items():
        if not members:
            raise ValueError(f"class {name!r} has no names")
        if len(set(members)) < len(members):
            raise ValueError(f"class {name!r} has a name twice")
        for index in members:
            if owner.setdefault(index, name) != name:
                raise ValueError(f"text {index} names both {owner[index]!r} and {name!r}")


def _threshold(background: float, names: Sequence[str]) -> float:
    if isinstance(background, bool) or not 0 <= background <= 1:
        raise ValueError(f"background {background!r} is neither a threshold in 0..1 nor texts")
    if len(names) == 1:
        raise ValueError(
            f"one class, {names[0]!r}, whose probability is 1 everywhere; a threshold needs more, "
            "or pass background=[...] texts for what it is not"
        )
    return float(background)
