"""timm's transformers inside open_clip's TimmModel: SigLIP, ViTamin, MobileCLIP, EVA, PE-Core."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from open_clip.timm_model import TimmModel
from timm.layers import AttentionPoolLatent, apply_rot_embed_cat
from timm.models.eva import AttentionRope, Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from captum_clip_surgery.models._blocks import (
    AttentionInputs,
    Grid,
    is_quantised,
    join_heads,
    some_rows,
    split_heads,
)
from captum_clip_surgery.models._exact import HINT, why_not_exactly
from captum_clip_surgery.models.image._base import GridSpec, Tower, resize_positions

POOLING = {"token": "class token", "avg": "average", "map": "attention"}

#: Why surgery is not defined on trunks that open_clip's configurations use.
NOT_DEFINED = {
    "ConvNeXt": "it convolves and has no self-attention to repair",
    "FastVit": (
        "it mixes tokens by convolution, with self-attention at most in its last stage, so there "
        "is no stack of blocks on one grid"
    ),
    "SwinTransformer": (
        "it attends within windows, on grids that shrink from stage to stage, not over one grid"
    ),
    "VisionTransformerRelPos": (
        "its attention is of relative positions as much as of content, and no v-v attention "
        "without them is defined"
    ),
}


class TimmTower(Tower):
    """What timm's transformers share: patches of a trunk, its pooling, and open_clip's head.

    A patch goes to the joint space alone, the way the pooled embedding goes: through the pooling
    (for attention pooling of one token that is the value path), the trunk's head and open_clip's.
    """

    #: The classes whose forward pass the adapter restates; a subclass needs an adapter of its own.
    visual_class: ClassVar[type[nn.Module]] = TimmModel
    trunk_class: ClassVar[type[nn.Module]]
    #: Classes of the blocks, and of their attention, that the adapter can rebuild.
    block_classes: ClassVar[tuple[type[nn.Module], ...]]
    attention_classes: ClassVar[tuple[type[nn.Module], ...]]

    @classmethod
    def claims(cls, visual: nn.Module) -> bool:
        return isinstance(visual, cls.visual_class) and isinstance(visual.trunk, cls.trunk_class)

    @classmethod
    def supports(cls, visual: Any) -> str | None:
        altered = why_not_exactly(visual, cls.visual_class)
        if altered:
            return f"it {altered}, and {HINT}"
        trunk: Any = visual.trunk
        if type_before_parametrizations(trunk) is not cls.trunk_class:
            kind = type(trunk).__name__
            return f"its trunk is a {kind}, which may pool and project otherwise; {HINT}"
        altered = why_not_exactly(trunk, cls.trunk_class)
        if not altered and trunk.attn_pool is not None:
            altered = why_not_exactly(trunk.attn_pool, AttentionPoolLatent)
        if not altered:
            altered = why_not_exactly(trunk.blocks, nn.Sequential, nn.ModuleList)
        if altered:
            return f"a part of its trunk {altered}, and {HINT}"
        if trunk.global_pool not in POOLING:
            return f"it pools its tokens by {trunk.global_pool!r}, none of {', '.join(POOLING)}"
        if hasattr(visual.head, "pool"):
            kind = type(visual.head.pool).__name__
            return f"open_clip's head pools once more, by {kind}"
        pooler = trunk.attn_pool
        if pooler is not None and (pooler.pos_embed is not None or pooler.latent_len != 1):
            return "its attention pooling has positions or several queries"
        for index, block in enumerate(trunk.blocks):
            altered = why_not_exactly(block, *cls.block_classes)
            if altered:
                return f"block {index} {altered}"
            attention = block.attn
            altered = why_not_exactly(attention, *cls.attention_classes)
            if altered:
                kind = type(attention).__name__
                return f"block {index} attends by {kind}, a module that {altered}"
            if getattr(attention, "q_bias", None) is not None and is_quantised(attention.qkv):
                return f"block {index} reads a weight that quantisation hides: timm cannot run it"
            if getattr(attention, "num_kv_groups", 1) > 1:
                return f"several queries of block {index} share one value (grouped-query attention)"
        return None

    @property
    def trunk(self) -> Any:
        return self.visual.trunk

    @property
    def containers(self) -> dict[str, nn.Module]:
        visual, trunk = self.visual, self.trunk
        return {
            "the image tower": visual,
            "visual.trunk": trunk,
            "visual.trunk.blocks": trunk.blocks,
        }

    @property
    def blocks(self) -> Sequence[Any]:
        return self.trunk.blocks

    @property
    def pooling(self) -> str:
        return POOLING[self.trunk.global_pool]

    @property
    def num_prefix_tokens(self) -> int:
        return self.trunk.num_prefix_tokens

    @property
    def patch_size(self) -> tuple[int, int]:
        rows, columns = _pair(self.trunk.patch_embed.feat_ratio(as_scalar=False))
        return rows, columns

    @property
    def native_size(self) -> tuple[int, int]:
        # open_clip's own `visual.image_size` is what the configuration says, right or wrong.
        height, width = _pair(self.trunk.patch_embed.img_size)
        return height, width

    def grid(self, height: int, width: int) -> Grid:
        # ViT-SO400M-14-SigLIP-384 leaves out the last 6 pixels of the size it was trained at. No
        # other size gets away with that.
        if (height, width) == self.native_size:
            return _pair(self.trunk.patch_embed.grid_size)
        return super().grid(height, width)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.trunk.patch_embed.parameters()).dtype

    def embed(self, images: Tensor) -> tuple[Tensor, GridSpec]:
        grid = self.grid(*images.shape[-2:])
        trunk = self._trunk_for(images)
        tokens, rope = self._positioned(trunk, trunk.patch_embed(images))
        return trunk.norm_pre(tokens), GridSpec(grid, rope)

    def _positioned(self, trunk: Any, patches: Tensor) -> tuple[Tensor, Tensor | None]:
        """Patches with prefix tokens and positions, and the rotary embedding if there is one."""
        return trunk.patch_drop(trunk._pos_embed(patches)), None

    def _trunk_for(self, images: Tensor) -> Any:
        """The trunk, or for another size a clone that shares all but what knows the size."""
        height, width = images.shape[-2:]
        if (height, width) == self.native_size:
            return self.trunk
        grid = self.grid(height, width)
        trunk = _shallow(self.trunk)
        trunk._modules["patch_embed"] = patches = _shallow(self.trunk.patch_embed)
        # Not by set_input_size, which would run a convolutional stem once more.
        patches.img_size, patches.grid_size = (height, width), grid
        patches.num_patches = grid[0] * grid[1]
        if trunk.pos_embed is not None:
            trunk._parameters["pos_embed"] = self._positions(grid)
        return trunk

    def _positions(self, grid: Grid) -> Tensor:
        trunk = self.trunk
        native = _pair(trunk.patch_embed.grid_size)
        prefix = 0 if trunk.no_embed_class else trunk.num_prefix_tokens
        return resize_positions(trunk.pos_embed[0], native, grid, prefix, self.positions)[None]

    def heads(
        self, index: int, x: Tensor, layout: GridSpec, queries: int | None = None
    ) -> AttentionInputs:
        attention = self.blocks[index].attn
        x = self._attention_input(index, x)
        parts = _project_qkv(attention, x, queries)
        q, k, v = (split_heads(part, attention.num_heads) for part in parts)
        return AttentionInputs(attention.q_norm(q), attention.k_norm(k), v, x, layout.grid)

    def _attention_input(self, index: int, x: Tensor) -> Tensor:
        return self.blocks[index].norm1(x)

    def _attention_output(self, index: int, values: Tensor, x: Tensor) -> Tensor:
        attention = self.blocks[index].attn
        merged = attention.norm(join_heads(values))
        if attention.gate is not None:
            merged = merged * attention.gate(x).sigmoid()
        return attention.proj_drop(attention.proj(merged))

    def project(self, x: Tensor) -> Tensor:
        x = self.trunk.norm(x)
        if self.trunk.attn_pool is not None:
            x = _value_path(self.trunk.attn_pool, x)
        x = self.trunk.head_drop(self.trunk.fc_norm(x))
        return self.visual.head(self.trunk.head(x))

    def pool(self, x: Tensor) -> Tensor:
        return self.visual.head(self.trunk.forward_head(self.trunk.norm(x)))


class TimmVisionTransformerTower(TimmTower):
    """SigLIP and SigLIP 2, ViTamin, MobileCLIP-B and -L, and timm's ViT pooled by average."""

    family = "timm VisionTransformer"
    trunk_class = VisionTransformer
    block_classes = (Block,)
    attention_classes = (Attention,)

    def merge(self, index: int, values: Tensor, x: Tensor) -> Tensor:
        block = self.blocks[index]
        return block.drop_path1(block.ls1(self._attention_output(index, values, x)))

    def feed_forward(self, index: int, x: Tensor) -> Tensor:
        block = self.blocks[index]
        return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


class EvaTower(TimmTower):
    """EVA01, EVA02 and PE-Core: rotary positions turn q and k, never v.

    The post-norm blocks of EVA02-E attend to the raw stream and normalise what they add to it.
    """

    family = "timm Eva"
    trunk_class = Eva
    block_classes = (EvaBlock, EvaBlockPostNorm)
    attention_classes = (EvaAttention, AttentionRope)

    def _positioned(self, trunk: Any, patches: Tensor) -> tuple[Tensor, Tensor | None]:
        return trunk._pos_embed(patches)

    def _trunk_for(self, images: Tensor) -> Any:
        trunk = super()._trunk_for(images)
        if trunk is not self.trunk and trunk.rope is not None:
            trunk._modules["rope"] = rope = _shallow(self.trunk.rope)
            # It is about to write into its buffers.
            rope._buffers = {n: b if b is None else b.clone() for n, b in rope._buffers.items()}
            if hasattr(rope, "update_feat_shape"):  # others make their embedding for each grid
                rope.update_feat_shape(list(trunk.patch_embed.grid_size))
        return trunk

    def run_block(self, index: int, x: Tensor, layout: GridSpec) -> Tensor:
        out: Tensor = self.blocks[index](x, rope=self._rope(index, layout))
        return out

    def _rope(self, index: int, layout: GridSpec) -> Tensor | None:
        if layout.rope is not None and self.trunk.rope_mixed:
            return layout.rope[index]
        return layout.rope

    def heads(
        self, index: int, x: Tensor, layout: GridSpec, queries: int | None = None
    ) -> AttentionInputs:
        rope = self._rope(index, layout)
        heads = super().heads(index, x, layout, queries)
        if rope is None:
            return heads
        attention = self.blocks[index].attn
        q, k = (_turn(part, rope, attention).type_as(heads.v) for part in (heads.q, heads.k))
        return AttentionInputs(q, k, heads.v, heads.x, heads.grid)

    def _attention_input(self, index: int, x: Tensor) -> Tensor:
        return x if self._post_norm(index) else super()._attention_input(index, x)

    def _post_norm(self, index: int) -> bool:
        return isinstance(self.blocks[index], EvaBlockPostNorm)

    def merge(self, index: int, values: Tensor, x: Tensor) -> Tensor:
        block = self.blocks[index]
        update = self._attention_output(index, values, x)
        if self._post_norm(index):
            update = block.norm1(update)
        elif block.gamma_1 is not None:
            update = block.gamma_1 * update
        return block.drop_path1(update)

    def feed_forward(self, index: int, x: Tensor) -> Tensor:
        block = self.blocks[index]
        if self._post_norm(index):
            return x + block.drop_path2(block.norm2(block.mlp(x)))
        update = block.mlp(block.norm2(x))
        if block.gamma_2 is not None:
            update = block.gamma_2 * update
        return x + block.drop_path2(update)


def why_not_defined(visual: nn.Module) -> str | None:
    """Why surgery is not defined on a TimmModel's trunk that no adapter claims."""
    if not isinstance(visual, TimmModel):
        return None
    trunk = type(visual.trunk).__name__
    return f"its trunk is timm's {trunk}: {NOT_DEFINED.get(trunk, 'no adapter knows its blocks')}"


def _project_qkv(attention: Any, x: Tensor, queries: int | None) -> Sequence[Tensor]:
    if attention.qkv is None:
        return attention.q_proj(x[:, :queries]), attention.k_proj(x), attention.v_proj(x)
    if getattr(attention, "q_bias", None) is None:
        if queries is None:
            return attention.qkv(x).chunk(3, dim=-1)
        width = attention.num_heads * attention.head_dim
        q = some_rows(attention.qkv, x[:, :queries], slice(width))
        return q, *some_rows(attention.qkv, x, slice(width, None)).chunk(2, dim=-1)
    bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
    return F.linear(x, attention.qkv.weight, bias).chunk(3, dim=-1)


def _turn(x: Tensor, rope: Tensor, attention: Any) -> Tensor:
    """Queries or keys of the first tokens turned by their place; prefix tokens have none."""
    prefix, patches = x.tensor_split([attention.num_prefix_tokens], dim=2)
    rope = rope[..., : patches.shape[2], :]
    turned = apply_rot_embed_cat(patches, rope, half=attention.rotate_half)
    return torch.cat([prefix, turned], dim=2)


def _value_path(pooler: Any, x: Tensor) -> Tensor:
    """Each token alone through the pooler: with one key, attention is the value, for any query."""
    values = slice(pooler.num_heads * pooler.head_dim, None)  # its keys stand first
    x = pooler.proj_drop(pooler.proj(some_rows(pooler.kv, x, values)))
    return x if pooler.mlp is None else x + pooler.mlp(pooler.norm(x))


def _shallow(module: nn.Module) -> Any:
    """A clone of its own that shares every parameter and child; the module stays as it is."""
    clone = copy.copy(module)
    for registry in ("_parameters", "_buffers", "_modules"):
        clone.__dict__[registry] = dict(module.__dict__[registry])
    return clone


def _pair(size: Sequence[int]) -> Grid:
    rows, columns = size
    return rows, columns
