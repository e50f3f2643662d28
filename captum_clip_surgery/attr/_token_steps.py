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

from captum_clip_surgery.models.image import PathTrace

Step = Callable[[Tensor, PathTrace], Tensor]
#: Finds outliers: a mask (N, h*w) of patches.
Find = Callable[[PathTrace], Tensor]


def local_outlier_factors(tokens: Tensor, num_neighbors: int) -> Tensor:
    """Return how much sparser each token's neighborhood is than those of its neighbors.

    Args:
        tokens: Tokens (N, n, D), compared within each of the N sets.
        num_neighbors: Number of nearest tokens that make a neighborhood; at most n - 1 are used.

    Returns:
        Factors (N, n), about 1 inside of a cluster and greater for outliers; 1 for a single token.

    References:
        Breunig, Kriegel, Ng, Sander: LOF: Identifying Density-Based Local Outliers. SIGMOD 2000.
        1e-10 is added to mean distances as in scikit-learn, so that duplicates have a density.
    """
    count = tokens.shape[1]
    if count == 1:
        return tokens.new_ones(tokens.shape[:2])
    tokens = tokens.detach().to(torch.promote_types(tokens.dtype, torch.float32))
    distances = torch.cdist(tokens, tokens, compute_mode="donot_use_mm_for_euclid_dist")
    distances = distances + torch.diag(distances.new_full((count,), torch.inf))
    nearest = distances.topk(min(num_neighbors, count - 1), largest=False)  # (N, n, k)
    reach = _gather(nearest.values[..., -1], nearest.indices)  # of each neighbor
    density = 1 / (torch.maximum(reach, nearest.values).mean(-1) + 1e-10)  # (N, n)
    return _gather(density, nearest.indices).mean(-1) / density


def _gather(values: Tensor, indices: Tensor) -> Tensor:
    """Return values (N, n) at indices (N, n, k), as (N, n, k)."""
    return values[:, None].expand(-1, indices.shape[1], -1).gather(-1, indices)


def replace_outliers(tokens: Tensor, outliers: Tensor, grid: tuple[int, int]) -> Tensor:
    """Replace outlier patches by the mean of those of their eight neighbors that are sound.

    An outlier without a sound neighbor stays as it is.

    Args:
        tokens: Patch tokens (N, h*w, D).
        outliers: Mask (N, h*w) of the patches to replace.
        grid: Rows h and columns w.
    """
    sound = (~outliers).to(tokens.dtype)[..., None]  # (N, h*w, 1)
    counted = torch.cat([tokens * sound, sound], dim=-1)
    # Sums over 3 x 3 cells; outliers add nothing to them, themselves included.
    images = F.pad(counted.mT.unflatten(-1, grid), (1, 1, 1, 1))
    rows = images[..., :-2, :] + images[..., 1:-1, :] + images[..., 2:, :]
    sums = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]).flatten(-2).mT
    number = sums[..., -1:]
    repaired = sums[..., :-1] / number.clamp(min=1)
    return torch.where(outliers[..., None] & (number > 0), repaired, tokens)


def split_patches(tokens: Tensor, trace: PathTrace) -> tuple[Tensor, Tensor]:
    """Return the prefix tokens (N, P, D) and the patches (N, h*w, D) of tokens."""
    prefix = tokens.shape[1] - prod(trace.grid)
    return tokens[:, :prefix], tokens[:, prefix:]


@dataclass(frozen=True)
class LocalOutliers:
    """Finds the share of patches with the greatest local outlier factor.

    Attributes:
        block: Index of the block that the tokens enter; paths must trace its stream.
        num_neighbors: Number of nearest tokens that make a neighborhood.
        share: Share of the patches that are outliers, from 0 to 1.
    """

    block: int
    num_neighbors: int = 30
    share: float = 0.05

    def __call__(self, trace: PathTrace) -> Tensor:
        """Return the mask (N, h*w) of outliers."""
        _, patches = split_patches(trace.streams[self.block], trace)
        factors = local_outlier_factors(patches, self.num_neighbors)
        return factors > factors.quantile(1 - self.share, dim=-1, keepdim=True)


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
        prefix, patches = split_patches(tokens, trace)
        repaired = replace_outliers(patches, trace.once(self.find), trace.grid)
        return torch.cat([prefix, repaired], dim=1)


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
