"""Multi-label recognition: which of many classes an image shows.

Source: Li, Wang, Duan, Zhang, Li, "A Closer Look at the Explainability of Contrastive
Language-Image Pre-training" (arXiv 2304.05653): feature surgery on the scores of the class token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from captum_clip_surgery.attr.dual_path import check_feature_surgery, check_inverse_temperature
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.functional import INVERSE_TEMPERATURE, feature_surgery, full_precision
from captum_clip_surgery.preprocessing import ImageInput
from captum_clip_surgery.tasks.pictures import Images, batches


@dataclass(frozen=True)
class Recognition:
    """One image's `scores` (K,) for the `classes`: raw, signed, comparable between images."""

    scores: Tensor
    classes: tuple[str, ...]

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The likeliest classes with their scores, best first; all of them where there are fewer.

        Example::

            >>> Recognition(torch.tensor([0.5, -0.25, 0.75]), ("dog", "sky", "sea")).top(2)
            [('sea', 0.75), ('dog', 0.5)]
        """
        values, order = self.scores.sort(descending=True, stable=True)
        pairs = zip(order.tolist(), values.tolist(), strict=True)
        return [(self.classes[index], value) for index, value in pairs][:count]

    def above(self, threshold: float) -> list[tuple[str, float]]:
        """The classes whose score is above a threshold, best first.

        Example::

            >>> Recognition(torch.tensor([0.5, -0.25, 0.75]), ("dog", "sky", "sea")).above(0.5)
            [('sea', 0.75)]
        """
        return [(name, score) for name, score in self.top(len(self.classes)) if score > threshold]


@overload
def recognize(
    clip: ZeroShotClassifier,
    images: Tensor,
    form: str | None = ...,
    inverse_temperature: float = ...,
    size: int | None = ...,
    batch_size: int = ...,
) -> Tensor: ...
@overload
def recognize(
    clip: ZeroShotClassifier,
    images: ImageInput | Sequence[ImageInput],
    form: str | None = ...,
    inverse_temperature: float = ...,
    size: int | None = ...,
    batch_size: int = ...,
) -> list[Recognition]: ...
def recognize(
    clip: ZeroShotClassifier,
    images: Images,
    form: str | None = "release",
    inverse_temperature: float = INVERSE_TEMPERATURE,
    size: int | None = None,
    batch_size: int = 8,
) -> Tensor | list[Recognition]:
    """Every class's score for whole images.

    Args:
        clip: the classifier, whose texts are the classes; its distractors compete as well.
        images: pictures (PIL images, arrays, paths), or a batch (N, 3, H, W) that was preprocessed.
        form: of feature surgery: "release" as published, "paper", "empty", or None for CLIP's own
            cosines. "paper" takes the same from all scores of an image, so that it changes which
            images rank first for a class, not which classes rank first for an image.
        inverse_temperature: inverse temperature of the weights of the texts.
        size: of pictures, the side that the model sees; None is native.
        batch_size: pictures in one pass.

    Returns:
        For pictures a `Recognition` each; for a batch scores (N, K).

    Raises:
        TypeError, ValueError, FileNotFoundError: see `clip.preprocess`; an unknown form, or one
            that contrasts texts where there is one; "empty" without `empty_features`; an
            inverse_temperature that is not finite.

    Example::

        >>> import numpy as np
        >>> clip = ZeroShotClassifier.demo(["duck", "kiwi"])
        >>> (found,) = recognize(clip, [np.zeros((60, 80, 3), np.uint8)])
        >>> len(found.top())
        2
        >>> recognize(clip, torch.zeros(2, 3, 64, 96)).shape
        torch.Size([2, 2])
    """
    check_feature_surgery(clip, form)
    check_inverse_temperature(inverse_temperature)
    parts = [
        _scores(clip, batch, form, inverse_temperature)
        for batch, _ in batches(clip, images, size, batch_size)
    ]
    scores = torch.cat(parts)
    if isinstance(images, Tensor):
        return scores
    return [Recognition(row, clip.texts) for row in scores]


@torch.no_grad()
def _scores(
    clip: ZeroShotClassifier, images: Tensor, form: str | None, inverse_temperature: float
) -> Tensor:
    return pooled_scores(clip, clip.image_features(images), form, inverse_temperature)


def pooled_scores(
    clip: ZeroShotClassifier,
    pooled: Tensor,
    form: str | None,
    inverse_temperature: float = INVERSE_TEMPERATURE,
) -> Tensor:
    """Scores (N, K) of images by their L2-normalised embedding `pooled` (N, C)."""
    with full_precision(pooled):
        texts = clip.text_features().to(pooled.dtype)
        empty = clip.empty_features() if form == "empty" else None
        empty = None if empty is None else empty.to(pooled.dtype)
        scores = feature_surgery(pooled[:, None], texts, pooled, form, inverse_temperature, empty)
    return scores[:, : len(clip.texts), 0]
