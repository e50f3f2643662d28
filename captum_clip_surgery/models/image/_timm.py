"""Adapters for timm's transformers in open_clip's TimmModel.

They cover SigLIP, ViTamin, MobileCLIP, EVA and PE-Core.
"""

from __future__ import annotations

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
from typing_extensions import override

from captum_clip_surgery.models._blocks import (
    AttentionInputs,
    Grid,
    is_quantized,
    join_heads,
    linear_rows,
    split_heads,
)
from captum_clip_surgery.models._deviations import HINT, describe_deviation
from captum_clip_surgery.models._internals import (
    add_timm_positions,
    buffers_of,
    shallow_copy,
)
from captum_clip_surgery.models.image._attention_pool import (
    AttentionPool,
    TimmAttentionPool,
    value_path,
)
from captum_clip_surgery.models.image._base import Tower
from captum_clip_surgery.models.image._data import GridSpec, resize_positions

POOLING = {"token": "class token", "avg": "average", "map": "attention"}


class TimmTower(Tower):
    """Base class of adapters for timm's transformers: a trunk, its pooling and open_clip's head.

    A patch is projected on its own as the pooled embedding is: through the pooling (with attention
    pooling of one token, that is the value path), the trunk's head and open_clip's head.
    """

    #: The exact classes whose forward pass the adapter restates; override them to support a
    #: subclass.
    visual_class: ClassVar[type[nn.Module]] = TimmModel
    trunk_class: ClassVar[type[nn.Module]]
    #: Exact classes of blocks and of their attention that the adapter rebuilds.
    block_classes: ClassVar[tuple[type[nn.Module], ...]]
    attention_classes: ClassVar[tuple[type[nn.Module], ...]]

    @override
    @classmethod
    def matches(cls, visual: nn.Module) -> bool:
        return isinstance(visual, cls.visual_class) and isinstance(visual.trunk, cls.trunk_class)

    @override
    @classmethod
    def check_supported(cls, visual: Any) -> None:
        if deviation := describe_deviation(visual, cls.visual_class):
            raise TypeError(f"it {deviation}, and {HINT}")
        trunk: Any = visual.trunk
        if type_before_parametrizations(trunk) is not cls.trunk_class:
            kind = type(trunk).__name__
            raise TypeError(
                f"its trunk is a {kind}, which may pool and project differently; {HINT}"
            )
        parts: list[Any] = [(trunk, cls.trunk_class), (trunk.blocks, nn.Sequential, nn.ModuleList)]
        if trunk.attn_pool is not None:
            parts.append((trunk.attn_pool, AttentionPoolLatent))
        for part, *classes in parts:
            if deviation := describe_deviation(part, *classes):
                raise TypeError(f"a part of its trunk {deviation}, and {HINT}")
        cls._check_pooling(visual)
        for index, block in enumerate(trunk.blocks):
            cls._check_block(index, block)

    @classmethod
    def _check_pooling(cls, visual: Any) -> None:
        pooling, pooler = visual.trunk.global_pool, visual.trunk.attn_pool
        if pooling not in POOLING:
            raise TypeError(
                f"it pools its tokens by {pooling!r}, expected one of {', '.join(POOLING)}"
            )
        if hasattr(visual.head, "pool"):
            kind = type(visual.head.pool).__name__
            raise TypeError(f"open_clip's head pools once more, by {kind}")
        if pooler is not None and (pooler.pos_embed is not None or pooler.latent_len != 1):
            raise TypeError("its attention pooling has positional embeddings or several queries")

    @classmethod
    def _check_block(cls, index: int, block: Any) -> None:
        if deviation := describe_deviation(block, *cls.block_classes):
            raise TypeError(f"block {index} {deviation}")
        attention = block.attn
        if deviation := describe_deviation(attention, *cls.attention_classes):
            kind = type(attention).__name__
            raise TypeError(f"block {index} has the attention {kind}, which {deviation}")
        if getattr(attention, "q_bias", None) is not None and is_quantized(attention.qkv):
            raise TypeError(
                f"block {index} is quantized, but timm reads its weight as a plain tensor"
            )
        if getattr(attention, "num_kv_groups", 1) > 1:
            raise TypeError(
                f"several queries of block {index} share one value (grouped-query attention)"
            )

    @property
    def trunk(self) -> Any:
        """The timm model inside open_clip's tower."""
        return self.visual.trunk

    @override
    @property
    def containers(self) -> dict[str, nn.Module]:
        visual, trunk = self.visual, self.trunk
        return {
            "the image tower": visual,
            "visual.trunk": trunk,
            "visual.trunk.blocks": trunk.blocks,
        }

    @override
    @property
    def blocks(self) -> Sequence[Any]:
        return self.trunk.blocks

    @override
    @property
    def pooling(self) -> str:
        return POOLING[self.trunk.global_pool]

    @override
    @property
    def num_prefix_tokens(self) -> int:
        return self.trunk.num_prefix_tokens

    @override
    @property
    def patch_size(self) -> tuple[int, int]:
        rows, columns = _pair(self.trunk.patch_embed.feat_ratio(as_scalar=False))
        return rows, columns

    @override
    @property
    def native_size(self) -> tuple[int, int]:
        # open_clip's own `visual.image_size` is what the configuration says, right or wrong.
        height, width = _pair(self.trunk.patch_embed.img_size)
        return height, width

    @override
    def grid(self, height: int, width: int) -> Grid:
        # ViT-SO400M-14-SigLIP-384 leaves out the last 6 pixels of the size it was trained at. No
        # other size gets away with that.
        if (height, width) == self.native_size:
            return _pair(self.trunk.patch_embed.grid_size)
        return super().grid(height, width)

    @override
    @property
    def dtype(self) -> torch.dtype:
        return next(self.trunk.patch_embed.parameters()).dtype

    @override
    def embed(self, images: Tensor) -> tuple[Tensor, GridSpec]:
        grid = self.grid(*images.shape[-2:])
        trunk = self._trunk_for(images)
        tokens, rope = self._positioned(trunk, trunk.patch_embed(images))
        return trunk.norm_pre(tokens), GridSpec(grid, rope)

    def _positioned(self, trunk: Any, patches: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return patches with prefix tokens and positions, and the rotary embedding or None."""
        return trunk.patch_drop(add_timm_positions(trunk, patches)), None

    def _trunk_for(self, images: Tensor) -> Any:
        """Return the trunk, or for another size a copy with parts of that size."""
        height, width = images.shape[-2:]
        if (height, width) == self.native_size:
            return self.trunk
        trunk = shallow_copy(self.trunk)
        self.resize_parts(trunk, height, width)
        return trunk

    def resize_parts(self, trunk: Any, height: int, width: int) -> None:
        """Replace the parts of a copied trunk that depend on the size of images."""
        grid = self.grid(height, width)
        # set_input_size would run a convolutional stem once more.
        patch_embed = shallow_copy(trunk.patch_embed)
        patch_embed.img_size, patch_embed.grid_size = (height, width), grid
        patch_embed.num_patches = grid[0] * grid[1]
        trunk.patch_embed = patch_embed
        if trunk.pos_embed is not None:
            positions = self._positions(grid)
            del trunk.pos_embed  # a parameter, and the resized embedding is a plain tensor
            trunk.pos_embed = positions

    def _positions(self, grid: Grid) -> Tensor:
        trunk = self.trunk
        native = _pair(trunk.patch_embed.grid_size)
        prefix = 0 if trunk.no_embed_class else trunk.num_prefix_tokens
        return resize_positions(trunk.pos_embed[0], native, grid, prefix, self.positions)[None]

    @override
    def attention_inputs(
        self, index: int, x: Tensor, grid_spec: GridSpec, queries: int | None = None
    ) -> AttentionInputs:
        attention = self.blocks[index].attn
        x = self.attention_input(index, x)
        projected = _project_qkv(attention, x, queries)
        q, k, v = (split_heads(each, attention.num_heads) for each in projected)
        return AttentionInputs(attention.q_norm(q), attention.k_norm(k), v, x, grid_spec.grid)

    def attention_input(self, index: int, x: Tensor) -> Tensor:
        """Return the part of the stream (N, L, D) that the attention of block `index` reads."""
        return self.blocks[index].norm1(x)

    def _attention_output(self, index: int, values: Tensor, x: Tensor) -> Tensor:
        attention = self.blocks[index].attn
        merged = attention.norm(join_heads(values))
        if attention.gate is not None:
            merged = merged * attention.gate(x).sigmoid()
        return attention.proj_drop(attention.proj(merged))

    @override
    def project(self, x: Tensor) -> Tensor:
        x = self.trunk.norm(x)
        if self.trunk.attn_pool is not None:
            x = value_path(self.trunk.attn_pool, x)
        x = self.trunk.head_drop(self.trunk.fc_norm(x))
        return self.visual.head(self.trunk.head(x))

    @override
    def pool(self, x: Tensor) -> Tensor:
        return self.visual.head(self.trunk.forward_head(self.trunk.norm(x)))

    @override
    @property
    def attention_pool(self) -> AttentionPool | None:
        return None if self.trunk.attn_pool is None else TimmAttentionPool(self.visual)

    @override
    def describe_undecomposable(self) -> str | None:
        if getattr(self.visual.head, "mlp", None) is not None:
            return "open_clip's head is an MLP, so that its embedding is not a sum of parts"
        whole = getattr(self.trunk, "pool_include_prefix", True)  # Eva pools all tokens
        if self.trunk.attn_pool is not None and self.num_prefix_tokens and not whole:
            return "its attention pooling leaves out the prefix tokens"
        return None


class TimmVisionTransformerTower(TimmTower):
    """Adapter for timm's `VisionTransformer`.

    It covers SigLIP and SigLIP 2, ViTamin, MobileCLIP-B and -L, and ViTs pooled by average.
    """

    family = "timm VisionTransformer"
    trunk_class = VisionTransformer
    block_classes = (Block,)
    attention_classes = (Attention,)

    @override
    def merge(self, index: int, values: Tensor, x: Tensor) -> Tensor:
        block = self.blocks[index]
        return block.drop_path1(block.ls1(self._attention_output(index, values, x)))

    @override
    def feed_forward(self, index: int, x: Tensor) -> Tensor:
        block = self.blocks[index]
        return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


class EvaTower(TimmTower):
    """Adapter for timm's `Eva`: EVA01, EVA02 and PE-Core.

    Rotary positions rotate queries and keys, never values. The post-norm blocks of EVA02-E attend
    to the raw stream and normalize what they add to it.
    """

    family = "timm Eva"
    trunk_class = Eva
    block_classes = (EvaBlock, EvaBlockPostNorm)
    attention_classes = (EvaAttention, AttentionRope)

    def _positioned(self, trunk: Any, patches: Tensor) -> tuple[Tensor, Tensor | None]:
        return add_timm_positions(trunk, patches)

    @override
    def resize_parts(self, trunk: Any, height: int, width: int) -> None:
        super().resize_parts(trunk, height, width)
        if trunk.rope is not None:
            rope = shallow_copy(trunk.rope)
            for name, buffer in buffers_of(rope).items():
                if buffer is not None:  # updating the shape writes into it
                    setattr(rope, name, buffer.clone())
            if hasattr(rope, "update_feat_shape"):  # others compute the embedding per grid
                rope.update_feat_shape(list(trunk.patch_embed.grid_size))
            trunk.rope = rope

    @override
    def run_block(self, index: int, x: Tensor, grid_spec: GridSpec) -> Tensor:
        output: Tensor = self.blocks[index](x, rope=self._rope(index, grid_spec))
        return output

    def _rope(self, index: int, grid_spec: GridSpec) -> Tensor | None:
        if grid_spec.rope is not None and self.trunk.rope_mixed:
            return grid_spec.rope[index]
        return grid_spec.rope

    @override
    def attention_inputs(
        self, index: int, x: Tensor, grid_spec: GridSpec, queries: int | None = None
    ) -> AttentionInputs:
        rope = self._rope(index, grid_spec)
        heads = super().attention_inputs(index, x, grid_spec, queries)
        if rope is None:
            return heads
        attention = self.blocks[index].attn
        q, k = (_rotate(each, rope, attention).type_as(heads.v) for each in (heads.q, heads.k))
        return AttentionInputs(q, k, heads.v, heads.x, heads.grid)

    @override
    def attention_input(self, index: int, x: Tensor) -> Tensor:
        return x if self._post_norm(index) else super().attention_input(index, x)

    def _post_norm(self, index: int) -> bool:
        return isinstance(self.blocks[index], EvaBlockPostNorm)

    @override
    def merge(self, index: int, values: Tensor, x: Tensor) -> Tensor:
        block = self.blocks[index]
        update = self._attention_output(index, values, x)
        if self._post_norm(index):
            update = block.norm1(update)
        elif block.gamma_1 is not None:
            update = block.gamma_1 * update
        return block.drop_path1(update)

    @override
    def feed_forward(self, index: int, x: Tensor) -> Tensor:
        block = self.blocks[index]
        if self._post_norm(index):
            return x + block.drop_path2(block.norm2(block.mlp(x)))
        update = block.mlp(block.norm2(x))
        if block.gamma_2 is not None:
            update = block.gamma_2 * update
        return x + block.drop_path2(update)


def _project_qkv(attention: Any, x: Tensor, queries: int | None) -> Sequence[Tensor]:
    if attention.qkv is None:
        return attention.q_proj(x[:, :queries]), attention.k_proj(x), attention.v_proj(x)
    if getattr(attention, "q_bias", None) is None:
        if queries is None:
            return attention.qkv(x).chunk(3, dim=-1)
        width = attention.num_heads * attention.head_dim
        q = linear_rows(attention.qkv, x[:, :queries], slice(width))
        return q, *linear_rows(attention.qkv, x, slice(width, None)).chunk(2, dim=-1)
    bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
    return F.linear(x, attention.qkv.weight, bias).chunk(3, dim=-1)


def _rotate(x: Tensor, rope: Tensor, attention: Any) -> Tensor:
    """Rotate queries or keys (N, heads, L, d) by the patches' positions, but not prefix tokens."""
    prefix, patches = x.tensor_split([attention.num_prefix_tokens], dim=2)
    rope = rope[..., : patches.shape[2], :]
    patches = apply_rot_embed_cat(patches, rope, half=attention.rotate_half)
    return torch.cat([prefix, patches], dim=2)


def _pair(size: Sequence[int]) -> Grid:
    return size[0], size[1]
