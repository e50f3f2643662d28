"""What every image tower answers, and the one pass that all dual-path methods share.

An adapter computes beside the model and never touches it: it holds the tower's modules, calls
them, and reads their parameters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_clip_surgery.models._blocks import AttentionInputs, Grid, has_hooks
from captum_clip_surgery.models.text.towers import warn_of_hooks

POSITION_MODES = ("bilinear", "bicubic")


@dataclass(frozen=True)
class GridSpec:
    """Where the tokens of one pass stand: patches on a grid, behind the prefix tokens.

    `rope` is the rotary embedding of that grid, for towers that turn queries and keys by it.
    """

    grid: Grid
    rope: Tensor | None = None


@dataclass(frozen=True)
class BlockTrace:
    """A block with its attention laid open.

    `probabilities` (N, heads, L, L) weigh the values of `heads`; `stream` (N, L, D) leaves it. See
    `Tower.iter_blocks_with_attention` for the last block.
    """

    heads: AttentionInputs
    probabilities: Tensor
    stream: Tensor


@dataclass(frozen=True)
class PathConfig:
    """A second path beside the last blocks of a tower, as data.

    Args:
        num_blocks: how many of the last blocks the path spans; 0 gives the tower's own tokens.
        attention: the block's heads to the attended values (N, heads, L, d).
        residual: the path starts from the stream that enters the first of those blocks, and each
            block adds to it; otherwise it is the last block's output alone.
        mlp: whether the path runs the blocks' feed-forward.
        values_only: whether `attention` looks at the values alone; the last block then makes
            queries for the tokens that are pooled, and for no others.
    """

    num_blocks: int
    attention: Callable[[AttentionInputs], Tensor]
    residual: bool = True
    mlp: bool = False
    values_only: bool = False


@dataclass(frozen=True)
class TowerOutput:
    """Images in the joint space, not normalised: `patches` (N, h*w, C) and `pooled` (N, C)."""

    patches: Tensor
    pooled: Tensor
    grid: Grid


class Tower(ABC):
    """One family of image towers.

    Args:
        visual: the model's image tower, of a class that `supports` accepts.
        positions: how positional embeddings are resized, "bilinear" as CLIP Surgery does, or
            "bicubic" with antialiasing as open_clip does.
    """

    #: The family as error messages and listings name it.
    family: ClassVar[str]
    #: Whether a block adds to the stream that enters it.
    has_residual: ClassVar[bool] = True

    def __init__(self, visual: Any, positions: str = "bilinear") -> None:
        if positions not in POSITION_MODES:
            raise ValueError(f"positions {positions!r} is none of {', '.join(POSITION_MODES)}")
        self.visual = visual
        self.positions = positions

    @classmethod
    @abstractmethod
    def claims(cls, visual: nn.Module) -> bool:
        """Whether an image tower is of this family's classes."""

    @classmethod
    @abstractmethod
    def supports(cls, visual: Any) -> str | None:
        """None for a tower of this family on which surgery is defined, otherwise why it is not."""

    # --- what a family answers -------------------------------------------------------------------

    @property
    @abstractmethod
    def blocks(self) -> Sequence[Any]:
        """The modules that surgery can run beside, first to last."""

    @property
    def containers(self) -> dict[str, nn.Module]:
        """Modules around the blocks that are not called, by name; their parts are."""
        return {"the image tower": self.visual}

    @property
    @abstractmethod
    def pooling(self) -> str:
        """What makes one embedding of the tokens: "class token", "average" or "attention"."""

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches."""
        return 1

    @property
    def num_pooled_tokens(self) -> int | None:
        """How many leading tokens the pooled embedding needs; None is all."""
        return 1 if self.pooling == "class token" else None

    @property
    @abstractmethod
    def patch_size(self) -> tuple[int, int]:
        """Pixels of a grid cell (height, width)."""

    @property
    @abstractmethod
    def native_size(self) -> tuple[int, int]:
        """Pixels (height, width) that the tower was built for."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The type in which images enter."""

    @abstractmethod
    def embed(self, images: Tensor) -> tuple[Tensor, GridSpec]:
        """Images (N, 3, H, W) to the tokens entering the first block, (N, L, D)."""

    @abstractmethod
    def heads(
        self, index: int, x: Tensor, layout: GridSpec, queries: int | None = None
    ) -> AttentionInputs:
        """Block `index`'s queries, keys and values of the stream x.

        `queries` is how many leading tokens are to have one at least; None is all.
        """

    @abstractmethod
    def merge(self, index: int, values: Tensor, x: Tensor) -> Tensor:
        """What block `index` adds to the stream, (N, L, D), of attended values (N, heads, L, d).

        `x` is the attention's input, `AttentionInputs.x`, with which some blocks gate its output.
        """

    @abstractmethod
    def feed_forward(self, index: int, x: Tensor) -> Tensor:
        """The stream after block `index`'s feed-forward."""

    @abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """Tokens after the last block to the joint space, each alone."""

    @abstractmethod
    def pool(self, x: Tensor) -> Tensor:
        """The tower's own embedding (N, C) of its tokens after the last block."""

    # --- what follows for all --------------------------------------------------------------------

    def grid(self, height: int, width: int) -> Grid:
        """The patches (rows, columns) of an image.

        Raises:
            ValueError: a side the patch size does not divide.
        """
        rows, columns = self.patch_size
        if height % rows or width % columns or not height or not width:
            raise ValueError(
                f"images of {height} x {width} pixels (height x width) do not divide into patches "
                f"of {rows} x {columns}; preprocess(..., size=) takes multiples, such as "
                f"{nearest_multiple(height, rows)} x {nearest_multiple(width, columns)}"
            )
        return height // rows, width // columns

    def run_block(self, index: int, x: Tensor, layout: GridSpec) -> Tensor:
        """The stream after block `index`, through the model's own module."""
        out: Tensor = self.blocks[index](x)
        return out

    def encode(self, images: Tensor, taps: Mapping[int, nn.Module] | None = None) -> Tensor:
        """The model's own embedding (N, C) of images, at any size.

        Args:
            images: (N, 3, H, W).
            taps: for a block's index, a module through which the patch tokens entering that block
                pass as (N, D, h, w).
        """
        self.grid(*images.shape[-2:])
        self._warn_of_hooks(len(self.blocks))
        x, layout = self.embed(images)
        for index in range(len(self.blocks)):
            if taps and index in taps:
                x = self._tap(taps[index], x, layout.grid)
            x = self.run_block(index, x, layout)
        return self.pool(x)

    def describe(self) -> str:
        """The tower in one line: family, pooling, blocks, size and patches."""
        (height, width), (rows, columns) = self.native_size, self.patch_size
        grid, count = self.grid(height, width), len(self.blocks)
        return (
            f"{self.family}, pooled by {self.pooling}, {count} block{'s' * (count > 1)}, "
            f"{height} x {width} pixels in {grid[0]} x {grid[1]} patches of {rows} x {columns}"
        )

    def _tap(self, module: nn.Module, x: Tensor, grid: Grid) -> Tensor:
        prefix, patches = x[:, : self.num_prefix_tokens], x[:, self.num_prefix_tokens :]
        seen = module(patches.mT.unflatten(-1, grid).contiguous())
        return torch.cat([prefix, seen.flatten(-2).mT], dim=1)

    def enter(self, images: Tensor, index: int) -> tuple[Tensor, GridSpec]:
        """The tokens entering block `index`, (N, L, D), and where they stand."""
        self.grid(*images.shape[-2:])
        self._warn_of_hooks(index)
        x, layout = self.embed(images)
        rows, columns = layout.grid
        if x.shape[1] != self.num_prefix_tokens + rows * columns:
            raise TypeError(
                f"the image tower {type(self.visual).__name__} makes {x.shape[1]} tokens of an "
                f"image, expected {self.num_prefix_tokens} and {rows} x {columns} patches; remove "
                "the hook or part that adds or drops tokens, or register an adapter for it"
            )
        for before in range(index):
            x = self.run_block(before, x, layout)
        return x, layout

    def bypassed(self, first: int = 0) -> dict[str, nn.Module]:
        """List the modules that are not called when blocks from `first` on are taken apart."""
        named: dict[str, Any] = dict(self.containers)
        for index in range(first, len(self.blocks)):
            block = self.blocks[index]
            attention = getattr(block, "attn", None)
            named[f"block {index}"] = block
            named[f"the attention of block {index}"] = attention
            # Not part of the result, but where attention maps are usually recorded.
            named[f"the attention dropout of block {index}"] = getattr(attention, "attn_drop", None)
        return {name: part for name, part in named.items() if isinstance(part, nn.Module)}

    def _warn_of_hooks(self, first: int) -> None:
        """Warn of hooks that do not fire: on containers, and on blocks from `first` on."""
        silent = [name for name, part in self.bypassed(first).items() if has_hooks([part])]
        warn_of_hooks(silent, stacklevel=4)

    def iter_blocks_with_attention(
        self, x: Tensor, layout: GridSpec, first: int, pooled_only: bool = False
    ) -> Iterator[BlockTrace]:
        """The blocks from `first` on, of the tokens that enter it, with attention laid open.

        Where gradients are enabled, the probabilities can be differentiated by. With `pooled_only`
        the last block is asked only for the leading tokens that the pooled embedding needs: its
        probabilities are (N, heads, few, L) and its stream (N, few, D).
        """
        for index in range(first, len(self.blocks)):
            few = self.num_pooled_tokens if pooled_only and index == len(self.blocks) - 1 else None
            heads = self.heads(index, x, layout, few)
            if few is not None:
                heads = heads.first_queries(few)
                x = x[:, :few]
            probabilities = heads.probabilities()
            if torch.is_grad_enabled() and not probabilities.requires_grad:
                probabilities.requires_grad_()
            update = self.merge(index, probabilities @ heads.v, heads.x)
            x = self.feed_forward(index, x + update if self.has_residual else update)
            yield BlockTrace(heads, probabilities, x)

    def dual_path(self, images: Tensor, recipe: PathConfig) -> TowerOutput:
        """One pass for both paths: patches of the recipe's, pooled embedding of the model's own."""
        (encoded,) = self.paths(images, [recipe])
        return encoded

    def paths(self, images: Tensor, recipes: Sequence[PathConfig]) -> list[TowerOutput]:
        """One pass for the model's own path and one of each recipe beside it."""
        last = len(self.blocks) - 1
        starts = [last + 1 - recipe.num_blocks for recipe in recipes]
        x, layout = self.enter(images, min(starts))
        # Where a recipe asks for the model's own tokens, all of them are needed to the end.
        few = None if 0 in (recipe.num_blocks for recipe in recipes) else self.num_pooled_tokens
        streams: dict[int, Tensor] = {}
        for index in range(min(starts), last + 1):
            running = [i for i, start in enumerate(starts) if start <= index]
            asked = few if index == last else None
            sparing = all(recipes[i].values_only for i in running)
            heads = self.heads(index, x, layout, asked if sparing else None)
            for i in running:
                stream = streams.get(i, x)
                streams[i] = self._step(index, stream, heads, recipes[i])
            if asked is not None:
                # After the last block nothing asks for the original path's patches any more.
                heads, x = heads.first_queries(asked), x[:, :asked]
            update = self.merge(index, heads.attend(), heads.x)
            x = self.feed_forward(index, x + update if self.has_residual else update)
        pooled, prefix = self.pool(x), self.num_prefix_tokens
        return [
            TowerOutput(self.project(streams.get(i, x)[:, prefix:]), pooled, layout.grid)
            for i in range(len(recipes))
        ]

    def _step(
        self, index: int, stream: Tensor, heads: AttentionInputs, recipe: PathConfig
    ) -> Tensor:
        """A recipe's path after block `index`."""
        update = self.merge(index, recipe.attention(heads), heads.x)
        if recipe.residual and self.has_residual:
            update = stream + update
        return self.feed_forward(index, update) if recipe.mlp else update


def resize_positions(positions: Tensor, native: Grid, grid: Grid, prefix: int, mode: str) -> Tensor:
    """A positional embedding (prefix + h*w, D) resized from its native grid to another."""
    if grid == native:
        return positions
    patches = positions[prefix:].T.reshape(1, -1, *native)
    wide = torch.promote_types(patches.dtype, torch.float32)
    resized = F.interpolate(
        patches.to(wide), grid, mode=mode, align_corners=False, antialias=mode == "bicubic"
    )
    return torch.cat([positions[:prefix], resized[0].flatten(1).T.to(positions.dtype)])


def nearest_multiple(size: int, step: int) -> int:
    """The multiple of a step, at least one of it, that is nearest to a size."""
    return max(1, round(size / step)) * step
