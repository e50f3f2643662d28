"""open_clip's own VisionTransformer: CLIP's, CLIPA's and CoCa's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from open_clip.transformer import (
    AttentionalPooler,
    Transformer,
    VisionTransformer,
)
from torch import Tensor, nn

from captum_clip_surgery.models._blocks import (
    AttentionInputs,
    Grid,
    _out_projected,
    block_feed_forward,
    block_heads,
    block_merge,
    why_not_rebuilt,
)
from captum_clip_surgery.models._exact import HINT, why_not_exactly
from captum_clip_surgery.models.image._base import GridSpec, Tower, resize_positions


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

    def embed(self, images: Tensor) -> tuple[Tensor, GridSpec]:
        visual = self.visual
        patches = visual.conv1(images)
        grid = (patches.shape[-2], patches.shape[-1])
        patches = patches.flatten(2).mT
        class_token = visual.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        positions = resize_positions(
            visual.positional_embedding, self._native_grid, grid, 1, self.positions
        )
        tokens = torch.cat([class_token, patches], dim=1) + positions.to(patches.dtype)
        return visual.ln_pre(visual.patch_dropout(tokens)), GridSpec(grid)

    def heads(
        self, index: int, x: Tensor, layout: GridSpec, queries: int | None = None
    ) -> AttentionInputs:
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
