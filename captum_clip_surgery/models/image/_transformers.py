"""Adapters for image towers of transformers: CLIP and its relatives, SigLIP, SigLIP 2, TIPS v2.

q, k and v are computed from the tower's own projections, so that its attention back end (eager,
sdpa, flash) makes no difference.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from captum_clip_surgery.models._blocks import (
    AttentionInputs,
    Grid,
    attention_of_layer,
    layer_attention_inputs,
    layer_feed_forward,
    layer_merge,
    single_token_value,
)
from captum_clip_surgery.models._deviations import HINT, describe_deviation
from captum_clip_surgery.models._dual_encoders import TransformersVisual, to_patches
from captum_clip_surgery.models.image._attention_pool import AttentionPool, SiglipAttentionPool
from captum_clip_surgery.models.image._base import Tower
from captum_clip_surgery.models.image._data import GridSpec, resize_positions

BACK_ENDS = ("", "Sdpa", "FlashAttention2")  # in names of attention classes before version 4.52


class TransformersTower(Tower):
    """Base class of adapters for transformers: embeddings, layers, a final LayerNorm, a pooling."""

    #: Prefixes of the classes of the families.
    prefixes: ClassVar[tuple[str, ...]]
    #: Names of the layers' classes, and of their attention's, without the prefix.
    layer_names: ClassVar[tuple[str, ...]] = ("EncoderLayer", "VisionLayer")
    attention_names: ClassVar[tuple[str, ...]] = ("Attention", "VisionAttention")

    @override
    @classmethod
    def matches(cls, visual: nn.Module) -> bool:
        return isinstance(visual, TransformersVisual) and visual.family.prefix in cls.prefixes

    @override
    @classmethod
    def check_supported(cls, visual: Any) -> None:
        family, vision = visual.family, visual.vision_model
        parts = {
            "its image tower": (vision, ("VisionTransformer", "VisionModel")),
            "its encoder": (vision.encoder, ("Encoder", "VisionEncoder")),
            "the module of its embeddings": (vision.embeddings, ("VisionEmbeddings",)),
        }
        for name, (part, kinds) in parts.items():
            if deviation := describe_deviation(part, *family.classes(*kinds)):
                raise TypeError(f"{name} {deviation}, and {HINT}")
        attentions = [
            name.replace("Attention", f"{end}Attention" if end != "FlashAttention2" else end)
            for name in cls.attention_names
            for end in BACK_ENDS
        ]
        for index, layer in enumerate(cls._layers(vision)):
            if deviation := describe_deviation(layer, *family.classes(*cls.layer_names)):
                raise TypeError(f"block {index} {deviation}, and {HINT}")
            attention = attention_of_layer(layer)
            if deviation := describe_deviation(attention, *family.classes(*attentions)):
                raise TypeError(f"block {index} attends by a module that {deviation}, and {HINT}")

    @classmethod
    def _layers(cls, vision: Any) -> Sequence[Any]:
        return vision.encoder.layers

    @property
    def vision(self) -> Any:
        """The vision model of transformers."""
        return self.visual.vision_model

    @override
    @property
    def containers(self) -> dict[str, nn.Module]:
        vision = self.vision
        return {
            "the image tower": vision,
            "its embeddings": vision.embeddings,
            "its encoder": vision.encoder,
        }

    @override
    @property
    def blocks(self) -> Sequence[Any]:
        return self._layers(self.vision)

    @override
    @property
    def patch_size(self) -> tuple[int, int]:
        return _pair(self.vision.embeddings.patch_size)

    @override
    @property
    def native_size(self) -> tuple[int, int]:
        return _pair(self.vision.embeddings.image_size)

    @property
    def _native_grid(self) -> Grid:
        (height, width), (rows, columns) = self.native_size, self.patch_size
        return height // rows, width // columns

    @override
    def grid(self, height: int, width: int) -> Grid:
        # siglip-so400m-patch14-384 leaves out the last 6 pixels of the size it was trained at. No
        # other size gets away with that.
        if (height, width) == self.native_size:
            return self._native_grid
        return super().grid(height, width)

    @override
    @property
    def dtype(self) -> torch.dtype:
        return self.vision.embeddings.patch_embedding.weight.dtype

    def _positions(self, grid: Grid) -> Tensor:
        """Return the positional embedding (L, D) of a grid."""
        embedding = self.vision.embeddings.position_embedding
        return resize_positions(
            embedding.weight, self._native_grid, grid, self.num_prefix_tokens, self.positions
        )

    @override
    def bypassed(self, first: int = 0) -> dict[str, nn.Module]:
        modules = super().bypassed(first)
        for index in range(first, len(self.blocks)):
            attention = attention_of_layer(self.blocks[index])
            modules[f"the attention of block {index}"] = attention
        return modules

    @override
    def run_block(self, index: int, x: Tensor, grid_spec: GridSpec) -> Tensor:
        block = self.blocks[index]
        kind: Any = type(block)
        output = block(x, **_masks(kind))
        return output[0] if isinstance(output, tuple) else output  # a tuple before version 5

    @override
    def attention_inputs(
        self, index: int, x: Tensor, grid_spec: GridSpec, queries: int | None = None
    ) -> AttentionInputs:
        return layer_attention_inputs(self.blocks[index], x, grid_spec.grid, queries)

    @override
    def merge(self, index: int, values: Tensor, x: Tensor) -> Tensor:
        return layer_merge(self.blocks[index], values)

    @override
    def feed_forward(self, index: int, x: Tensor) -> Tensor:
        return layer_feed_forward(self.blocks[index], x)


class TransformersCLIPTower(TransformersTower):
    """Adapter for the vision models of CLIP and its relatives: a class token, then the patches.

    They are those of `CLIPModel`, `MetaClip2Model`, `AltCLIPModel` and `ChineseCLIPModel`.
    A patch is projected as the class token is, by the final LayerNorm and the projection.
    """

    family = "transformers CLIP"
    pooling = "class token"
    prefixes = ("CLIP", "MetaClip2", "AltCLIP", "ChineseCLIP")

    @override
    @classmethod
    def check_supported(cls, visual: Any) -> None:
        super().check_supported(visual)
        _check_positions(visual.vision_model.embeddings, 1)

    @override
    def embed(self, images: Tensor) -> tuple[Tensor, GridSpec]:
        embeddings = self.vision.embeddings
        patches = embeddings.patch_embedding(images)
        grid = (patches.shape[-2], patches.shape[-1])
        class_token = embeddings.class_embedding.expand(patches.shape[0], 1, -1)
        tokens = torch.cat([class_token, patches.flatten(2).mT], dim=1) + self._positions(grid)
        return self.vision.pre_layrnorm(tokens), GridSpec(grid)  # the library's spelling

    @override
    def project(self, x: Tensor) -> Tensor:
        return self.visual.visual_projection(self.vision.post_layernorm(x))

    @override
    def pool(self, x: Tensor) -> Tensor:
        return self.project(x[:, 0])


class SiglipTower(TransformersTower):
    """Adapter for the vision model of `SiglipModel`: patches alone, pooled by attention.

    A patch is projected on its own through the pooling head: with one token, its attention returns
    the value.
    """

    family = "transformers SigLIP"
    pooling = "attention"
    num_prefix_tokens = 0
    prefixes: ClassVar[tuple[str, ...]] = ("Siglip",)

    @override
    @classmethod
    def check_supported(cls, visual: Any) -> None:
        super().check_supported(visual)
        vision = visual.vision_model
        if not vision.use_head:
            raise TypeError("it has no pooling head (vision_use_head=False), so no embedding")
        pooler = visual.family.classes("MultiheadAttentionPoolingHead")
        for name, part, kinds in (
            ("its pooling head", vision.head, pooler),
            ("the attention of its pooling head", vision.head.attention, (nn.MultiheadAttention,)),
        ):
            if deviation := describe_deviation(part, *kinds):
                raise TypeError(f"{name} {deviation}, and {HINT}")
        _check_positions(vision.embeddings, 0)

    @override
    def embed(self, images: Tensor) -> tuple[Tensor, GridSpec]:
        patches = self.vision.embeddings.patch_embedding(images)
        grid = (patches.shape[-2], patches.shape[-1])
        return patches.flatten(2).mT + self._positions(grid), GridSpec(grid)

    @override
    def project(self, x: Tensor) -> Tensor:
        head = self.vision.head
        x = single_token_value(head.attention, self.vision.post_layernorm(x))
        return x + head.mlp(head.layernorm(x))

    @override
    def pool(self, x: Tensor) -> Tensor:
        return self.vision.head(self.vision.post_layernorm(x))

    @override
    @property
    def attention_pool(self) -> AttentionPool:
        return SiglipAttentionPool(self.vision)


class Siglip2Tower(SiglipTower):
    """Adapter for the vision model of `Siglip2Model` at one size for all images of a batch.

    Images are squashed to the square grid of the positions, or to the size that the caller chooses,
    instead of the many grids of NaFlex.
    """

    family = "transformers SigLIP 2"
    prefixes = ("Siglip2",)

    @override
    @property
    def native_size(self) -> tuple[int, int]:
        embeddings = self.vision.embeddings
        side = embeddings.position_embedding_size * embeddings.patch_size
        return side, side

    @override
    def embed(self, images: Tensor) -> tuple[Tensor, GridSpec]:
        grid = self.grid(*images.shape[-2:])
        embeddings = self.vision.embeddings
        patches = embeddings.patch_embedding(to_patches(images, embeddings.patch_size))
        return patches + self._positions(grid), GridSpec(grid)


class Tipsv2Tower(TransformersTower):
    """Adapter for the vision model of `Tipsv2Model`: a class token, registers, then the patches.

    A patch has an embedding of its own in the model: TIPS v2 was trained to align patches with
    texts, so that `CLIPSimilarity` is what its authors show, and surgery is a change of it.
    """

    family = "transformers TIPS v2"
    pooling = "class token"
    prefixes = ("Tipsv2",)
    layer_names = ("VisionLayer",)
    attention_names = ("VisionAttention",)

    @classmethod
    @override
    def _layers(cls, vision: Any) -> Sequence[Any]:
        return vision.encoder.layer

    @override
    @property
    def num_prefix_tokens(self) -> int:
        return 1 + self.vision.embeddings.register_tokens.shape[1]

    @override
    @property
    def native_size(self) -> tuple[int, int]:
        return _pair(self.vision.embeddings.patch_embeddings.image_size)

    @override
    @property
    def dtype(self) -> torch.dtype:
        return self.vision.embeddings.patch_embeddings.projection.weight.dtype

    @override
    def embed(self, images: Tensor) -> tuple[Tensor, GridSpec]:
        embeddings = self.vision.embeddings
        grid = self.grid(*images.shape[-2:])
        patches = embeddings.patch_embeddings(images)
        class_token = embeddings.cls_token.expand(patches.shape[0], -1, -1)
        registers = embeddings.register_tokens.expand(patches.shape[0], -1, -1)
        positions = resize_positions(
            embeddings.position_embeddings[0], self._native_grid, grid, 1, self.positions
        )
        tokens = [class_token + positions[:1], registers, patches + positions[1:]]
        return embeddings.dropout(torch.cat(tokens, dim=1)), GridSpec(grid)

    @override
    def project(self, x: Tensor) -> Tensor:
        return self.vision.layernorm(x)

    @override
    def pool(self, x: Tensor) -> Tensor:
        return self.project(x[:, 0])


def _check_positions(embeddings: Any, prefix: int) -> None:
    """Check that there is a position for every token at the native size."""
    weight = embeddings.position_embedding.weight
    side = getattr(embeddings, "position_embedding_size", None)
    if side is None:
        side = embeddings.image_size // embeddings.patch_size
    if len(weight) != side * side + prefix:
        raise TypeError(
            f"it has {len(weight)} positions, expected {side} x {side}"
            + (f" and {prefix} for the class token" if prefix else "")
        )


@functools.cache
def _masks(kind: type[nn.Module]) -> dict[str, None]:
    """Return the masks that a layer's `forward` takes, which differ between versions."""
    parameters = inspect.signature(kind.forward).parameters
    return {n: None for n in ("attention_mask", "causal_attention_mask") if n in parameters}


def _pair(size: int | Sequence[int]) -> Grid:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
