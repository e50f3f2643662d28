"""open_clip's own VisionTransformer with a class token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from captum_clip_surgery.towers.base import (
    Grid,
    Heads,
    Tower,
    join_heads,
    resize_positions,
    split_heads,
)


class VisionTransformerTower(Tower):
    """Class token first, patches after it; pooled and projected as `ln_post(x) @ proj`."""

    family = "open_clip VisionTransformer with a class token"
    visual_class = VisionTransformer

    @classmethod
    def supports(cls, visual: Any) -> str | None:
        if visual.attn_pool is not None:
            return "it pools its tokens by attention"
        if visual.pool_type != "tok":
            return f"it pools its tokens by {visual.pool_type!r}, not by a class token"
        for index, block in enumerate(visual.transformer.resblocks):
            if type(block) is not ResidualAttentionBlock:
                return f"block {index} is a {type(block).__name__}, not a ResidualAttentionBlock"
            if not isinstance(block.attn, nn.MultiheadAttention):
                kind = type(block.attn).__name__
                return f"the attention of block {index} is {kind}, not nn.MultiheadAttention"
        return None

    @property
    def blocks(self) -> Sequence[Any]:
        return self.visual.transformer.resblocks

    @property
    def patch_size(self) -> tuple[int, int]:
        rows, columns = self.visual.conv1.kernel_size
        return rows, columns

    @property
    def native_size(self) -> tuple[int, int]:
        (rows, columns), (height, width) = self.visual.grid_size, self.patch_size
        return rows * height, columns * width

    @property
    def dtype(self) -> torch.dtype:
        return self.visual.conv1.weight.dtype

    def embed(self, images: Tensor) -> Tensor:
        visual = self.visual
        patches = visual.conv1(images)
        grid = (patches.shape[-2], patches.shape[-1])
        patches = patches.flatten(2).mT
        class_token = visual.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        positions = resize_positions(
            visual.positional_embedding, tuple(visual.grid_size), grid, 1, self.positions
        )
        tokens = torch.cat([class_token, patches], dim=1) + positions.to(patches.dtype)
        return visual.ln_pre(visual.patch_dropout(tokens))

    def heads(self, index: int, x: Tensor, grid: Grid) -> Heads:
        block = self.blocks[index]
        attention: nn.MultiheadAttention = block.attn
        normalised = block.ln_1(x)
        qkv = F.linear(normalised, attention.in_proj_weight, attention.in_proj_bias)
        q, k, v = (split_heads(part, attention.num_heads) for part in qkv.chunk(3, dim=-1))
        return Heads(q, k, v, normalised, grid)

    def merge(self, index: int, values: Tensor) -> Tensor:
        block = self.blocks[index]
        return block.ls_1(block.attn.out_proj(join_heads(values)))

    def feed_forward(self, index: int, x: Tensor) -> Tensor:
        block = self.blocks[index]
        return x + block.ls_2(block.mlp(block.ln_2(x)))

    def project(self, x: Tensor) -> Tensor:
        x = self.visual.ln_post(x)
        return x if self.visual.proj is None else x @ self.visual.proj

    def pool(self, x: Tensor) -> Tensor:
        return self.project(x[:, 0])
