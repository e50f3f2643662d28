"""Word scores: which words of a text match an image, by attention relevance or Grad-ECLIP.

Both read the text tower as `attention` and `gradient` read image towers, for text transformers of
open_clip and transformers that are pooled at the end of the text (CLIP) or at the last position
(SigLIP).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from captum_clip_surgery.attr._engine import forward_pass
from captum_clip_surgery.attr._gradients import minmax_cosines, relevance_row, text_gradients
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.functional import full_precision, normalized
from captum_clip_surgery.models._guards import assert_parameters_unchanged
from captum_clip_surgery.models.image import join_heads
from captum_clip_surgery.models.text._text_steps import steps_of
from captum_clip_surgery.models.text._tracing import (
    TextTrace,
    check_text_blocks,
    tokens_of_text,
    trace_text_blocks,
)
from captum_clip_surgery.models.text._words import word_positions

METHODS = ("relevance", "grad-eclip")


@dataclass(frozen=True)
class WordScores:
    """Contribution of each word of a text to its match with images.

    Args:
        words: The words, in the order of the text.
        scores: Scores (N, words) of N images, not negative.
    """

    words: tuple[str, ...]
    scores: Tensor


def word_scores(
    clip: ZeroShotClassifier,
    images: Tensor,
    text: str,
    method: str = "relevance",
    num_blocks: int | None = None,
) -> WordScores:
    """Score every word of a text by its contribution to the cosine with images.

    Args:
        clip: A classifier of a CLIP or SigLIP; its texts do not matter.
        images: Images (N, 3, H, W), as `clip.preprocess` returns them.
        text: One text, used as it is, without templates.
        method: "relevance" (Chefer et al.: the pooled token's row of the relevance of the last
            blocks; the scores of an image sum to 1) or "grad-eclip" (Zhao et al.: values weighted
            by gradient and similarity, summed over the last blocks).
        num_blocks: The number of the text tower's last blocks to read; None means 1 for
            relevance, as in the authors' CLIP notebook, and for 4 for Grad-ECLIP, or all where
            there are fewer.

    Returns:
        The words of the text, without its start and end, and their scores. The score of a word of
        several tokens is their sum.

    Raises:
        TypeError: If the text tower or the tokenizer is not supported.
        ValueError: If `method` is unknown, `num_blocks` exceeds the tower's blocks, or the text is
            empty or too long.
        RuntimeError: If the model changes during the call.

    References:
        Chefer, Gur, Wolf: Generic Attention-model Explainability for Interpreting Bi-Modal and
        Encoder-Decoder Transformers. ICCV 2021.
        Zhao, Wang, Jiang, Chan: Gradient-based Visual Explanation for Transformer-based CLIP.
        ICML 2024.

    Example::

        >>> clip = ZeroShotClassifier.demo(["dog"])
        >>> result = word_scores(clip, torch.zeros(1, 3, 64, 64), "a dog in the scene")
        >>> result.words, result.scores.shape
        (('a', 'dog', 'in', 'the', 'scene'), torch.Size([1, 5]))
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"text must be a string that is not empty, got {text!r}")
    encoder = clip.text_encoder
    tokens = tokens_of_text(encoder, text).to(clip.device)
    words = word_positions(encoder.tokenizer, tokens[0].tolist(), text=text)
    if not words:
        raise ValueError(f"text {text!r} contains no words that the model's tokenizer knows")
    blocks = steps_of(encoder.tower).blocks
    if num_blocks is None:
        num_blocks = min(len(blocks), 1 if method == "relevance" else 4)
    if not 1 <= num_blocks <= len(blocks):
        raise ValueError(
            f"num_blocks must be from 1 to the text tower's {len(blocks)}, got {num_blocks}"
        )
    check_text_blocks(encoder, num_blocks)
    with forward_pass(clip, images), assert_parameters_unchanged(clip.model, whole=True):
        with torch.no_grad():
            image_features = clip.image_features(images)  # (N, C)
        with torch.inference_mode(False), torch.enable_grad(), full_precision(images):
            trace = trace_text_blocks(encoder, tokens, num_blocks)
            # One text and many images: images take the place of texts in `text_gradients`.
            cosines = normalized(trace.feature) @ image_features.detach().clone().T  # (1, N)
            score_tokens = _relevance if method == "relevance" else _grad_eclip
            token_scores = score_tokens(cosines, trace)
    scores = torch.stack([token_scores.detach()[:, spots].sum(1) for _, spots in words], dim=1)
    if method == "relevance":
        total = scores.sum(1, keepdim=True)
        scores = scores / torch.where(total > 0, total, 1)
    return WordScores(tuple(word for word, _ in words), scores)


def _relevance(cosines: Tensor, trace: TextTrace) -> Tensor:
    """Return the pooled token's row (N, L) of the product of all blocks' (I + relevance)."""
    attention = [block.probabilities for block in trace.blocks]
    rows = [relevance_row(part, attention, -1) for part in text_gradients(cosines, attention)]
    return torch.cat(rows)[:, 0]


def _grad_eclip(cosines: Tensor, trace: TextTrace) -> Tensor:
    """Return values (N, L) weighted by the pooled token's gradient and similarity."""
    chunks = []
    for gradients in text_gradients(cosines, trace.attended):  # per block (images, 1, L, D)
        scores = torch.zeros_like(gradients[0][:, 0, :, 0])
        for index, (gradient, block) in enumerate(zip(gradients, trace.blocks, strict=True)):
            inputs = block.heads
            query = trace.merge(index, inputs.q[:, :, -1:])
            keys = trace.merge(index, inputs.k)
            weights = minmax_cosines(query, keys)  # (1, L)
            products = (gradient[:, :, -1:] * join_heads(inputs.v)).sum(-1)  # (images, 1, L)
            scores = scores + (products * weights).relu()[:, 0]
        chunks.append(scores)
    return torch.cat(chunks)
