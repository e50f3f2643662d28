"""Inputs and outputs of a tower's forward pass, as data."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_clip_surgery.models._blocks import AttentionInputs, Grid

T = TypeVar("T")


@dataclass(frozen=True)
class GridSpec:
    """The positions of the tokens of one pass.

    Attributes:
        grid: Rows and columns of the patches, which follow the prefix tokens.
        rope: Rotary embedding of that grid, for towers that rotate queries and keys.
    """

    grid: Grid
    rope: Tensor | None = None


@dataclass(frozen=True)
class BlockTrace:
    """One block of a forward pass with its attention exposed.

    Attributes:
        heads: The block's queries, keys and values.
        probabilities: Attention probabilities (N, heads, L, L) that weight the values.
        stream: The stream (N, L, D) after the block.
    """

    heads: AttentionInputs
    probabilities: Tensor
    stream: Tensor


class PathTrace:
    """Streams and attention of the model's own pass that paths requested, as far as it has run.

    Steps before a path, which start once the model's own pass is over, find all of them.

    Attributes:
        grid: Rows h and columns w of the patches, which follow the prefix tokens.
        streams: By index of a block, the stream (N, L, D) that enters it.
        attentions: By index of a block, its attention probabilities (N, heads, L, L).

    Args:
        grid: As above.
        streams: Indices of the blocks whose streams are kept.
        attentions: Indices of the blocks whose attention is kept.
    """

    def __init__(self, grid: Grid, streams: Collection[int], attentions: Collection[int]) -> None:
        self.grid = grid
        self.streams: dict[int, Tensor] = {}
        self.attentions: dict[int, Tensor] = {}
        self._wanted_streams = frozenset(streams)
        self._wanted_attentions = frozenset(attentions)
        self._results: dict[Callable[[PathTrace], Any], Any] = {}

    def once(self, function: Callable[[PathTrace], T]) -> T:
        """Return `function(self)`, computed on the first call and shared by all paths of the pass.

        Args:
            function: A hashable function of streams and attention that are in the trace by now.
        """
        if function not in self._results:
            self._results[function] = function(self)
        return self._results[function]

    def add_stream(self, index: int, x: Tensor) -> None:
        """Keep the stream (N, L, D) that enters block `index` if a path requested it."""
        if index in self._wanted_streams:
            self.streams[index] = x

    def add_attention(self, index: int, heads: AttentionInputs) -> None:
        """Keep the attention of block `index` if a path requested it."""
        if index in self._wanted_attentions:
            self.attentions[index] = heads.probabilities()


@dataclass(frozen=True)
class PathConfig:
    """A second path parallel to the last blocks of a tower, as data.

    Equal configurations share a pass, so every field must be hashable: steps are functions, or
    instances of frozen dataclasses with `__call__`.

    Attributes:
        num_blocks: Number of last blocks that the path spans; 0 gives the tower's own tokens.
        attention: Maps a block's queries, keys and values to attended values (N, heads, L, d); if
            `reads_trace`, the trace is its second argument.
        residual: Whether the path starts from the stream that enters the first of those blocks and
            each block adds to it. Otherwise the path is the last block's output alone.
        mlp: Whether the path runs the blocks' feed-forward layers.
        values_only: Whether `attention` reads the values only. Queries of the last block are then
            computed for the pooled tokens only.
        reads_trace: Whether `attention` also takes the trace.
        streams: Indices of blocks, from 0; the streams that enter them are in the trace.
        attentions: Indices of blocks before the last one; their attention is in the trace.
        before: Maps the stream (N, L, D) that enters the first of those blocks, and the trace, to
            the stream that the path starts from. Queries, keys and values then come from that
            stream as well, which passes through the model's blocks parallel to the model's own
            one. The pooled embedding and the trace remain those of the model.
        after: Maps patch tokens (N, h*w, D) after the last block, and the trace, to those that are
            projected.
        plus: Paths whose patch tokens are added to this one's, ahead of `after`; each takes its own
            steps first.

    Raises:
        ValueError: If `before` is given for a path of no blocks.
    """

    num_blocks: int
    attention: Callable[..., Tensor]
    residual: bool = True
    mlp: bool = False
    values_only: bool = False
    reads_trace: bool = False
    streams: tuple[int, ...] = ()
    attentions: tuple[int, ...] = ()
    before: Callable[[Tensor, PathTrace], Tensor] | None = None
    after: Callable[[Tensor, PathTrace], Tensor] | None = None
    plus: tuple[PathConfig, ...] = ()

    def __post_init__(self) -> None:
        if self.before is not None and self.num_blocks == 0:
            raise ValueError(
                "before= changes the stream that a path starts from, and a path of num_blocks=0 "
                "has none; pass num_blocks of 1 or more, or after="
            )

    @property
    def source(self) -> tuple[int, Callable[[Tensor, PathTrace], Tensor]] | None:
        """What the stream that the path reads depends on, or None for the model's own stream."""
        return None if self.before is None else (self.num_blocks, self.before)

    def spans(self) -> list[PathConfig]:
        """Return this path and those added to it, each ahead of the paths added to it."""
        return [self, *(span for path in self.plus for span in path.spans())]


@dataclass(frozen=True)
class TowerOutput:
    """Images in the joint space, not normalized.

    Attributes:
        patches: Patch tokens (N, h*w, C).
        pooled: The model's own embedding (N, C).
        grid: Rows h and columns w of the patches.
    """

    patches: Tensor
    pooled: Tensor
    grid: Grid


def resize_positions(positions: Tensor, native: Grid, grid: Grid, prefix: int, mode: str) -> Tensor:
    """Resize a positional embedding from its native grid to another one.

    Args:
        positions: Positional embedding (prefix + h*w, D).
        native: Rows h and columns w of the grid it was trained on.
        grid: Rows and columns of the target grid.
        prefix: Number of leading rows to keep, one per prefix token.
        mode: "bilinear", or "bicubic" with antialiasing.

    Returns:
        Positional embedding (prefix + rows*columns, D) in the same dtype.
    """
    if grid == native:
        return positions
    patches = positions[prefix:].T.reshape(1, -1, *native)
    wide = torch.promote_types(patches.dtype, torch.float32)
    resized = F.interpolate(
        patches.to(wide), grid, mode=mode, align_corners=False, antialias=mode == "bicubic"
    )
    return torch.cat([positions[:prefix], resized[0].flatten(1).T.to(positions.dtype)])


def nearest_multiple(size: float, step: int) -> int:
    """Return the positive multiple of `step` that is nearest to `size`.

    Example::

        >>> nearest_multiple(300, 16), nearest_multiple(3, 16)
        (304, 16)
    """
    return max(1, round(size / step)) * step
