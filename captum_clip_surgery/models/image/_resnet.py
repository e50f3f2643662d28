"""Adapter for open_clip's ModifiedResNet, whose attention pooling is the one block of surgery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from open_clip.modified_resnet import AttentionPool2d, ModifiedResNet
from torch import Tensor, nn
from typing_extensions import override

from captum_clip_surgery._utils.profiling import add_pass
from captum_clip_surgery.models._blocks import (
    AttentionInputs,
    Grid,
    is_quantized,
    join_heads,
    split_heads,
)
from captum_clip_surgery.models._deviations import HINT, describe_deviation
from captum_clip_surgery.models.image._base import Tower
from captum_clip_surgery.models.image._data import GridSpec, resize_positions

#: Pixels per side of a cell of the last feature map.
STRIDE = 32


class ModifiedResNetTower(Tower):
    """Adapter for open_clip's `ModifiedResNet`: the mean of the patches, then the patches."""

    family = "open_clip ModifiedResNet"
    #: The exact class whose forward pass the adapter restates; override it to support a subclass.
    visual_class: ClassVar[type[nn.Module]] = ModifiedResNet
    pooling = "attention"
    num_pooled_tokens = 1  # the query of the mean
    has_residual = False

    @override
    @classmethod
    def matches(cls, visual: nn.Module) -> bool:
        return isinstance(visual, cls.visual_class)

    @override
    @classmethod
    def check_supported(cls, visual: Any) -> None:
        if deviation := describe_deviation(visual, cls.visual_class):
            raise TypeError(f"it {deviation}, and {HINT}")
        if deviation := describe_deviation(visual.attnpool, AttentionPool2d):
            raise TypeError(f"its attention pooling {deviation}, and {HINT}")
        if is_quantized(visual.attnpool.q_proj):
            raise TypeError(
                "its pooling is quantized, but open_clip reads its weight as a plain tensor"
            )

    @override
    @property
    def blocks(self) -> Sequence[nn.Module]:
        return (self.visual.attnpool,)

    @override
    @property
    def patch_size(self) -> tuple[int, int]:
        return STRIDE, STRIDE

    @override
    @property
    def native_size(self) -> tuple[int, int]:
        rows, columns = self._native_grid
        return rows * STRIDE, columns * STRIDE

    @property
    def _native_grid(self) -> Grid:
        side = round((len(self.visual.attnpool.positional_embedding) - 1) ** 0.5)
        return side, side

    @override
    @property
    def dtype(self) -> torch.dtype:
        return self.visual.conv1.weight.dtype

    def _features(self, images: Tensor) -> Tensor:
        """Return the convolutional features (N, D, h, w)."""
        visual = self.visual
        x = visual.stem(images)
        return visual.layer4(visual.layer3(visual.layer2(visual.layer1(x))))

    @override
    def embed(self, images: Tensor) -> tuple[Tensor, GridSpec]:
        features = self._features(images)
        grid = (features.shape[-2], features.shape[-1])
        patches = features.flatten(2).mT
        positions = resize_positions(
            self.visual.attnpool.positional_embedding, self._native_grid, grid, 1, self.positions
        )
        mean = patches.mean(1, keepdim=True)
        return torch.cat([mean, patches], dim=1) + positions.to(patches.dtype), GridSpec(grid)

    @override
    def encode(self, images: Tensor, taps: Mapping[int, nn.Module] | None = None) -> Tensor:
        grid = self.grid(*images.shape[-2:])
        if grid != self._native_grid or taps:
            return super().encode(images, taps)
        # The model's own pooling works at the native grid only, and hooks on it fire there.
        self._warn_of_hooks(len(self.blocks))
        add_pass(images)
        pooled: Tensor = self.visual.attnpool(self._features(images))
        return pooled

    @override
    def run_block(self, index: int, x: Tensor, grid_spec: GridSpec) -> Tensor:
        heads = self.attention_inputs(index, x, grid_spec)
        return self.merge(index, heads.attend(), heads.x)

    @override
    def attention_inputs(
        self, index: int, x: Tensor, grid_spec: GridSpec, queries: int | None = None
    ) -> AttentionInputs:
        pool = self.visual.attnpool
        projected = (pool.q_proj(x[:, :queries]), pool.k_proj(x), pool.v_proj(x))
        q, k, v = (split_heads(each, pool.num_heads) for each in projected)
        return AttentionInputs(q, k, v, x, grid_spec.grid)

    @override
    def merge(self, index: int, values: Tensor, x: Tensor) -> Tensor:
        return self.visual.attnpool.c_proj(join_heads(values))

    @override
    def feed_forward(self, index: int, x: Tensor) -> Tensor:
        return x

    @override
    def project(self, x: Tensor) -> Tensor:
        return x

    @override
    def pool(self, x: Tensor) -> Tensor:
        return x[:, 0]
