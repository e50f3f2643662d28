"""Text features of a classifier: computed from texts, or given as a tensor.

A third kind, those of queries, is in `captum_clip_surgery.queries`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_clip_surgery._utils.tensors import tensor_digest
from captum_clip_surgery.models._validation import check_features, check_modes
from captum_clip_surgery.models.text._encoder import PromptEncoder
from captum_clip_surgery.models.text._templates import Template, check_texts


class TextFeatures(Protocol):
    """The features of a classifier's texts and distractors."""

    def features(self) -> Tensor:
        """Return the L2-normalized features (T, C) in the order texts, distractors."""

    def empty_features(self) -> Tensor | None:
        """Return the L2-normalized feature (C,) of the empty text, or None if it is unknown.

        If it cancels in some of the features, one row for each of them is returned, (T, C).
        """

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts that features are computed from."""

    @property
    def requires_grad(self) -> bool:
        """Whether gradients flow to the features."""

    @property
    def has_empty_features(self) -> bool:
        """Whether the feature of the empty text is known or can be computed."""

    @property
    def templates(self) -> tuple[Template, ...]:
        """The templates of prompts; empty if features were given."""

    @property
    def encoder(self) -> PromptEncoder:
        """The encoder of further texts.

        Raises:
            TypeError: If there is none.
        """

    def with_texts(self, texts: tuple[str, ...]) -> TextFeatures:
        """Return the features of other texts.

        Raises:
            ValueError: If features cannot be computed from texts.
        """

    def describe(self) -> Any:
        """Return, as JSON, what else features depend on besides texts, templates and the model.

        None if they depend on nothing else.
        """


class EncodedTexts:
    """Features computed from texts, and computed again when what determines them changes.

    Args:
        encoder: The text side of the model.
        texts: Texts and distractors.
    """

    has_empty_features = True
    requires_grad = False

    def __init__(self, encoder: PromptEncoder, texts: tuple[str, ...]) -> None:
        self.texts = texts
        self._encoder = encoder
        self._cached: tuple[object, Tensor] | None = None  # a generation of the encoder

    # Cached features are not part of a compiled graph.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def features(self) -> Tensor:
        """Return the L2-normalized features (T, C) in the order texts, distractors."""
        generation = self._encoder.generation()
        cached = self._cached
        if cached is None or cached[0] is not generation:
            check_modes(self._encoder.model)
            # One tuple, so that no thread reads features of another generation.
            cached = self._cached = generation, self._encoder(self.texts)
        return cached[1]

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def empty_features(self) -> Tensor:
        """Return the L2-normalized feature (C,) of the empty text."""
        return self._encoder([""])[0]

    @property
    def templates(self) -> tuple[Template, ...]:
        """The templates of prompts."""
        return self._encoder.templates

    @property
    def encoder(self) -> PromptEncoder:
        """The encoder, checked against the model's own `encode_text`."""
        self._encoder.check()
        return self._encoder

    def with_texts(self, texts: tuple[str, ...]) -> EncodedTexts:
        """Return the features of other texts, by the same encoder and its cache."""
        return EncodedTexts(self._encoder, texts)

    def describe(self) -> None:
        """Return None: texts, templates and the model determine the features."""


class GivenFeatures(nn.Module):
    """Features given as tensors, normalized at each use so that gradients flow to them.

    Args:
        features: Features (T, C).
        empty: Feature (C,) of the empty text, or None if it is unknown.
    """

    texts: tuple[str, ...] = ()
    given: Tensor
    empty: Tensor | None
    templates: tuple[Template, ...] = ()

    def __init__(self, features: Tensor, empty: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("given", features, persistent=False)
        self.register_buffer("empty", empty, persistent=False)

    @classmethod
    def checked(
        cls, features: Tensor, empty: Tensor | None, width: int, device: torch.device
    ) -> GivenFeatures:
        """Return features from a user.

        Args:
            features: Features, expected to be (T, width).
            empty: Feature of the empty text, expected to be (width,) or (1, width), or None.
            width: Width of the joint space.
            device: The model's device.

        Raises:
            TypeError: If features are not floating-point tensors.
            ValueError: If they have another width, or rows that are zero, NaN or infinite.
        """
        check_features(features, width, "features", device)
        if empty is not None:
            if isinstance(empty, Tensor) and empty.ndim == 1:
                empty = empty[None]
            check_features(empty, width, "empty_features", device, rows=1)
            empty = empty[0]
        return cls(features, empty)

    def features(self) -> Tensor:
        """Return the L2-normalized features (T, C)."""
        return F.normalize(self.given, dim=-1)

    def empty_features(self) -> Tensor | None:
        """Return the L2-normalized feature (C,) of the empty text, or None if it is unknown."""
        return None if self.empty is None else F.normalize(self.empty, dim=-1)

    def names(self, texts: Iterable[str] | None) -> tuple[str, ...]:
        """Return the names (T) of the features; None means numbers.

        Raises:
            TypeError: If `texts` has the wrong type.
            ValueError: If there are not as many as features, or one is empty.
        """
        count = len(self.given)
        names = check_texts([f"feature {i}" for i in range(count)] if texts is None else texts)
        if len(names) != count:
            raise ValueError(f"got {len(names)} texts for {count} features; pass a text for each")
        return names

    @property
    def requires_grad(self) -> bool:
        """Whether one of the given tensors requires gradients."""
        empty = self.empty is not None and self.empty.requires_grad
        return self.given.requires_grad or empty

    @property
    def has_empty_features(self) -> bool:
        """Whether the feature of the empty text was given."""
        return self.empty is not None

    @property
    def encoder(self) -> PromptEncoder:
        """Raise, because features given as tensors have no encoder.

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            "a classifier made by from_features has no text tower to explain; make one from the "
            "model and texts"
        )

    def with_texts(self, texts: tuple[str, ...]) -> GivenFeatures:
        """Raise, because features given as tensors cannot be computed for other texts.

        Raises:
            ValueError: Always.
        """
        raise ValueError("a classifier made by from_features has no texts to replace")

    def describe(self) -> str:
        """Return a digest of the features."""
        return tensor_digest(self.given)
