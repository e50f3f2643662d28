"""open_clip's ModifiedResNet: its attention pooling is the one block that surgery repairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from open_clip.modified_resnet import AttentionPool2d, ModifiedResNet
from torch import Tensor, nn

from captum_clip_surgery.models._blocks import (
    AttentionInputs,
    Grid,
    is_quantised,
    join_heads,
    split_heads,
)
from captum_clip_surgery.models._exact import HINT, why_not_exactly
from captum_clip_surgery.models.image._base import GridSpec, Tower, resize_positions


class ModifiedResNetTower(Tower):
    """The mean of the patches stands first, where others have a class token."""

    family = "open_clip ModifiedResNet"
    #: The class whose forward pass the adapter restates; a subclass needs an adapter of its own.
    visual_class: ClassVar[type[nn.Module]] = ModifiedResNet
    pooling = "attention"
    num_pooled_tokens = 1  # the mean token's query
    has_residual = False

    @classmethod
    def claims(cls, visual: nn.Module) -> bool:
        return isinstance(visual, cls.visual_class)

    @classmethod
    def supports(cls, visual: Any) -> str | None:
        altered = why_not_exactly(visual, cls.visual_class)
        if altered:
            return f"it {altered}, and {HINT}"
        altered = why_not_exactly(visual.attnpool, AttentionPool2d)
        if altered:
            return f"its attention pooling {altered}, and {HINT}"
        if is_quantised(visual.attnpool.q_proj):
            return "its pooling reads a weight that quantisation hides: open_clip cannot run it"
        return None

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return (self.visual.attnpool,)

    @property
    def patch_size(self) -> tuple[int, int]:
        return 32, 32

    @property
    def native_size(self) -> tuple[int, int]:
        rows, columns = self._native_grid
        return rows * 32, columns * 32

    @property
    def _native_grid(self) -> Grid:
        side = round((len(self.visual.attnpool.positional_embedding) - 1) ** 0.5)
        return side, side

    @property
    def dtype(self) -> torch.dtype:
        return self.visual.conv1.weight.dtype

    def _features(self, images: Tensor) -> Tensor:
        """The convolutional part: (N, D, h, w)."""
        visual = self.visual
        x = visual.stem(images)
        return visual.layer4(visual.layer3(visual.layer2(visual.layer1(x))))

    def embed(self, images: Tensor) -> tuple[Tensor, GridSpec]:
        features = self._features(images)
        grid = (features.shape[-2], features.shape[-1])
        patches = features.flatten(2).mT
        positions = resize_positions(
            self.visual.attnpool.positional_embedding, self._native_grid, grid, 1, self.positions
        )
        mean = patches.mean(1, keepdim=True)
        return torch.cat([mean, patches], dim=1) + positions.to(patches.dtype), GridSpec(grid)

    def encode(self, images: Tensor, taps: Mapping[int, nn.Module] | None = None) -> Tensor:
        grid = self.grid(*images.shape[-2:])
        if grid != self._native_grid or taps:
            return super().encode(images, taps)
        # The model's own pooling knows one grid only; there, hooks on it fire.
        self._warn_of_hooks(len(self.blocks))
        pooled: Tensor = self.visual.attnpool(self._features(images))
        return pooled

    def run_block(self, index: int, x: Tensor, layout: GridSpec) -> Tensor:
        heads = self.heads(index, x, layout)
        return self.merge(index, heads.attend(), heads.x)

    def heads(
        self, index: int, x: Tensor, layout: GridSpec, queries: int | None = None
    ) -> AttentionInputs:
        pool = self.visual.attnpool
        parts = (pool.q_proj(x[:, :queries]), pool.k_proj(x), pool.v_proj(x))
        q, k, v = (split_heads(part, pool.num_heads) for part in parts)
        return AttentionInputs(q, k, v, x, layout.grid)

    def merge(self, index: int, values: Tensor, x: Tensor) -> Tensor:
        return self.visual.attnpool.c_proj(join_heads(values))

    def feed_forward(self, index: int, x: Tensor) -> Tensor:
        return x

    def project(self, x: Tensor) -> Tensor:
        return x

    def pool(self, x: Tensor) -> Tensor:
        return x[:, 0]
