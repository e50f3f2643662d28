"""Word scores: which words of a text match an image, by attention relevance or Grad-ECLIP.

Both read the text tower as `attention` and `gradient` read image towers, for open_clip's own text
transformers that are pooled at the end of the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_clip_surgery.attr._engine import forward_pass
from captum_clip_surgery.attr._gradients import minmax_cosines, relevance_row, text_gradients
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.functional import full_precision, normalized
from captum_clip_surgery.models._blocks import (
    block_feed_forward,
    block_heads,
    block_merge,
    has_hooks,
    join_heads,
    split_heads,
    why_not_rebuilt,
)
from captum_clip_surgery.models._guards import assert_parameters_unchanged
from captum_clip_surgery.models.image import BlockTrace
from captum_clip_surgery.models.text.encoder import PromptEncoder
from captum_clip_surgery.models.text.towers import (
    cast_dtype,
    end_of_text,
    pool_text,
    pooled_at_end_of_text,
    silent_text_hooks,
    warn_of_hooks,
)
from captum_clip_surgery.models.text.words import word_positions

__all__ = ["WordScores", "word_scores"]

METHODS = ("relevance", "grad-eclip")


@dataclass(frozen=True)
class WordScores:
    """How much each word of a text matters to images.

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
    """Score every word of a text by what it contributes to the cosine with images.

    Args:
        clip: A classifier with open_clip's own text tower; its texts do not matter.
        images: Images (N, 3, H, W), as `clip.preprocess` returns them.
        text: One text, used as it is, without templates.
        method: "relevance" (Chefer et al.: the end-of-text row of the relevance of the last
            blocks; the scores of an image sum to 1) or "grad-eclip" (Zhao et al.: values weighted
            by gradient and similarity, summed over the last blocks).
        num_blocks: The number of the text tower's last blocks to read; None stands for 1 for
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
    encoder = encoder_of(clip)
    tower, tokens = encoder.tower, _tokens_to_end(encoder, text).to(clip.device)
    words = word_positions(encoder.tokenizer, tokens[0].tolist())
    if not words:
        raise ValueError(f"text {text!r} contains no words that the model's tokenizer knows")
    blocks = tower.transformer.resblocks
    if num_blocks is None:
        num_blocks = min(len(blocks), 1 if method == "relevance" else 4)
    if not 1 <= num_blocks <= len(blocks):
        raise ValueError(
            f"num_blocks must be from 1 to the text tower's {len(blocks)}, got {num_blocks}"
        )
    _check_blocks(encoder, len(blocks) - num_blocks)
    with forward_pass(clip, images), assert_parameters_unchanged(clip.model, whole=True):
        with torch.no_grad():
            image_features = clip.image_features(images)  # (N, C)
        with torch.inference_mode(False), torch.enable_grad(), full_precision(images):
            traces, attended, feature = _trace(tower, tokens, num_blocks)
            # One text and many images: images take the place of texts in `text_gradients`.
            cosines = normalized(feature) @ image_features.detach().clone().T  # (1, N)
            if method == "relevance":
                token_scores = _relevance(cosines, traces)
            else:
                token_scores = _grad_eclip(cosines, traces, attended, blocks[-num_blocks:])
    scores = [token_scores.detach()[:, positions].sum(1) for _, positions in words]
    return WordScores(tuple(word for word, _ in words), torch.stack(scores, dim=1))


def _check_blocks(encoder: PromptEncoder, first: int) -> None:
    """Warn of hooks that do not fire when text blocks from `first` on are taken apart.

    Raises:
        TypeError: a block of a class that cannot be taken apart.
    """
    tower = encoder.tower
    silent = silent_text_hooks(encoder.model, tower)
    if has_hooks([tower.transformer]):
        silent.append("the text transformer")
    for index, block in enumerate(tower.transformer.resblocks):
        reason = why_not_rebuilt(block)
        if reason:
            raise TypeError(f"words cannot be scored: block {index} of the text tower {reason}")
        if index >= first and has_hooks([block]):
            silent.append(f"text block {index}")
        if index >= first and has_hooks([block.attn]):
            silent.append(f"the attention of text block {index}")
    warn_of_hooks(silent, stacklevel=4)


def encoder_of(clip: ZeroShotClassifier) -> PromptEncoder:
    """A classifier's text side.

    Raises:
        TypeError: a classifier made from features.
    """
    if clip._encoder is None:
        raise TypeError(
            "a classifier made from_features has no text tower to explain; make it of the model "
            "and texts"
        )
    clip._encoder.check()
    return clip._encoder


def _tokens_to_end(encoder: PromptEncoder, text: str) -> Tensor:
    """Return the token ids (1, L) of a text, from its start to its end."""
    if not pooled_at_end_of_text(encoder.tower):
        raise TypeError(
            f"the text tower {type(encoder.tower).__name__} is not supported: words are scored for "
            "open_clip's causal text towers that are pooled at the end of the text"
        )
    tokens = encoder.tokenize([text])
    return tokens[:, : int(end_of_text(encoder.tower, tokens)) + 1]


def _trace(
    tower: Any, tokens: Tensor, num_blocks: int
) -> tuple[list[BlockTrace], list[Tensor], Tensor]:
    """Run the last blocks with explicit attention.

    Returns:
        Their traces, their attended values (1, L, D), and the text's feature (1, C).
    """
    length = tokens.shape[1]
    dtype = cast_dtype(tower)
    mask = tower.attn_mask[:length, :length].to(dtype)
    blocks = tower.transformer.resblocks
    with torch.no_grad():
        x = tower.token_embedding(tokens).to(dtype)
        x = x + tower.positional_embedding[:length].to(dtype)
        for block in blocks[:-num_blocks]:
            x = block(x, attn_mask=mask)
    traces, outputs = [], []
    for block in blocks[-num_blocks:]:
        heads = block_heads(block, x, (1, length))
        scores = heads.q @ heads.k.mT * heads.q.shape[-1] ** -0.5 + mask
        probabilities = scores.softmax(-1)
        if not probabilities.requires_grad:
            probabilities.requires_grad_()
        attended = join_heads(probabilities @ heads.v)
        x = x + block_merge(block, split_heads(attended, heads.v.shape[1]))
        x = block_feed_forward(block, x)
        traces.append(BlockTrace(heads, probabilities, x))
        outputs.append(attended)
    return traces, outputs, pool_text(tower, tower.ln_final(x), tokens)


def _relevance(cosines: Tensor, traces: Sequence[BlockTrace]) -> Tensor:
    """Return the end-of-text row (N, L) of the product of all blocks' (I + relevance)."""
    attention = [trace.probabilities for trace in traces]
    rows = [relevance_row(part, attention, -1) for part in text_gradients(cosines, attention)]
    row = torch.cat(rows)[:, 0]
    total = row[:, 1:-1].sum(-1, keepdim=True)
    return row / torch.where(total > 0, total, 1)


def _grad_eclip(
    cosines: Tensor, traces: Sequence[BlockTrace], attended: Sequence[Tensor], blocks: Any
) -> Tensor:
    """Return values (N, L) weighted by the end of text's gradient and similarity."""
    chunks = []
    for gradients in text_gradients(cosines, attended):  # per block (images, 1, L, D)
        scores = torch.zeros_like(gradients[0][:, 0, :, 0])
        for gradient, trace, block in zip(gradients, traces, blocks, strict=True):
            inputs = trace.heads
            query, keys = block_merge(block, inputs.q[:, :, -1:]), block_merge(block, inputs.k)
            weights = minmax_cosines(query, keys)  # (1, L)
            products = (gradient[:, :, -1:] * join_heads(inputs.v)).sum(-1)  # (images, 1, L)
            scores = scores + (products * weights).relu()[:, 0]
        chunks.append(scores)
    return torch.cat(chunks)
