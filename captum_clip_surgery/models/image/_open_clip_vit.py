"""Adapter for open_clip's own VisionTransformer: CLIP, CLIPA and CoCa."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from open_clip.transformer import AttentionalPooler, Transformer, VisionTransformer
from torch import Tensor, nn
from typing_extensions import override

from captum_clip_surgery.models._blocks import (
    ATTENTIONS,
    AttentionInputs,
    Grid,
    block_attention_inputs,
    block_feed_forward,
    block_merge,
    describe_block_deviation,
    single_token_value,
)
from captum_clip_surgery.models._deviations import HINT, describe_deviation
from captum_clip_surgery.models._internals import pool_open_clip_tokens
from captum_clip_surgery.models.image._attention_pool import AttentionPool, OpenCLIPAttentionPool
from captum_clip_surgery.models.image._base import Tower
from captum_clip_surgery.models.image._data import GridSpec, resize_positions


class VisionTransformerTower(Tower):
    """Adapter for open_clip's `VisionTransformer`: a class token, then the patches.

    Tokens are pooled by the class token (CLIP), by the mean of the patches before the final
    LayerNorm (CLIPA), or by attention of learned queries (CoCa). A patch is projected as the pooled
    embedding is, `ln_post(.) @ proj`; with attentional pooling it first passes the pooler on its
    own.
    """

    family = "open_clip VisionTransformer"
    #: The exact class whose forward pass the adapter restates; override it to support a subclass.
    visual_class: ClassVar[type[nn.Module]] = VisionTransformer

    @override
    @classmethod
    def matches(cls, visual: nn.Module) -> bool:
        return isinstance(visual, cls.visual_class)

    @override
    @classmethod
    def check_supported(cls, visual: Any) -> None:
        pooler = visual.attn_pool
        checks: list[tuple[str, Any, tuple[type[nn.Module], ...]]] = [
            ("it", visual, (cls.visual_class,)),
            ("its transformer", visual.transformer, (Transformer,)),
        ]
        if pooler is not None:
            checks.append(("its attentional pooling", pooler, (AttentionalPooler,)))
            checks.append(("its attentional pooling", pooler.attn, ATTENTIONS))
        for name, part, expected in checks:
            if deviation := describe_deviation(part, *expected):
                raise TypeError(f"{name} {deviation}, and {HINT}")
        if getattr(visual, "attn_pool_contrastive", None) is not None:
            raise TypeError(
                f"its attentional pooling is {visual.attn_pool_type!r}, which open_clip calls "
                "untested; surgery is defined for attentional_pool=True"
            )
        if visual.pool_type not in ("tok", "avg"):
            raise TypeError(
                f"it pools its tokens by {visual.pool_type!r}, which gives no single embedding"
            )
        for index, block in enumerate(visual.transformer.resblocks):
            if deviation := describe_block_deviation(block):
                raise TypeError(f"block {index} {deviation}")

    @override
    @property
    def containers(self) -> dict[str, nn.Module]:
        visual = self.visual
        return {"the image tower": visual, "visual.transformer": visual.transformer}

    @override
    @property
    def blocks(self) -> Sequence[Any]:
        return self.visual.transformer.resblocks

    @override
    @property
    def pooling(self) -> str:
        if self.visual.attn_pool is not None:
            return "attention"
        return {"tok": "class token", "avg": "average"}[self.visual.pool_type]

    @override
    @property
    def patch_size(self) -> tuple[int, int]:
        rows, columns = self.visual.conv1.weight.shape[-2:]  # adapters hide `kernel_size`
        return rows, columns

    @override
    @property
    def native_size(self) -> tuple[int, int]:
        (rows, columns), (height, width) = self._native_grid, self.patch_size
        return rows * height, columns * width

    @property
    def _native_grid(self) -> Grid:
        rows, columns = self.visual.grid_size
        return rows, columns

    @override
    @property
    def dtype(self) -> torch.dtype:
        return self.visual.conv1.weight.dtype

    @override
    def embed(self, images: Tensor) -> tuple[Tensor, GridSpec]:
        visual = self.visual
        patches = visual.conv1(images)
        grid = (patches.shape[-2], patches.shape[-1])
        patches = patches.flatten(2).mT
        class_token = visual.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        positions = resize_positions(
            visual.positional_embedding, self._native_grid, grid, 1, self.positions
        )
        tokens = torch.cat([class_token, patches], dim=1) + positions.to(patches.dtype)
        return visual.ln_pre(visual.patch_dropout(tokens)), GridSpec(grid)

    @override
    def attention_inputs(
        self, index: int, x: Tensor, grid_spec: GridSpec, queries: int | None = None
    ) -> AttentionInputs:
        return block_attention_inputs(self.blocks[index], x, grid_spec.grid, queries)

    @override
    def merge(self, index: int, values: Tensor, x: Tensor) -> Tensor:
        return block_merge(self.blocks[index], values)

    @override
    def feed_forward(self, index: int, x: Tensor) -> Tensor:
        return block_feed_forward(self.blocks[index], x)

    @override
    def project(self, x: Tensor) -> Tensor:
        if self.visual.attn_pool is not None:
            pooler = self.visual.attn_pool  # each token passes it alone
            x = single_token_value(pooler.attn, pooler.ln_k(x))
        return self._to_joint_space(self.visual.ln_post(x))

    @override
    def pool(self, x: Tensor) -> Tensor:
        return self._to_joint_space(pool_open_clip_tokens(self.visual, x))

    @override
    @property
    def attention_pool(self) -> AttentionPool | None:
        return None if self.visual.attn_pool is None else OpenCLIPAttentionPool(self.visual)

    def _to_joint_space(self, x: Tensor) -> Tensor:
        return x if self.visual.proj is None else x @ self.visual.proj
