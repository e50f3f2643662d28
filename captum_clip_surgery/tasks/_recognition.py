"""Multi-label recognition: which of many classes an image shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import overload

import torch
from torch import Tensor

from captum_clip_surgery import functional
from captum_clip_surgery.attr import DualPathAttribution, LayerFeatureCLIPSurgery, Method
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.functional import INVERSE_TEMPERATURE
from captum_clip_surgery.preprocessing import ImageInput
from captum_clip_surgery.tasks._images import Images, Size, batches


@dataclass(frozen=True)
class Recognition:
    """The scores of one image.

    Attributes:
        scores: Scores (K,), raw and signed, comparable between images.
        classes: Names of the classes.
    """

    scores: Tensor
    classes: tuple[str, ...]

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """Return the highest-scoring classes with their scores, best first.

        Args:
            count: Maximum number of classes.

        Example::

            >>> Recognition(torch.tensor([0.5, -0.25, 0.75]), ("dog", "sky", "sea")).top(2)
            [('sea', 0.75), ('dog', 0.5)]
        """
        values, order = self.scores.sort(descending=True, stable=True)
        pairs = zip(order.tolist(), values.tolist(), strict=True)
        return [(self.classes[index], value) for index, value in pairs][:count]

    def above(self, threshold: float) -> list[tuple[str, float]]:
        """Return the classes that score above a threshold with their scores, best first.

        Raises:
            ValueError: If `threshold` is not finite.

        Example::

            >>> Recognition(torch.tensor([0.5, -0.25, 0.75]), ("dog", "sky", "sea")).above(0.5)
            [('sea', 0.75)]
        """
        check_threshold(threshold)
        return [(name, score) for name, score in self.top(len(self.classes)) if score > threshold]


def check_threshold(threshold: float | None) -> None:
    """Raise a ValueError if a threshold is given that is not finite."""
    if threshold is not None and not math.isfinite(threshold):
        raise ValueError(f"threshold must be a finite number, got {threshold}")


class Recognizer:
    """Recognition by the feature surgery of one or several methods, prepared once.

    `recognize` and `evaluate` both call it. All methods share one forward pass of the image tower.

    Args:
        clip: The classifier, whose texts are the classes.
        methods: Functions that create methods for a classifier, by name. All must give a
            `DualPathAttribution`, whose variant of feature surgery is applied to whole images.

    Raises:
        TypeError: If a method gives something else.
        ValueError: If a variant of feature surgery is not defined for the classifier's texts.
    """

    def __init__(self, clip: ZeroShotClassifier, methods: Mapping[str, Method]) -> None:
        self.clip = clip
        self._options: dict[str, tuple[str | None, float]] = {}
        for name, make in methods.items():
            method = make(clip)
            if not isinstance(method, DualPathAttribution):
                raise TypeError(
                    f"recognition applies feature surgery to whole images, which "
                    f"{type(method).__name__} does not have; pass a DualPathAttribution, such as "
                    "LayerCLIPSurgery"
                )
            self._options[name] = method.variant, method.inverse_temperature

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Return the scores (N, K) of preprocessed images (N, 3, H, W) by every method."""
        pooled = self.clip.image_features(images)
        return {
            name: image_scores(self.clip, pooled, *options)
            for name, options in self._options.items()
        }


@overload
def recognize(
    clip: ZeroShotClassifier,
    images: Tensor,
    feature_surgery: str | None = ...,
    inverse_temperature: float = ...,
    size: int | Size | None = ...,
    batch_size: int = ...,
    method: Method | None = ...,
) -> Tensor: ...
@overload
def recognize(
    clip: ZeroShotClassifier,
    images: ImageInput | Sequence[ImageInput],
    feature_surgery: str | None = ...,
    inverse_temperature: float = ...,
    size: int | Size | None = ...,
    batch_size: int = ...,
    method: Method | None = ...,
) -> list[Recognition]: ...
def recognize(
    clip: ZeroShotClassifier,
    images: Images,
    feature_surgery: str | None = "release",
    inverse_temperature: float = INVERSE_TEMPERATURE,
    size: int | Size | None = None,
    batch_size: int = 8,
    method: Method | None = None,
) -> Tensor | list[Recognition]:
    """Score every class for whole images, by feature surgery on the image's own embedding.

    Args:
        clip: The classifier, whose texts are the classes; its distractors compete as well.
        images: Images (PIL images, arrays, paths), or a preprocessed batch (N, 3, H, W).
        feature_surgery: "release" as published, "paper", "empty", None for plain cosines, or "auto"
            ("empty" below 8 texts and distractors, "release" from there).
            "paper" subtracts the same from all scores of an image: it changes which images rank
            first for a class, but not which classes rank first for an image.
        inverse_temperature: Inverse temperature of the softmax that weights the texts.
        size: Side or (height, width) in pixels that the model sees; None means the native
            size.
        batch_size: Number of images in one pass.
        method: Function that creates a `DualPathAttribution` whose feature surgery is applied,
            instead of the two options above.

    Returns:
        For images, a `Recognition` each; for a batch, scores (N, K).

    Raises:
        TypeError: If an image or batch is of the wrong type, or `method` gives no
            `DualPathAttribution`.
        ValueError: If the images do not fit the model or cannot be read, the variant of feature
            surgery is unknown or not defined for the classifier's texts, or `inverse_temperature`
            is not finite.
        FileNotFoundError: If a path does not exist.

    References:
        Li, Wang, Duan, Zhang, Li: A closer look at the explainability of Contrastive
        Language-Image Pre-training. Pattern Recognition 162, 2025 (arXiv 2304.05653).

    Example::

        >>> import numpy as np
        >>> clip = ZeroShotClassifier.demo(["duck", "kiwi"])
        >>> (result,) = recognize(clip, [np.zeros((60, 80, 3), np.uint8)])
        >>> len(result.top())
        2
        >>> recognize(clip, torch.zeros(2, 3, 64, 96)).shape
        torch.Size([2, 2])
    """
    if method is None:
        method = partial(
            LayerFeatureCLIPSurgery,
            feature_surgery=feature_surgery,
            inverse_temperature=inverse_temperature,
        )
    elif (feature_surgery, inverse_temperature) != ("release", INVERSE_TEMPERATURE):
        raise ValueError(
            "feature_surgery and inverse_temperature are options of the method; with method= pass "
            "them to it: functools.partial(method, feature_surgery=...)"
        )
    recognizer = Recognizer(clip, {"": method})
    scores = torch.cat(
        [recognizer(batch)[""] for batch, _ in batches(clip, images, size, batch_size)]
    )
    if isinstance(images, Tensor):
        return scores
    return [Recognition(row, clip.texts) for row in scores]


def image_scores(
    clip: ZeroShotClassifier,
    pooled: Tensor,
    variant: str | None = None,
    inverse_temperature: float = INVERSE_TEMPERATURE,
) -> Tensor:
    """Return the scores of whole images for every text.

    Args:
        clip: The classifier.
        pooled: L2-normalized embeddings (N, C) of the images.
        variant: Variant of feature surgery; None means plain cosines.
        inverse_temperature: Inverse temperature of the softmax that weights the texts.

    Returns:
        Scores (N, K).
    """
    with functional.full_precision(pooled):
        texts = clip.text_features().to(pooled.dtype)
        empty = clip.empty_features() if variant == "empty" else None
        empty = None if empty is None else empty.to(pooled.dtype)
        scores = functional.feature_surgery(
            pooled[:, None], texts, pooled, variant, inverse_temperature, empty
        )
    return scores[:, : len(clip.texts), 0]
