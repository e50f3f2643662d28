"""The steps of the BERT-like text towers of transformers' AltCLIP and ChineseCLIP.

A block normalizes the sum of the stream and its attention, and that of the stream and its
feed-forward. The first token's stream becomes the feature.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from captum_clip_surgery.models._blocks import AttentionInputs, join_heads, split_heads
from captum_clip_surgery.models._deviations import describe_deviation
from captum_clip_surgery.models._dual_encoders import TransformersText
from captum_clip_surgery.models._internals import has_hooks
from captum_clip_surgery.models.text._steps import TextSteps

#: Classes of blocks by the prefix of their family.
LAYERS = {"AltCLIP": "AltRobertaLayer", "ChineseCLIP": "ChineseCLIPTextLayer"}


class BertSteps(TextSteps):
    """The steps of a BERT-like text tower.

    Args:
        tower: The text side of a model of a family in `LAYERS`.
    """

    def __init__(self, tower: TransformersText) -> None:
        self.tower = tower
        self.inner = getattr(tower.text_model, "roberta", tower.text_model)
        encoder = self.inner.encoder
        self.blocks = encoder.layers if hasattr(encoder, "layers") else encoder.layer

    @override
    def attention(self, block: Any) -> nn.Module:
        return block.attention

    @override
    def deviation(self, block: Any) -> str | None:
        family = self.tower.family
        return describe_deviation(block, getattr(sys.modules[family.module], LAYERS[family.prefix]))

    @override
    def silent(self, model: nn.Module) -> list[str]:
        parts = {
            "the text model": self.tower.text_model,
            "its inner model": self.inner,
            "its encoder": self.inner.encoder,
        }
        return [name for name, part in parts.items() if has_hooks([part])]

    @override
    def embed(self, tokens: Tensor) -> Tensor:
        return self.inner.embeddings(input_ids=tokens)

    @override
    def mask(self, x: Tensor, tokens: Tensor) -> Tensor:
        kept = self.tower.masks(tokens)["attention_mask"].bool()[:, None, None]  # (P, 1, 1, L)
        return torch.zeros_like(kept, dtype=x.dtype).masked_fill(~kept, -torch.inf)

    @override
    def inputs(self, block: Any, x: Tensor) -> AttentionInputs:
        attention = block.attention.self
        projections = (attention.query, attention.key, attention.value)
        q, k, v = (split_heads(p(x), attention.num_attention_heads) for p in projections)
        return AttentionInputs(q, k, v, x, (1, x.shape[1]))

    @override
    def merge(self, block: Any, values: Tensor) -> Tensor:
        output = block.attention.output
        return output.dropout(output.dense(join_heads(values)))

    @override
    def norm_attention(self, block: Any, x: Tensor) -> Tensor:
        return block.attention.output.LayerNorm(x)

    @override
    def update(self, block: Any, x: Tensor) -> Tensor:
        return block.output.dropout(block.output.dense(block.intermediate(x)))

    @override
    def norm_feed_forward(self, block: Any, x: Tensor) -> Tensor:
        return block.output.LayerNorm(x)

    @override
    def finish(self, x: Tensor) -> Tensor:
        model: Any = self.tower.text_model
        if hasattr(model, "pre_LN"):  # AltCLIP
            x = model.transformation(model.pre_LN(x))
        return self.tower.text_projection(x)
