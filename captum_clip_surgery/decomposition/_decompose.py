"""Split the cosines of images into parts, and describe a head by texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_clip_surgery._utils.tensors import as_double
from captum_clip_surgery.attr._coverage import covered_size
from captum_clip_surgery.attr._engine import forward_pass
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.comparison import load_batch
from captum_clip_surgery.decomposition._parts import Decomposition
from captum_clip_surgery.functional import full_precision, text_span
from captum_clip_surgery.models._validation import check_finite
from captum_clip_surgery.models.image._direct_effects import direct_effects
from captum_clip_surgery.preprocessing import ImageInput
from captum_clip_surgery.queries._features import bias_of

#: Number of images that are decomposed at once.
BATCH_SIZE = 8


def decompose(
    clip: ZeroShotClassifier,
    images: ImageInput | Sequence[ImageInput] | Tensor,
    texts: Sequence[str] | None = None,
    size: int | tuple[int, int] | None = None,
) -> Decomposition:
    """Split the cosines of images and texts into the exact contributions of a model's parts.

    This takes one forward pass and no gradients of the model, and has no parameters to tune. The
    result holds images * texts * blocks * heads * patches numbers.

    Args:
        clip: The classifier.
        images: Images as `clip.preprocess` takes them, or a batch (N, 3, H, W) from it.
        texts: Texts to use; None means the classifier's.
        size: Side or (height, width) in pixels to which images are resized; None means the
            native size.

    Raises:
        TypeError: If the images or texts have the wrong type, or the image tower's embedding
            is not a sum of such parts.
        ValueError: If the images do not fit the model, or texts are given for a classifier that was
            made by `from_features`.
        RuntimeError: If a parameter of the model changes during the call, or the parts do not sum
            to the embedding because a layer of the image tower does not behave as its adapter
            assumes.

    References:
        Gandelsman, Efros, Steinhardt: Interpreting CLIP's image representation via text-based
        decomposition. ICLR 2024, Sec. 3; here for the cosine instead of the inner product, and with
        the parts that have no patch kept by name.

    Example::

        >>> from captum_clip_surgery.demo import Scenes
        >>> scene = Scenes("test", 1, size=64)[0]
        >>> clip = ZeroShotClassifier.demo(["dog", "pizza"])
        >>> parts = decompose(clip, scene.image)
        >>> bool((parts.sum() - parts.cosines).abs().max() < 1e-6)
        True
        >>> parts.map(block=-1, head=0).shape, sorted(parts.by_kind())[:2]
        (torch.Size([1, 2, 14, 14]), ['attention', 'bias'])
    """
    if texts is not None:
        clip = clip.with_texts(texts)
    batch, pixels = load_batch(clip, images, size)
    pieces = [_decompose(clip, part, pixels) for part in batch.split(BATCH_SIZE)]
    first = pieces[0]

    def joined(name: str) -> Any:
        values = [getattr(piece, name) for piece in pieces]
        return None if values[0] is None else torch.cat(values)

    return replace(
        first,
        **{name: joined(name) for name in ("cosines", "attention", "feed_forward")},
        remainder={
            name: torch.cat([piece.remainder[name] for piece in pieces]) for name in first.remainder
        },
    )


@torch.no_grad()
def _decompose(
    clip: ZeroShotClassifier, images: Tensor, pixels: Sequence[np.ndarray]
) -> Decomposition:
    """Return the decomposition of one batch, with the images of all."""
    features = clip.text_features()[: len(clip.texts)]
    with forward_pass(clip, images), full_precision(images):
        effects = direct_effects(clip.tower, images.to(clip.tower.dtype), features, detailed=True)
    assert effects.by_head is not None
    check_finite(images, effects.sum(), "contributions")
    embedding = as_double(effects.embedding).cpu()
    lengths = embedding.norm(dim=-1)  # (N,)

    def share(parts: Tensor) -> Tensor:
        return as_double(parts).cpu() / lengths.view(-1, *[1] * (parts.ndim - 1))

    bias = bias_of(clip.model, clip.differences)
    shown = (images.shape[-2], images.shape[-1])
    return Decomposition(
        images=pixels,
        texts=clip.texts,
        grid=effects.grid,
        shown=shown,
        covered=covered_size(clip, effects.patches.unflatten(-1, effects.grid), shown),
        cosines=share(embedding @ as_double(features).cpu().T),
        attention=share(effects.by_head),
        feed_forward=None if effects.feed_forward is None else share(effects.feed_forward),
        remainder={name: share(parts) for name, parts in effects.remainder.items()},
        logit_scale=float(clip.model.logit_scale.exp()),
        logit_bias=0.0 if bias is None else as_double(bias).cpu(),
        pooled_by_attention=clip.tower.pooling == "attention",
    )


@torch.no_grad()
def describe_head(
    clip: ZeroShotClassifier,
    images: ImageInput | Sequence[ImageInput] | Tensor,
    block: int,
    head: int,
    texts: Sequence[str] | None = None,
    count: int = 5,
) -> list[tuple[str, float]]:
    """Return the texts that best describe how a head's output varies over a collection of images.

    This is TextSpan (`functional.text_span`), applied to the part of each image's normalized
    embedding that the head moved from the image's patches.

    Args:
        clip: The classifier.
        images: A collection of images as `clip.preprocess` takes them, or a batch (N, 3, H, W) from
            it, ideally dozens or more.
        block: Index of the head's block; negative values count from the end.
        head: Index of the head; negative values count from the end.
        texts: Candidate texts; None means the classifier's.
        count: Maximum number of texts.

    Returns:
        Texts in the order they were chosen, each with the share of the output's variance (0..1)
        that it explains beyond the texts before it.

    Raises:
        TypeError: If the images or texts have the wrong type, or the image tower's embedding
            is not a sum of parts of heads.
        ValueError: If there are fewer than two images, or they do not fit the model.
        IndexError: If there is no such block or head.

    Example::

        >>> from captum_clip_surgery.demo import Scenes
        >>> clip = ZeroShotClassifier.demo(["dog", "pizza", "moon"])
        >>> pictures = [scene.image for scene in Scenes("test", 3, size=64)]
        >>> len(describe_head(clip, pictures, block=7, head=0, count=2))
        2
    """
    if texts is not None:
        clip = clip.with_texts(texts)
    batch, _ = load_batch(clip, images)
    features = clip.text_features()[: len(clip.texts)]
    axes = torch.eye(features.shape[1], dtype=features.dtype, device=features.device)
    outputs = []
    for part in batch.split(BATCH_SIZE):
        with forward_pass(clip, part), full_precision(part):
            effects = direct_effects(
                clip.tower, part.to(clip.tower.dtype), axes, blocks=[block], heads=[head]
            )
        check_finite(part, effects.sum(), "contributions")
        lengths = as_double(effects.embedding).norm(dim=-1, keepdim=True)
        outputs.append(as_double(effects.patches).sum(-1) / lengths)
    chosen = text_span(torch.cat(outputs), as_double(features), count)
    return [(clip.texts[index], share) for index, share in chosen]
