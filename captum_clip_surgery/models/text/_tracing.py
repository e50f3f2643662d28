"""Run the last blocks of a text tower with their attention exposed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_clip_surgery.models._blocks import (
    block_attention_inputs,
    block_feed_forward,
    block_merge,
    describe_block_deviation,
    join_heads,
    split_heads,
)
from captum_clip_surgery.models._internals import has_hooks, warn_of_hooks
from captum_clip_surgery.models.image._data import BlockTrace
from captum_clip_surgery.models.text._encoder import PromptEncoder
from captum_clip_surgery.models.text._towers import (
    bypassed_hooks,
    cast_dtype,
    embed_tokens,
    end_of_text,
    pool_text,
    pooled_at_end_of_text,
)


@dataclass(frozen=True)
class TextTrace:
    """The last blocks of a text tower for one text, with attention exposed.

    Attributes:
        blocks: The blocks' attention and streams, first to last.
        attended: Attended values (1, L, D) of each block, before the output projection.
        feature: The text's unnormalized feature (1, C).
        modules: The blocks themselves.
    """

    blocks: list[BlockTrace]
    attended: list[Tensor]
    feature: Tensor
    modules: list[Any]

    def merge(self, index: int, values: Tensor) -> Tensor:
        """Return what block `index` of the trace adds to the stream for values (N, heads, L, d)."""
        return block_merge(self.modules[index], values)


def text_until_end(encoder: PromptEncoder, text: str) -> Tensor:
    """Return the token ids (1, L) of a text, from its start to its end.

    Raises:
        TypeError: If the text tower is not pooled at the end of the text behind a causal mask.
        ValueError: If the text is longer than the context.
    """
    if not pooled_at_end_of_text(encoder.tower):
        raise TypeError(
            f"the text tower {type(encoder.tower).__name__} is not supported: words are scored for "
            "open_clip's causal text towers that are pooled at the end of the text"
        )
    tokens = encoder.tokenize([text])
    return tokens[:, : int(end_of_text(encoder.tower, tokens)) + 1]


def check_text_blocks(encoder: PromptEncoder, num_blocks: int) -> None:
    """Check that the blocks of a text tower can be rebuilt from their parameters.

    Hooks that do not fire because the last `num_blocks` are rebuilt are named in a warning.

    Raises:
        TypeError: If a block cannot be rebuilt.
    """
    tower = encoder.tower
    blocks = tower.transformer.resblocks
    silent = bypassed_hooks(encoder.model, tower)
    if has_hooks([tower.transformer]):
        silent.append("the text transformer")
    for index, block in enumerate(blocks):
        if deviation := describe_block_deviation(block):
            raise TypeError(f"words cannot be scored: block {index} of the text tower {deviation}")
        if index >= len(blocks) - num_blocks and has_hooks([block]):
            silent.append(f"text block {index}")
        if index >= len(blocks) - num_blocks and has_hooks([block.attn]):
            silent.append(f"the attention of text block {index}")
    warn_of_hooks(silent, stacklevel=4)


def trace_text_blocks(encoder: PromptEncoder, tokens: Tensor, num_blocks: int) -> TextTrace:
    """Run a text through the tower, with attention of the last blocks exposed.

    If gradients are enabled, the feature can be differentiated with respect to the probabilities
    and the attended values.

    Args:
        encoder: The text side of the model.
        tokens: Token ids (1, L) until the end of the text, on the tower's device.
        num_blocks: Number of last blocks to expose, from 1.
    """
    tower, length = encoder.tower, tokens.shape[1]
    mask = tower.attn_mask[:length, :length].to(cast_dtype(tower))
    modules = list(tower.transformer.resblocks)
    with torch.no_grad():
        x = embed_tokens(tower, tokens, slice(length))
        for block in modules[:-num_blocks]:
            x = block(x, attn_mask=mask)
    traces, attended = [], []
    for block in modules[-num_blocks:]:
        heads = block_attention_inputs(block, x, (1, length))
        logits = heads.q @ heads.k.mT * heads.q.shape[-1] ** -0.5 + mask
        probabilities = logits.softmax(-1)
        if not probabilities.requires_grad:
            probabilities.requires_grad_()
        values = join_heads(probabilities @ heads.v)
        x = x + block_merge(block, split_heads(values, heads.v.shape[1]))
        x = block_feed_forward(block, x)
        traces.append(BlockTrace(heads, probabilities, x))
        attended.append(values)
    feature = pool_text(tower, tower.ln_final(x), tokens)
    return TextTrace(traces, attended, feature, modules[-num_blocks:])
