"""Run the last blocks of a text tower with their attention exposed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_clip_surgery.models._blocks import join_heads, split_heads
from captum_clip_surgery.models._internals import has_hooks, warn_of_hooks
from captum_clip_surgery.models.image._data import BlockTrace
from captum_clip_surgery.models.text._encoder import PromptEncoder
from captum_clip_surgery.models.text._steps import TextSteps
from captum_clip_surgery.models.text._text_steps import name_of, steps_of
from captum_clip_surgery.models.text._towers import (
    pooled_at_end_of_text,
    pooled_at_last_position,
    text_lengths,
)


@dataclass(frozen=True)
class TextTrace:
    """The last blocks of a text tower for P texts, with attention exposed.

    Attributes:
        start: The stream (P, L, D) that enters the first block of the tower.
        blocks: The blocks' attention and streams, first to last.
        attended: Attended values (P, L, D) of each block, before the output projection.
        positions: Positions (P,) of the tokens that become the features.
        feature: The texts' unnormalized features (P, C).
        modules: The blocks themselves.
        steps: The parts of the tower.
    """

    start: Tensor
    blocks: list[BlockTrace]
    attended: list[Tensor]
    positions: Tensor
    feature: Tensor
    modules: list[Any]
    steps: TextSteps

    def merge(self, index: int, values: Tensor) -> Tensor:
        """Return what block `index` of the trace adds to the stream for values (N, heads, L, d)."""
        return self.steps.merge(self.modules[index], values)


def tokens_of_text(encoder: PromptEncoder, text: str) -> Tensor:
    """Return the token ids (1, L) of a text, of which the last one's position is pooled.

    Raises:
        TypeError: If the text tower is not supported.
        ValueError: If the text is longer than the context.
    """
    tower = encoder.tower
    if not (pooled_at_end_of_text(tower) or pooled_at_last_position(tower)):
        raise TypeError(
            f"the text tower {name_of(tower)} is not supported: words are scored for towers that "
            "are pooled at the end of the text behind a causal mask (CLIP), or at the last "
            "position (SigLIP)"
        )
    return without_padding(tower, encoder.tokenize([text]))


def without_padding(tower: Any, tokens: Tensor) -> Tensor:
    """Return token ids (P, L) without positions that no feature of the texts depends on.

    Args:
        tower: The text tower.
        tokens: Token ids (P, context).
    """
    return tokens[:, : int(text_lengths(tower, tokens).max())]


def check_text_blocks(encoder: PromptEncoder, num_blocks: int) -> None:
    """Check that the blocks of a text tower can be rebuilt from their parameters.

    Hooks that do not fire because blocks are rebuilt are named in a warning.

    Raises:
        TypeError: If a block cannot be rebuilt.
    """
    steps = steps_of(encoder.tower)
    silent, blocks = steps.silent(encoder.model), steps.blocks
    for index, block in enumerate(blocks):
        if deviation := steps.deviation(block):
            raise TypeError(f"words cannot be scored: block {index} of the text tower {deviation}")
        if has_hooks([block]):
            silent.append(f"text block {index}")
        if has_hooks([steps.attention(block)]):
            silent.append(f"the attention of text block {index}")
    warn_of_hooks(silent, stacklevel=4)


def trace_text_blocks(encoder: PromptEncoder, tokens: Tensor, num_blocks: int) -> TextTrace:
    """Run texts through the tower, with attention of the last blocks exposed.

    If gradients are enabled, the feature can be differentiated with respect to the probabilities
    and the attended values.

    Args:
        encoder: The text side of the model.
        tokens: Token ids (P, L) as `without_padding` returns them, on the tower's device.
        num_blocks: Number of last blocks to expose, from 1.
    """
    steps = steps_of(encoder.tower)
    modules = list(steps.blocks)
    with torch.no_grad():
        x = start = steps.embed(tokens)
    mask = steps.mask(x, tokens)
    traces, attended = [], []
    for index, block in enumerate(modules):
        exposed = index >= len(modules) - num_blocks
        with torch.set_grad_enabled(exposed and torch.is_grad_enabled()):
            heads = steps.inputs(block, x)
            logits = heads.q @ heads.k.mT * heads.q.shape[-1] ** -0.5
            probabilities = (logits if mask is None else logits + mask).softmax(-1)
            if exposed and not probabilities.requires_grad:
                probabilities.requires_grad_()
            values = join_heads(probabilities @ heads.v)
            x = x + steps.merge(block, split_heads(values, heads.v.shape[1]))
            x = steps.feed_forward(block, x)
        if exposed:
            traces.append(BlockTrace(heads, probabilities, x))
            attended.append(values)
    positions = steps.pooled_positions(tokens)
    feature = steps.finish(x[torch.arange(len(x), device=x.device), positions])
    return TextTrace(start, traces, attended, positions, feature, modules[-num_blocks:], steps)
