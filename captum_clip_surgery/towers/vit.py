"""open_clip's own VisionTransformer: CLIP's, CLIPA's and CoCa's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from open_clip.transformer import (
    Attention,
    AttentionalPooler,
    CustomResidualAttentionBlock,
    ResidualAttentionBlock,
    Transformer,
    VisionTransformer,
)
from torch import Tensor, nn

from captum_clip_surgery.exact import HINT, why_not_exactly
from captum_clip_surgery.towers.base import (
    Grid,
    Heads,
    Layout,
    Tower,
    join_heads,
    resize_positions,
    split_heads,
)

BLOCKS = (ResidualAttentionBlock, CustomResidualAttentionBlock)
ATTENTIONS = (nn.MultiheadAttention, Attention)


class VisionTransformerTower(Tower):
    """A class token first, patches after it.

    Pooled by the class token (CLIP), by the mean of the patches with the LayerNorm after it
    (CLIPA), or by attention of learned queries (CoCa). A patch is projected as the pooled embedding
    is: `ln_post(.) @ proj`, after passing alone through the attentional pooler where there is one.
    """

    family = "open_clip VisionTransformer"
    #: The class whose forward pass the adapter restates; a subclass needs an adapter of its own.
    visual_class: ClassVar[type[nn.Module]] = VisionTransformer

    @classmethod
    def claims(cls, visual: nn.Module) -> bool:
        return isinstance(visual, cls.visual_class)

    @classmethod
    def supports(cls, visual: Any) -> str | None:
        altered = why_not_exactly(visual, cls.visual_class)
        if altered:
            return f"it {altered}, and {HINT}"
        altered = why_not_exactly(visual.transformer, Transformer)
        if altered:
            return f"its transformer {altered}, and {HINT}"
        if visual.attn_pool is not None:
            altered = why_not_exactly(visual.attn_pool, AttentionalPooler)
            altered = altered or why_not_exactly(visual.attn_pool.attn, nn.MultiheadAttention)
        if altered:
            return f"its attentional pooling {altered}, and {HINT}"
        if getattr(visual, "attn_pool_contrastive", None) is not None:
            return (
                f"its attentional pooling is of kind {visual.attn_pool_type!r}, which open_clip "
                "calls untested; surgery is defined for attentional_pool=True"
            )
        if visual.pool_type not in ("tok", "avg"):
            return f"it pools its tokens by {visual.pool_type!r}, which gives no single embedding"
        for index, block in enumerate(visual.transformer.resblocks):
            reason = why_not_rebuilt(block)
            if reason:
                return f"block {index} {reason}"
        return None

    @property
    def containers(self) -> dict[str, nn.Module]:
        visual = self.visual
        return {"the image tower": visual, "visual.transformer": visual.transformer}

    @property
    def blocks(self) -> Sequence[Any]:
        return self.visual.transformer.resblocks

    @property
    def pooling(self) -> str:
        if self.visual.attn_pool is not None:
            return "attention"
        return {"tok": "class token", "avg": "average"}[self.visual.pool_type]

    @property
    def patch_size(self) -> tuple[int, int]:
        rows, columns = self.visual.conv1.kernel_size
        return rows, columns

    @property
    def native_size(self) -> tuple[int, int]:
        (rows, columns), (height, width) = self._native_grid, self.patch_size
        return rows * height, columns * width

    @property
    def _native_grid(self) -> Grid:
        rows, columns = self.visual.grid_size
        return rows, columns

    @property
    def dtype(self) -> torch.dtype:
        return self.visual.conv1.weight.dtype

    def embed(self, images: Tensor) -> tuple[Tensor, Layout]:
        visual = self.visual
        patches = visual.conv1(images)
        grid = (patches.shape[-2], patches.shape[-1])
        patches = patches.flatten(2).mT
        class_token = visual.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        positions = resize_positions(
            visual.positional_embedding, self._native_grid, grid, 1, self.positions
        )
        tokens = torch.cat([class_token, patches], dim=1) + positions.to(patches.dtype)
        return visual.ln_pre(visual.patch_dropout(tokens)), Layout(grid)

    def heads(self, index: int, x: Tensor, layout: Layout, queries: int | None = None) -> Heads:
        return block_heads(self.blocks[index], x, layout.grid, queries)

    def merge(self, index: int, values: Tensor, x: Tensor) -> Tensor:
        return block_merge(self.blocks[index], values)

    def feed_forward(self, index: int, x: Tensor) -> Tensor:
        return block_feed_forward(self.blocks[index], x)

    def project(self, x: Tensor) -> Tensor:
        if self.visual.attn_pool is not None:
            x = _value_path(self.visual.attn_pool, x)
        return self._to_joint_space(self.visual.ln_post(x))

    def pool(self, x: Tensor) -> Tensor:
        pooled, _ = self.visual._pool(x)
        return self._to_joint_space(pooled)

    def _to_joint_space(self, x: Tensor) -> Tensor:
        return x if self.visual.proj is None else x @ self.visual.proj


# The blocks of open_clip's own transformers, which its text towers have as well.


def block_heads(block: Any, x: Tensor, grid: Grid, queries: int | None = None) -> Heads:
    attention = block.attn
    normalised = block.ln_1(x)
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    if queries is None:
        parts = F.linear(normalised, weight, bias).chunk(3, dim=-1)
    else:
        own, rest = slice(len(weight) // 3), slice(len(weight) // 3, None)
        q = F.linear(normalised[:, :queries], weight[own], None if bias is None else bias[own])
        kv = F.linear(normalised, weight[rest], None if bias is None else bias[rest])
        parts = (q, *kv.chunk(2, dim=-1))
    q, k, v = (split_heads(part, attention.num_heads) for part in parts)
    if isinstance(attention, Attention):
        q, k = attention.ln_q(q), attention.ln_k(k)
    return Heads(q, k, v, normalised, grid)


def block_merge(block: Any, values: Tensor) -> Tensor:
    attention = block.attn
    if isinstance(attention, Attention):
        if attention.head_scale is not None:
            values = values * attention.head_scale
        merged = attention.ln_inner(join_heads(values))
        merged = attention.out_drop(attention.out_proj(merged))
    else:
        merged = _out_projected(attention, join_heads(values))
    if isinstance(block, CustomResidualAttentionBlock):
        merged = block.ln_attn(merged)
    return block.ls_1(merged)


def _out_projected(attention: Any, x: Tensor) -> Tensor:
    """As `nn.MultiheadAttention` does, which never calls it: what wraps it has no effect."""
    return F.linear(x, attention.out_proj.weight, attention.out_proj.bias)


def block_feed_forward(block: Any, x: Tensor) -> Tensor:
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def why_not_rebuilt(block: nn.Module) -> str | None:
    """Why the adapter cannot rebuild a block, or None."""
    altered = why_not_exactly(block, *BLOCKS)
    if altered:
        return altered
    attention: Any = block.attn
    if isinstance(attention, ATTENTIONS):
        altered = why_not_exactly(attention, *ATTENTIONS)
        if altered:
            return f"attends by a module that {altered}, and {HINT}"
    else:
        kind = type(attention)
        return (
            f"attends by {kind.__module__}.{kind.__name__}, not by open_clip's own classes; where "
            "an adapter such as peft's LoRA wraps them, call merge_and_unload() first"
        )
    if not getattr(attention, "batch_first", True):
        return "takes its tokens as (L, N, D), not batch first"
    if getattr(attention, "logit_scale", None) is not None:
        return "attends by scaled cosines, which open_clip 3.3 itself cannot run"
    return None


def _value_path(pooler: AttentionalPooler, x: Tensor) -> Tensor:
    """Each token alone through the pooler: with one key, attention is the value, for any query."""
    attention: Any = pooler.attn
    width = attention.out_proj.in_features
    if attention.in_proj_weight is None:
        weight = attention.v_proj_weight
    else:
        weight = attention.in_proj_weight[2 * width :]
    bias = None if attention.in_proj_bias is None else attention.in_proj_bias[2 * width :]
    return _out_projected(attention, F.linear(pooler.ln_k(x), weight, bias))
