"""The contract of image towers, and the forward pass that all dual-path methods share.

An adapter computes beside the model and never changes it: it holds the tower's modules, calls them
and reads their parameters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from captum_clip_surgery._utils.profiling import add_pass
from captum_clip_surgery.models._blocks import AttentionInputs, Grid
from captum_clip_surgery.models._internals import has_hooks, warn_of_hooks
from captum_clip_surgery.models.image._attention_pool import AttentionPool
from captum_clip_surgery.models.image._data import (
    BlockTrace,
    GridSpec,
    PathConfig,
    TowerOutput,
    nearest_multiple,
)

POSITION_MODES = ("bilinear", "bicubic")


class Tower(ABC):
    """Adapter for one family of image towers.

    Args:
        visual: The model's image tower, of a class that `check_supported` accepts.
        positions: How positional embeddings are resized: "bilinear" as in CLIP Surgery, or
            "bicubic" with antialiasing as in open_clip.

    Raises:
        ValueError: If `positions` is neither of them.
    """

    #: The family's name in error messages and listings.
    family: ClassVar[str]
    #: Whether a block adds to the stream that enters it.
    has_residual: ClassVar[bool] = True

    def __init__(self, visual: Any, positions: str = "bilinear") -> None:
        if positions not in POSITION_MODES:
            raise ValueError(
                f"positions must be one of {', '.join(POSITION_MODES)}, got {positions!r}"
            )
        self.visual = visual
        self.positions = positions

    # --- implemented by each family --------------------------------------------------------------

    @classmethod
    @abstractmethod
    def matches(cls, visual: nn.Module) -> bool:
        """Return whether an image tower belongs to this family by its class."""

    @classmethod
    @abstractmethod
    def check_supported(cls, visual: Any) -> None:
        """Check that surgery is defined on an image tower of this family.

        Raises:
            TypeError: If it is not; the message is the reason, such as "it pools its tokens by
                'none', which gives no single embedding".
        """

    @property
    @abstractmethod
    def blocks(self) -> Sequence[Any]:
        """The modules that surgery can run beside, first to last."""

    @property
    def containers(self) -> dict[str, nn.Module]:
        """Modules around the blocks that are not called themselves, only their parts, by name."""
        return {"the image tower": self.visual}

    @property
    @abstractmethod
    def pooling(self) -> str:
        """How tokens become one embedding: "class token", "average" or "attention"."""

    @property
    def num_prefix_tokens(self) -> int:
        """Number of tokens before the patches."""
        return 1

    @property
    def num_pooled_tokens(self) -> int | None:
        """Number of leading tokens that the pooled embedding needs; None stands for all."""
        return 1 if self.pooling == "class token" else None

    @property
    @abstractmethod
    def patch_size(self) -> tuple[int, int]:
        """Height and width of a grid cell in pixels."""

    @property
    @abstractmethod
    def native_size(self) -> tuple[int, int]:
        """Height and width in pixels of the images that the tower was built for."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The dtype in which images enter."""

    @abstractmethod
    def embed(self, images: Tensor) -> tuple[Tensor, GridSpec]:
        """Return the tokens (N, L, D) entering the first block, for images (N, 3, H, W)."""

    @abstractmethod
    def attention_inputs(
        self, index: int, x: Tensor, grid_spec: GridSpec, queries: int | None = None
    ) -> AttentionInputs:
        """Return a block's queries, keys and values.

        Args:
            index: Index of the block.
            x: The stream (N, L, D) that enters the block.
            grid_spec: The positions of the tokens.
            queries: Number of leading tokens that need a query; None stands for all. Returning
                more is allowed.
        """

    @abstractmethod
    def merge(self, index: int, values: Tensor, x: Tensor) -> Tensor:
        """Return what a block adds to the stream, (N, L, D).

        Args:
            index: Index of the block.
            values: Attended values (N, heads, L, d).
            x: The attention's input `AttentionInputs.x`, by which some blocks gate their output.
        """

    @abstractmethod
    def feed_forward(self, index: int, x: Tensor) -> Tensor:
        """Return the stream (N, L, D) after the feed-forward of block `index`."""

    @abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """Project tokens (N, L, D) after the last block to the joint space, each on its own."""

    @abstractmethod
    def pool(self, x: Tensor) -> Tensor:
        """Return the model's own embedding (N, C) for tokens (N, L, D) after the last block."""

    def pool_attention(self, x: Tensor) -> Tensor:
        """Return the attention of the pooling, if learned queries attend to the tokens.

        Args:
            x: Tokens (N, L, D) after the last block.

        Returns:
            Probabilities (N, heads, L).

        Raises:
            TypeError: If the family has no such pooling.
        """
        if self.attention_pool is None:
            raise TypeError(f"{self.family} has no attention pooling that can be read")
        return self.attention_pool.attention_inputs(x).probabilities().mean(2)

    @property
    def attention_pool(self) -> AttentionPool | None:
        """The pooling by learned queries, or None where tokens are pooled otherwise."""
        return None

    def describe_undecomposable(self) -> str | None:
        """Describe why embeddings cannot be split into parts that sum to them, or return None.

        They can if only norms and linear layers follow the pooled tokens.
        """
        return None

    # --- shared by all families ------------------------------------------------------------------

    def grid(self, height: int, width: int) -> Grid:
        """Return the rows and columns of patches of an image.

        Args:
            height: Height of the image in pixels.
            width: Width of the image in pixels.

        Raises:
            ValueError: If the patch size does not divide a side.
        """
        rows, columns = self.patch_size
        if height % rows or width % columns or not height or not width:
            raise ValueError(
                f"images of {height} x {width} pixels (height x width) do not divide into patches "
                f"of {rows} x {columns}; preprocess(..., size=) takes multiples, such as "
                f"{nearest_multiple(height, rows)} x {nearest_multiple(width, columns)}"
            )
        return height // rows, width // columns

    def run_block(self, index: int, x: Tensor, grid_spec: GridSpec) -> Tensor:
        """Return the stream (N, L, D) after block `index`, by calling the model's own module."""
        output: Tensor = self.blocks[index](x)
        return output

    def encode(self, images: Tensor, taps: Mapping[int, nn.Module] | None = None) -> Tensor:
        """Return the model's own embedding (N, C) of images, at any size the patches divide.

        Args:
            images: Images (N, 3, H, W).
            taps: Modules by index of a block; the patch tokens entering that block pass through
                the module as (N, D, h, w).
        """
        self.grid(*images.shape[-2:])
        self._warn_of_hooks(len(self.blocks))
        add_pass(images)
        x, grid_spec = self.embed(images)
        for index in range(len(self.blocks)):
            if taps and index in taps:
                x = self._tap(taps[index], x, grid_spec.grid)
            x = self.run_block(index, x, grid_spec)
        return self.pool(x)

    def describe(self) -> str:
        """Return family, pooling, blocks, size and patches in one line."""
        (height, width), (rows, columns) = self.native_size, self.patch_size
        grid, count = self.grid(height, width), len(self.blocks)
        return (
            f"{self.family}, pooled by {self.pooling}, {count} block{'s' * (count > 1)}, "
            f"{height} x {width} pixels in {grid[0]} x {grid[1]} patches of {rows} x {columns}"
        )

    def enter(self, images: Tensor, index: int) -> tuple[Tensor, GridSpec]:
        """Return the tokens (N, L, D) entering block `index`, and their positions.

        Raises:
            TypeError: If the number of tokens is not that of prefix tokens and patches.
            ValueError: If the patch size does not divide the images.
        """
        self.grid(*images.shape[-2:])
        self._warn_of_hooks(index)
        add_pass(images)
        x, grid_spec = self.embed(images)
        rows, columns = grid_spec.grid
        if x.shape[1] != self.num_prefix_tokens + rows * columns:
            raise TypeError(
                f"the image tower {type(self.visual).__name__} makes {x.shape[1]} tokens of an "
                f"image, expected {self.num_prefix_tokens} and {rows} x {columns} patches; remove "
                "the hook or part that adds or drops tokens, or register a tower for it"
            )
        for previous in range(index):
            x = self.run_block(previous, x, grid_spec)
        return x, grid_spec

    def iter_blocks_with_attention(
        self, x: Tensor, grid_spec: GridSpec, first: int, pooled_only: bool = False
    ) -> Iterator[BlockTrace]:
        """Run the blocks from `first` on, and yield each with its attention exposed.

        If gradients are enabled, results can be differentiated with respect to the probabilities.

        Args:
            x: The stream (N, L, D) that enters block `first`.
            grid_spec: The positions of the tokens.
            first: Index of the first block to run.
            pooled_only: Whether the last block computes only the P leading tokens that the pooled
                embedding needs: probabilities (N, heads, P, L) and stream (N, P, D).
        """
        last = len(self.blocks) - 1
        for index in range(first, last + 1):
            count = self.num_pooled_tokens if pooled_only and index == last else None
            heads = self.attention_inputs(index, x, grid_spec, count)
            if count is not None:
                heads, x = heads.first_queries(count), x[:, :count]
            probabilities = heads.probabilities()
            if torch.is_grad_enabled() and not probabilities.requires_grad:
                probabilities.requires_grad_()
            x = self._add_attention(index, x, probabilities @ heads.v, heads)
            yield BlockTrace(heads, probabilities, x)

    def dual_path(self, images: Tensor, path_config: PathConfig) -> TowerOutput:
        """Run one second path beside the model's own one.

        Args:
            images: Images (N, 3, H, W).
            path_config: The second path.

        Returns:
            The second path's patches and the model's own pooled embedding.
        """
        (output,) = self.paths(images, [path_config])
        return output

    def paths(self, images: Tensor, path_configs: Sequence[PathConfig]) -> list[TowerOutput]:
        """Run any number of second paths beside the model's own one, in one forward pass.

        Args:
            images: Images (N, 3, H, W).
            path_configs: The second paths.

        Returns:
            For each path, its patches and the model's own pooled embedding.
        """
        last = len(self.blocks) - 1
        starts = [last + 1 - config.num_blocks for config in path_configs]
        x, grid_spec = self.enter(images, min(starts))
        # A path of no blocks needs all of the model's own tokens, otherwise the pooled ones do.
        num_pooled = None if last + 1 in starts else self.num_pooled_tokens
        streams: dict[int, Tensor] = {}
        for index in range(min(starts), last + 1):
            active = [i for i, start in enumerate(starts) if start <= index]
            count = num_pooled if index == last else None
            values_only = all(path_configs[i].values_only for i in active)
            heads = self.attention_inputs(index, x, grid_spec, count if values_only else None)
            for i in active:
                streams[i] = self._path_step(index, streams.get(i, x), heads, path_configs[i])
            if count is not None:
                heads, x = heads.first_queries(count), x[:, :count]
            x = self._add_attention(index, x, heads.attend(), heads)
        pooled, prefix = self.pool(x), self.num_prefix_tokens
        return [
            TowerOutput(self.project(streams.get(i, x)[:, prefix:]), pooled, grid_spec.grid)
            for i in range(len(path_configs))
        ]

    def bypassed(self, first: int = 0) -> dict[str, nn.Module]:
        """Return the modules that are not called if blocks from `first` on are rebuilt, by name."""
        modules: dict[str, Any] = dict(self.containers)
        for index in range(first, len(self.blocks)):
            block = self.blocks[index]
            attention = getattr(block, "attn", None)
            modules[f"block {index}"] = block
            modules[f"the attention of block {index}"] = attention
            # Not part of the result, but where attention maps are usually recorded.
            modules[f"the attention dropout of block {index}"] = getattr(
                attention, "attn_drop", None
            )
        return {name: part for name, part in modules.items() if isinstance(part, nn.Module)}

    def _warn_of_hooks(self, first: int) -> None:
        silent = [name for name, part in self.bypassed(first).items() if has_hooks([part])]
        warn_of_hooks(silent, stacklevel=4)

    def _tap(self, module: nn.Module, x: Tensor, grid: Grid) -> Tensor:
        prefix, patches = x[:, : self.num_prefix_tokens], x[:, self.num_prefix_tokens :]
        output = module(patches.mT.unflatten(-1, grid).contiguous())
        return torch.cat([prefix, output.flatten(-2).mT], dim=1)

    def _add_attention(
        self, index: int, x: Tensor, values: Tensor, heads: AttentionInputs
    ) -> Tensor:
        update = self.merge(index, values, heads.x)
        return self.feed_forward(index, x + update if self.has_residual else update)

    def _path_step(
        self, index: int, stream: Tensor, heads: AttentionInputs, config: PathConfig
    ) -> Tensor:
        update = self.merge(index, config.attention(heads), heads.x)
        if config.residual and self.has_residual:
            update = stream + update
        return self.feed_forward(index, update) if config.mlp else update
