"""Steps of paths: replacing outlier tokens, and aggregating patches that look alike.

A step maps tokens (N, P + h*w, D) and the trace to tokens of the same shape; the P prefix tokens,
of which there are none after a path, are left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_clip_surgery._utils.outliers import (
    NUM_NEIGHBORS,
    SHARE,
    fill_from_neighbors,
    local_outliers,
)
from captum_clip_surgery.models.image import PathTrace

#: Number of blocks of the towers by which papers number theirs.
PAPER_BLOCKS = 12
#: The paper's block whose cosines aggregate patches in SC-CLIP and SFP.
LIKENESS_BLOCK = 9

Step = Callable[[Tensor, PathTrace], Tensor]
#: Finds outliers: a mask (N, h*w) of patches.
Find = Callable[[PathTrace], Tensor]


def scale_block(number: int, count: int) -> int:
    """Return how many blocks of `count` correspond to the papers' first `number`."""
    return number * count // PAPER_BLOCKS


def split_patches(tokens: Tensor, trace: PathTrace) -> tuple[Tensor, Tensor]:
    """Return the prefix tokens (N, P, D) and the patches (N, h*w, D) of tokens."""
    prefix = tokens.shape[1] - prod(trace.grid)
    return tokens[:, :prefix], tokens[:, prefix:]


def replace_outliers(tokens: Tensor, outliers: Tensor, trace: PathTrace) -> Tensor:
    """Return tokens (N, P + h*w, D) with the patches of a mask (N, h*w) filled by neighbors."""
    prefix, patches = split_patches(tokens, trace)
    return torch.cat([prefix, fill_from_neighbors(patches, outliers, trace.grid)], dim=1)


@dataclass(frozen=True)
class LocalOutliers:
    """Finds the share of patches with the greatest local outlier factor.

    Attributes:
        block: Index of the block that the tokens enter; paths must trace its stream.
        num_neighbors: Number of nearest tokens that make a neighborhood.
        share: Share of the patches that are outliers, from 0 to 1, rounded down.
    """

    block: int
    num_neighbors: int = NUM_NEIGHBORS
    share: float = SHARE

    def __call__(self, trace: PathTrace) -> Tensor:
        """Return the mask (N, h*w) of outliers."""
        _, patches = split_patches(trace.streams[self.block], trace)
        return local_outliers(patches, self.num_neighbors, self.share)


@dataclass(frozen=True)
class ClassOutliers:
    """Finds patches to which the class token attends more than they attend to themselves.

    Attributes:
        block: Index of the block whose attention is compared; paths must trace it.
        factor: Factor of the class token's attention in the comparison.
    """

    block: int
    factor: float = 1.5

    def __call__(self, trace: PathTrace) -> Tensor:
        """Return the mask (N, h*w) of outliers."""
        attention = trace.attentions[self.block].mean(1)  # (N, L, L)
        prefix = attention.shape[-1] - prod(trace.grid)
        of_class, of_itself = attention[:, 0], attention.diagonal(dim1=-2, dim2=-1)
        return (self.factor * of_class > of_itself)[:, prefix:]


@dataclass(frozen=True)
class ReplaceOutliers:
    """Replaces outlier patches by the mean of their sound neighbors.

    Attributes:
        find: Finds them.
    """

    find: Find

    def __call__(self, tokens: Tensor, trace: PathTrace) -> Tensor:
        """Return the tokens with outliers replaced."""
        return replace_outliers(tokens, trace.once(self.find), trace)


@dataclass(frozen=True)
class Likeness:
    """Cosines between the patches of a middle block.

    Attributes:
        block: Index of the block that the tokens enter; paths must trace its stream.
        repair: Step that is taken on them first.
    """

    block: int
    repair: Step | None = None

    def __call__(self, trace: PathTrace) -> Tensor:
        """Return the cosines (N, h*w, h*w)."""
        tokens = trace.streams[self.block]
        if self.repair is not None:
            tokens = self.repair(tokens, trace)
        patches = F.normalize(split_patches(tokens, trace)[1], dim=-1)
        return patches @ patches.mT


@dataclass(frozen=True)
class Aggregate:
    """Replaces each patch by the mean of those that it resembles, weighted by likeness.

    Attributes:
        likeness: Computes the cosines.
        threshold: Least cosine that counts.
    """

    likeness: Likeness
    threshold: float = 0.4

    def __call__(self, tokens: Tensor, trace: PathTrace) -> Tensor:
        """Return the tokens with patches aggregated."""
        prefix, patches = split_patches(tokens, trace)
        cosines = trace.once(self.likeness)
        weights = torch.where(cosines >= self.threshold, cosines, 0)
        return torch.cat([prefix, weights / weights.sum(-1, keepdim=True) @ patches], dim=1)


@dataclass(frozen=True)
class Steps:
    """Takes several steps, first to last."""

    steps: tuple[Step, ...]

    def __call__(self, tokens: Tensor, trace: PathTrace) -> Tensor:
        """Return the tokens after all steps."""
        for step in self.steps:
            tokens = step(tokens, trace)
        return tokens
