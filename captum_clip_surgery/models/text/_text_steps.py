"""The steps of a text tower from token ids to a feature, for towers whose attention can be exposed.

They are the causal towers that are pooled at the end of the text, and those that are pooled at the
last position of the context (SigLIP).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from captum_clip_surgery.models._blocks import (
    AttentionInputs,
    block_attention_inputs,
    block_feed_forward,
    block_merge,
    describe_block_deviation,
    layer_attention_inputs,
    layer_feed_forward,
    layer_merge,
)
from captum_clip_surgery.models._deviations import describe_deviation
from captum_clip_surgery.models._dual_encoders import TransformersText
from captum_clip_surgery.models._internals import has_hooks
from captum_clip_surgery.models.text._towers import (
    bypassed_hooks,
    cast_dtype,
    embed_tokens,
    is_open_clip_transformer,
    pool_text,
    pooled_at_end_of_text,
    pooled_at_last_position,
)


class TextSteps(Protocol):
    """The parts of a text tower."""

    @property
    def blocks(self) -> Sequence[Any]:
        """The blocks, first to last."""

    def attention(self, block: Any) -> nn.Module:
        """Return the attention module of a block."""

    def deviation(self, block: Any) -> str | None:
        """Describe why a block cannot be rebuilt from its parameters, or return None."""

    def silent(self, model: nn.Module) -> list[str]:
        """Name the modules with hooks that do not fire."""

    def embed(self, tokens: Tensor) -> Tensor:
        """Return what enters the first block, (1, L, D)."""

    def mask(self, x: Tensor) -> Tensor | None:
        """Return what is added to the logits (L, L) of attention, or None."""

    def inputs(self, block: Any, x: Tensor) -> AttentionInputs:
        """Return a block's queries, keys and values."""

    def merge(self, block: Any, values: Tensor) -> Tensor:
        """Return what a block adds to the stream for values (1, heads, L, d)."""

    def feed_forward(self, block: Any, x: Tensor) -> Tensor:
        """Return the stream after a block's feed-forward."""

    def finish(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Return the unnormalized feature (1, C) of the tokens after the last block."""


class _OpenClipSteps:
    """The steps of open_clip's own text transformers."""

    def __init__(self, tower: Any) -> None:
        self.tower = tower
        self.blocks = tower.transformer.resblocks

    def attention(self, block: Any) -> nn.Module:
        return block.attn

    def deviation(self, block: Any) -> str | None:
        return describe_block_deviation(block)

    def silent(self, model: nn.Module) -> list[str]:
        names = bypassed_hooks(model, self.tower)
        return names + ["the text transformer"] * has_hooks([self.tower.transformer])

    def embed(self, tokens: Tensor) -> Tensor:
        return embed_tokens(self.tower, tokens, slice(tokens.shape[1]))

    def mask(self, x: Tensor) -> Tensor | None:
        length, mask = x.shape[1], self.tower.attn_mask
        return None if mask is None else mask[:length, :length].to(cast_dtype(self.tower))

    def inputs(self, block: Any, x: Tensor) -> AttentionInputs:
        return block_attention_inputs(block, x, (1, x.shape[1]))

    def merge(self, block: Any, values: Tensor) -> Tensor:
        return block_merge(block, values)

    def feed_forward(self, block: Any, x: Tensor) -> Tensor:
        return block_feed_forward(block, x)

    def finish(self, x: Tensor, tokens: Tensor) -> Tensor:
        return pool_text(self.tower, self.tower.ln_final(x), tokens)


class _TransformersSteps:
    """The steps of transformers' text models of CLIP and SigLIP."""

    def __init__(self, tower: TransformersText) -> None:
        self.tower = tower
        self.blocks = tower.text_model.encoder.layers

    def attention(self, block: Any) -> nn.Module:
        return block.self_attn

    def deviation(self, block: Any) -> str | None:
        return describe_deviation(block, *self.tower.family.classes("EncoderLayer"))

    def silent(self, model: nn.Module) -> list[str]:
        model_, encoder = self.tower.text_model, self.tower.text_model.encoder
        parts = {"the text model": model_, "its encoder": encoder}
        return [name for name, part in parts.items() if has_hooks([part])]

    def embed(self, tokens: Tensor) -> Tensor:
        return self.tower.text_model.embeddings(input_ids=tokens)

    def mask(self, x: Tensor) -> Tensor | None:
        if self.tower.family.text != "end":
            return None
        length = x.shape[1]
        return torch.full((length, length), -torch.inf, dtype=x.dtype, device=x.device).triu(1)

    def inputs(self, block: Any, x: Tensor) -> AttentionInputs:
        return layer_attention_inputs(block, x, (1, x.shape[1]))

    def merge(self, block: Any, values: Tensor) -> Tensor:
        return layer_merge(block, values)

    def feed_forward(self, block: Any, x: Tensor) -> Tensor:
        return layer_feed_forward(block, x)

    def finish(self, x: Tensor, tokens: Tensor) -> Tensor:
        last = self.tower.text_model.final_layer_norm(x)[:, -1]
        if self.tower.family.text == "end":
            return self.tower.text_projection(last)  # type: ignore[operator]
        return self.tower.text_model.head(last)


def steps_of(tower: Any) -> TextSteps:
    """Return the steps of a text tower.

    Raises:
        TypeError: If its attention cannot be exposed, or its feature is not one token's.
    """
    supported = pooled_at_end_of_text(tower) or pooled_at_last_position(tower)
    if supported and isinstance(tower, TransformersText):
        return _TransformersSteps(tower)
    if supported and is_open_clip_transformer(tower):
        return _OpenClipSteps(tower)
    name = type(tower).__name__
    if isinstance(tower, TransformersText):
        name = type(tower.text_model).__name__
    raise TypeError(
        f"the text tower {name} is not supported: words are scored for towers that are pooled at "
        "the end of the text behind a causal mask (CLIP), or at the last position (SigLIP)"
    )
