"""What goes into a tower's forward pass and what comes out of it, as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_clip_surgery.models._blocks import AttentionInputs, Grid


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


@dataclass(frozen=True)
class PathConfig:
    """A second path beside the last blocks of a tower, as data.

    Attributes:
        num_blocks: Number of last blocks that the path spans; 0 gives the tower's own tokens.
        attention: Maps a block's queries, keys and values to attended values (N, heads, L, d).
        residual: Whether the path starts from the stream that enters the first of those blocks and
            each block adds to it. Otherwise the path is the last block's output alone.
        mlp: Whether the path runs the blocks' feed-forward layers.
        values_only: Whether `attention` reads the values only. Queries of the last block are then
            computed for the pooled tokens only.
    """

    num_blocks: int
    attention: Callable[[AttentionInputs], Tensor]
    residual: bool = True
    mlp: bool = False
    values_only: bool = False


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
