"""A text's feature as the sum of what its tokens contributed, and of everything else by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from captum_clip_surgery.models._frozen_norms import check_sum
from captum_clip_surgery.models.text._encoder import PromptEncoder
from captum_clip_surgery.models.text._parts import apply_to_parts
from captum_clip_surgery.models.text._steps import TextSteps
from captum_clip_surgery.models.text._text_steps import steps_of
from captum_clip_surgery.models.text._towers import device_of
from captum_clip_surgery.models.text._tracing import (
    TextTrace,
    check_text_blocks,
    trace_text_blocks,
    without_padding,
)

#: Rows of the parts that the pooled token's stream consists of; one per token follows.
EMBEDDING, FEED_FORWARD, BIAS, TOKENS = range(4)


@dataclass(frozen=True)
class TextEffects:
    """Contributions of the parts of a text tower to the features of P texts.

    Attributes:
        tokens: Vectors (P, L, C) that the tokens added to the pooled token's stream by attention,
            in the joint space, summed over blocks and heads. L is the length of the longest text if
            tokens behind the end have no effect, otherwise the context.
        remainder: Everything else (P, C) by name: "embedding" (the start of the pooled token's
            stream), "feed-forward", "class token" (what it attends to of itself, in towers that
            have one) and "bias".
        feature: The model's own features (P, C), unnormalized. Tokens and remainder sum to them.
    """

    tokens: Tensor
    remainder: Mapping[str, Tensor]
    feature: Tensor


def text_effects(encoder: PromptEncoder, tokens: Tensor) -> TextEffects:
    """Take the features of texts apart.

    Every step from the stream to the feature is affine once the statistics of its norms are frozen
    at those of the whole stream. Attention adds to the pooled token's stream, from each token, its
    values weighted by its probability.

    Args:
        encoder: The text side of a model.
        tokens: Token ids (P, context), as `encoder.tokenize` returns them.

    Raises:
        TypeError: If the feature is not one token's of a supported text transformer, or its blocks
            cannot be rebuilt from their parameters.

    References:
        Gandelsman, Efros, Steinhardt: Interpreting CLIP's Image Representation via Text-Based
        Decomposition. ICLR 2024 (arXiv 2310.05916), Eq. 3-5, there for images.

    Example::

        >>> from captum_clip_surgery import ZeroShotClassifier
        >>> encoder = ZeroShotClassifier.demo(["dog"]).text_encoder
        >>> effects = text_effects(encoder, encoder.tokenize(["a dog"]))
        >>> effects.tokens.shape  # start, "a", "dog", end
        torch.Size([1, 4, 128])
        >>> total = effects.tokens.sum(1) + sum(effects.remainder.values())
        >>> torch.allclose(total, effects.feature, atol=1e-4)
        True
    """
    num_blocks = len(steps_of(encoder.tower).blocks)
    check_text_blocks(encoder, num_blocks)
    tokens = without_padding(encoder.tower, tokens).to(device_of(encoder.tower))
    with torch.no_grad():
        trace = trace_text_blocks(encoder, tokens, num_blocks)
        parts = _split_feature(trace)
    scale = parts.abs().sum(0) + trace.feature.norm(dim=-1, keepdim=True)
    check_sum(parts.sum(0), trace.feature, scale, trace.feature.dtype, "text tower")
    embedding, feed_forward, bias = parts[:TOKENS]
    remainder = {"embedding": embedding, "feed-forward": feed_forward}
    first_behind = TOKENS + tokens.shape[1]
    if len(parts) > first_behind:
        remainder["class token"] = parts[first_behind]
    remainder["bias"] = bias
    return TextEffects(parts[TOKENS:first_behind].transpose(0, 1), remainder, trace.feature)


def _split_feature(trace: TextTrace) -> Tensor:
    """Return the parts (3 + L, P, C) of features: embedding, feed-forward, bias, tokens."""
    steps, texts = trace.steps, torch.arange(len(trace.start), device=trace.start.device)
    start = trace.start[texts, trace.positions]  # (P, D)
    stream = start.new_zeros(TOKENS + trace.start.shape[1], *start.shape)
    stream[EMBEDDING] = start
    for block, module in zip(trace.blocks, trace.modules, strict=True):
        weights = block.probabilities[texts, :, trace.positions, :, None]  # (P, heads, L, 1)
        values = (weights * block.heads.v).permute(2, 0, 1, 3)  # (L, P, heads, d)
        attended, constant = apply_to_parts(partial(_merge, steps, module), values)
        stream[TOKENS:] += attended
        stream[BIAS] += constant
        stream = _apply(partial(steps.norm_attention, module), stream)
        stream[FEED_FORWARD] += steps.update(module, stream.sum(0))
        stream = _apply(partial(steps.norm_feed_forward, module), stream)
    return _apply(steps.finish, stream)


def _merge(steps: TextSteps, module: Any, values: Tensor) -> Tensor:
    """Return what a block adds to the stream (N, D) of one token for values (N, heads, d)."""
    return steps.merge(module, values[:, :, None])[:, 0]


def _apply(function: Callable[[Tensor], Tensor], stream: Tensor) -> Tensor:
    """Apply an affine function to the parts of the stream; its constant belongs to the bias."""
    outputs, constant = apply_to_parts(function, stream)
    outputs[BIAS] += constant
    return outputs
