"""The embedded model as a classifier."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Self

from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.demo import MODEL_FOLDER
from captum_clip_surgery.demo._scenes import nouns, prompt_templates, unknown_words
from captum_clip_surgery.models.text._templates import Template
from captum_clip_surgery.queries import Query


class DemoClassifier(ZeroShotClassifier):
    """The embedded model, which warns of words that its training did not cover.

    `ZeroShotClassifier.demo` makes one.

    Args:
        *arguments: As for `ZeroShotClassifier`.
        **options: As for `ZeroShotClassifier`.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.warn_of_unknown_words()

    @classmethod
    def load(
        cls,
        texts: Iterable[str],
        distractors: Iterable[str] | None = None,
        templates: Sequence[Template] | None = None,
    ) -> Self:
        """Load the embedded model.

        Args:
            texts: The classes.
            distractors: Further texts that compete in feature surgery but are not targets.
            templates: Templates of prompts; None means those of the model's training.
        """
        templates = prompt_templates() if templates is None else templates
        return cls.from_pretrained(f"local-dir:{MODEL_FOLDER}", None, texts, distractors, templates)

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The nouns that the model knows."""
        return nouns()

    def with_texts(self, texts: Iterable[str], distractors: Iterable[str] | None = None) -> Self:
        """Return a classifier with other texts that shares model, templates and cached features.

        Args:
            texts: The classes.
            distractors: Further texts that compete in feature surgery but are not targets.
        """
        clip = super().with_texts(texts, distractors)
        clip.warn_of_unknown_words()
        return clip

    def with_queries(
        self, queries: Iterable[Query], distractors: Iterable[Query] | None = None
    ) -> Self:
        """Return a classifier of texts and other queries that shares the model.

        Args:
            queries: Texts, and queries of `captum_clip_surgery.queries`.
            distractors: Further queries that compete in feature surgery but are not targets.
        """
        clip = super().with_queries(queries, distractors)
        clip.warn_of_unknown_words()
        return clip

    def warn_of_unknown_words(self) -> None:
        """Warn of words in texts and templates that the model's training did not cover."""
        templates = [template for template in self.templates if isinstance(template, str)]
        unknown = unknown_words([*self._text.texts, *templates])
        if unknown:
            warnings.warn(
                f"the embedded model was not trained on: {', '.join(unknown)}. It knows "
                f"{len(nouns())} nouns, listed in demo/nouns.txt of the package",
                stacklevel=3,
            )
