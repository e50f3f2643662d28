"""The steps of a text tower from token ids to a feature, for towers whose attention can be exposed.

They are transformers whose feature is one token's: that at the end of the text (CLIP), the last one
of the context (SigLIP), the first one (BERT), or a class token behind them (CoCa).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from captum_clip_surgery.models._blocks import (
    AttentionInputs,
    block_attention_inputs,
    block_merge,
    block_update,
    describe_block_deviation,
    layer_attention_inputs,
    layer_merge,
    layer_update,
)
from captum_clip_surgery.models._deviations import describe_deviation
from captum_clip_surgery.models._dual_encoders import TransformersText
from captum_clip_surgery.models._internals import embed_masked_text, has_hooks
from captum_clip_surgery.models.text._bert_steps import LAYERS, BertSteps
from captum_clip_surgery.models.text._steps import TextSteps
from captum_clip_surgery.models.text._towers import (
    bypassed_hooks,
    cast_dtype,
    embed_tokens,
    is_open_clip_transformer,
    masks_depend_on_text,
    pools_one_token,
    project_text,
)


class _OpenClipSteps(TextSteps):
    """The steps of open_clip's own text transformers."""

    def __init__(self, tower: Any) -> None:
        self.tower = tower
        self.blocks = tower.transformer.resblocks

    @override
    def attention(self, block: Any) -> nn.Module:
        return block.attn

    @override
    def deviation(self, block: Any) -> str | None:
        return describe_block_deviation(block)

    @override
    def silent(self, model: nn.Module) -> list[str]:
        names = bypassed_hooks(model, self.tower)
        return names + ["the text transformer"] * has_hooks([self.tower.transformer])

    @override
    def embed(self, tokens: Tensor) -> Tensor:
        if masks_depend_on_text(self.tower):
            return embed_masked_text(self.tower, tokens)[0]
        return embed_tokens(self.tower, tokens, slice(tokens.shape[1]))

    @override
    def mask(self, x: Tensor, tokens: Tensor) -> Tensor | None:
        if masks_depend_on_text(self.tower):
            return embed_masked_text(self.tower, tokens)[1]
        length, mask = x.shape[1], self.tower.attn_mask
        return None if mask is None else mask[:length, :length].to(cast_dtype(self.tower))

    @override
    def inputs(self, block: Any, x: Tensor) -> AttentionInputs:
        return block_attention_inputs(block, x, (1, x.shape[1]))

    @override
    def merge(self, block: Any, values: Tensor) -> Tensor:
        return block_merge(block, values)

    @override
    def update(self, block: Any, x: Tensor) -> Tensor:
        return block_update(block, x)

    @override
    def finish(self, x: Tensor) -> Tensor:
        return project_text(self.tower, self.tower.ln_final(x))


class _TransformersSteps(TextSteps):
    """The steps of transformers' text models of CLIP and SigLIP."""

    def __init__(self, tower: TransformersText) -> None:
        self.tower = tower
        self.blocks = tower.text_model.encoder.layers

    @override
    def attention(self, block: Any) -> nn.Module:
        return block.self_attn

    @override
    def deviation(self, block: Any) -> str | None:
        return describe_deviation(block, *self.tower.family.classes("EncoderLayer"))

    @override
    def silent(self, model: nn.Module) -> list[str]:
        model_, encoder = self.tower.text_model, self.tower.text_model.encoder
        parts = {"the text model": model_, "its encoder": encoder}
        return [name for name, part in parts.items() if has_hooks([part])]

    @override
    def embed(self, tokens: Tensor) -> Tensor:
        return self.tower.text_model.embeddings(input_ids=tokens)

    @override
    def mask(self, x: Tensor, tokens: Tensor) -> Tensor | None:
        if self.tower.family.text != "end":
            return None
        length = x.shape[1]
        return torch.full((length, length), -torch.inf, dtype=x.dtype, device=x.device).triu(1)

    @override
    def inputs(self, block: Any, x: Tensor) -> AttentionInputs:
        return layer_attention_inputs(block, x, (1, x.shape[1]))

    @override
    def merge(self, block: Any, values: Tensor) -> Tensor:
        return layer_merge(block, values)

    @override
    def update(self, block: Any, x: Tensor) -> Tensor:
        return layer_update(block, x)

    @override
    def finish(self, x: Tensor) -> Tensor:
        normed = self.tower.text_model.final_layer_norm(x)
        if self.tower.family.text == "end":
            return self.tower.text_projection(normed)
        return self.tower.text_model.head(normed)


def steps_of(tower: Any) -> TextSteps:
    """Return the steps of a text tower.

    Raises:
        TypeError: If its attention cannot be exposed, or its feature is not one token's.
    """
    if pools_one_token(tower):
        if isinstance(tower, TransformersText):
            bert = tower.family.prefix in LAYERS
            return BertSteps(tower) if bert else _TransformersSteps(tower)
        if is_open_clip_transformer(tower):
            return _OpenClipSteps(tower)
    raise TypeError(
        f"the text tower {name_of(tower)} is not supported: its feature must be that of one token "
        "of a text transformer of open_clip, or of transformers' CLIP, SigLIP, AltCLIP or "
        "ChineseCLIP"
    )


def name_of(tower: Any) -> str:
    """Return the name of a text tower's class."""
    return type(tower.text_model if isinstance(tower, TransformersText) else tower).__name__
