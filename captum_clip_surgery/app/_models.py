"""The models that users choose from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product

from captum_clip_surgery.app._code import Model
from captum_clip_surgery.app._explaining import Explainer
from captum_clip_surgery.app._images import PHOTO_EXAMPLE, SCENES
from captum_clip_surgery.attr._registry import METHODS


class Models:
    """Models by title, in the order in which they are offered; the first one is the default.

    Args:
        served: At least one model, and its origin.

    Raises:
        ValueError: If a model is given twice.
    """

    def __init__(self, served: Sequence[tuple[Explainer, Model]]) -> None:
        self._served = {model.title: (explainer, model) for explainer, model in served}
        if len(self._served) < len(served):
            raise ValueError(
                f"{len(served)} models given, but only {len(self._served)} have different names "
                f"({', '.join(self._served)}); name each once"
            )
        self.titles = list(self._served)
        self.explainers = [explainer for explainer, _ in self._served.values()]
        self._pretrained = [model.name is not None for _, model in self._served.values()]
        self.any_pretrained = any(self._pretrained)

    def get(self, title: str) -> tuple[Explainer, Model]:
        """Return a model and its origin; "" stands for the first.

        Raises:
            ValueError: If there is no such model.
        """
        if title and title not in self._served:
            raise ValueError(
                f"the page has no model {title!r:.80}; choose one of {', '.join(self.titles)}"
            )
        return self._served[title or self.titles[0]]

    def examples(self) -> list[int]:
        """Return the numbers of the examples that are offered; the first one is shown first.

        The photograph is among them only if a model is pretrained, and comes first if the first
        model is.
        """
        scenes = list(range(len(SCENES)))
        if self._pretrained[0]:
            return [PHOTO_EXAMPLE, *scenes]
        return [*scenes, PHOTO_EXAMPLE] if self.any_pretrained else scenes

    def methods(self) -> list[str]:
        """Return the methods that are defined on at least one model."""
        defined = {name for explainer in self.explainers for name in explainer.methods}
        return [name for name in METHODS if name in defined]

    def larger_sides(self) -> list[int]:
        """Return sides in pixels to choose from besides each model's own."""
        return sorted({side for explainer in self.explainers for side in explainer.sides()[1:]})

    def vocabulary(self) -> tuple[str, ...] | None:
        """Return the nouns of the embedded model, or None if it is not among the models."""
        vocabularies = (explainer.clip.vocabulary for explainer in self.explainers)
        return next((nouns for nouns in vocabularies if nouns is not None), None)

    def forget(self, digests: Iterable[str]) -> None:
        """Drop everything cached of images."""
        for digest, explainer in product(digests, self.explainers):
            explainer.forget(digest)
