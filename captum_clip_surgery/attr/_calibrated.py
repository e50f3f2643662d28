"""Dense methods of 2025, whose path reads earlier streams and attention of the tower.

They are written from their papers' formulas, not from code. No published numbers are available to
this project, so that they are tested against plain restatements of the formulas; each class says
what its paper leaves open. Block numbers are those of the papers' 12-block towers: block k stands
for the first floor(k * n / 12) of n blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_clip_surgery.attr._base import InputShapeMixin, LayerShapeMixin, check_classifier
from captum_clip_surgery.attr._dense import (
    CLEARCLIP_PATH,
    NACLIP_PATH,
    SCLIP_PATH,
    kk_attention,
    qq_attention,
)
from captum_clip_surgery.attr._dual_path import DualPathAttribution
from captum_clip_surgery.attr._token_steps import (
    LIKENESS_BLOCK,
    Aggregate,
    ClassOutliers,
    Likeness,
    LocalOutliers,
    ReplaceOutliers,
    Steps,
    scale_block,
)
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.models.image import AttentionInputs, PathConfig, PathTrace

#: The fewest blocks on which the middle blocks of the papers are different ones.
MIN_BLOCKS = 3
#: Block whose likeness aggregates patches after the last block in SC-CLIP.
FINAL_LIKENESS_BLOCK = 4
#: First and last block of the streams that SC-CLIP's second branch sums.
BRANCH_BLOCKS = (4, 10)
#: First and last block whose attention ResCLIP averages.
ATTENTION_BLOCKS = (6, 9)
#: Inverse temperature of attention by likeness.
LIKENESS_SHARPNESS = 3.0
#: Weight of the class stream in SFP.
CLASS_WEIGHT = 0.3
#: Paths whose attention ResCLIP mixes with that of middle blocks.
BASELINES = {"SCLIP": SCLIP_PATH, "ClearCLIP": CLEARCLIP_PATH, "NACLIP": NACLIP_PATH}


def _check_depth(clip: ZeroShotClassifier, name: str) -> int:
    """Return the number of blocks of a tower that is deep enough to have middle blocks."""
    count = len(check_classifier(clip).tower.blocks)
    if count < MIN_BLOCKS:
        raise TypeError(
            f"{name} is not defined on {clip.tower.family} with {count} "
            f"block{'s' * (count > 1)}: it reads middle blocks, which takes {MIN_BLOCKS} blocks or "
            "more; use LayerCLIPSurgery"
        )
    return count


@dataclass(frozen=True)
class LikenessAttention:
    """Values weighted by the softmax of the patches' centered cosines.

    Patches attend to patches only, and not to those less alike than the image's mean. The rows of
    prefix tokens, which the path does not return, are zero.

    Attributes:
        likeness: Computes the cosines.
    """

    likeness: Likeness

    def __call__(self, inputs: AttentionInputs, trace: PathTrace) -> Tensor:
        """Return attended values (N, heads, L, d)."""
        cosines = trace.once(self.likeness)  # (N, h*w, h*w)
        centered = cosines - cosines.mean((-2, -1), keepdim=True)
        itself = torch.eye(cosines.shape[-1], dtype=torch.bool, device=cosines.device)
        # Where all patches are equal, rounding alone would mask a patch for itself.
        unlike = (centered < 0) & ~itself
        logits = LIKENESS_SHARPNESS * centered.masked_fill(unlike, -torch.inf)
        prefix = inputs.v.shape[-2] - cosines.shape[-1]
        weights = F.pad(logits.softmax(-1), (prefix, 0, prefix, 0))  # (N, L, L)
        return weights[:, None] @ inputs.v


@dataclass(frozen=True)
class CalibratedAttention:
    """Values weighted by the mean of q-q attention, k-k attention and attention by likeness.

    Attributes:
        by_likeness: The third of them.
    """

    by_likeness: LikenessAttention

    def __call__(self, inputs: AttentionInputs, trace: PathTrace) -> Tensor:
        """Return attended values (N, heads, L, d)."""
        likeness = self.by_likeness(inputs, trace)
        return (qq_attention(inputs) + kk_attention(inputs) + likeness) / 3


@dataclass(frozen=True)
class MixedAttention:
    """A baseline's attended values, mixed with those by the mean attention of earlier blocks.

    Attributes:
        baseline: The last block's attention in the baseline.
        blocks: Indices of the earlier blocks; paths must trace their attention.
        weight: Weight of their mean, head by head; the baseline has the rest.
    """

    baseline: PathConfig
    blocks: tuple[int, ...]
    weight: float

    def __call__(self, inputs: AttentionInputs, trace: PathTrace) -> Tensor:
        """Return attended values (N, heads, L, d)."""
        earlier = torch.stack([trace.attentions[block] for block in self.blocks]).mean(0)
        attended = self.baseline.attention(inputs)
        return (1 - self.weight) * attended + self.weight * (earlier @ inputs.v)


@dataclass(frozen=True)
class SumStreams:
    """Starts a path from the sum of earlier streams.

    Attributes:
        blocks: Indices of the blocks that they enter; paths must trace them.
    """

    blocks: tuple[int, ...]

    def __call__(self, stream: Tensor, trace: PathTrace) -> Tensor:
        """Return the sum (N, L, D)."""
        return torch.stack([trace.streams[block] for block in self.blocks]).sum(0)


@dataclass(frozen=True)
class AddClassStream:
    """Adds the class token that enters a block to every patch.

    Attributes:
        block: Index of the block; paths must trace its stream.
        weight: Factor of the class token.
    """

    block: int
    weight: float

    def __call__(self, patches: Tensor, trace: PathTrace) -> Tensor:
        """Return the patches (N, h*w, D) with the class token added."""
        return patches + self.weight * trace.streams[self.block][:, :1]


def sc_clip_path(count: int) -> PathConfig:
    """Return SC-CLIP's path for a tower of `count` blocks."""
    last = count - 1
    repair = ReplaceOutliers(LocalOutliers(last))
    likeness, final = (
        Likeness(scale_block(number, count), repair)
        for number in (LIKENESS_BLOCK, FINAL_LIKENESS_BLOCK)
    )
    first, final_block = (scale_block(number, count) for number in BRANCH_BLOCKS)
    levels = tuple(range(first, final_block + 1))
    attention = LikenessAttention(likeness)
    streams = tuple(sorted({last, likeness.block, final.block, *levels}))
    branch = PathConfig(
        1, attention, residual=False, reads_trace=True, streams=streams, before=SumStreams(levels)
    )
    return replace(
        branch,
        attention=CalibratedAttention(attention),
        before=Steps((repair, Aggregate(likeness))),
        after=Aggregate(final),
        plus=(branch,),
    )


def sfp_path(count: int) -> PathConfig:
    """Return SFP's path for a tower of `count` blocks."""
    last = count - 1
    repair = ReplaceOutliers(ClassOutliers(last - 1))
    likeness = Likeness(scale_block(LIKENESS_BLOCK, count), repair)
    return PathConfig(
        1,
        CalibratedAttention(LikenessAttention(likeness)),
        residual=False,
        reads_trace=True,
        streams=(likeness.block, last),
        attentions=(last - 1,),
        before=Steps((repair, Aggregate(likeness))),
        after=AddClassStream(last, CLASS_WEIGHT),
    )


class _SCCLIPPath(DualPathAttribution):
    method_name = "SC-CLIP"

    def __init__(self, forward_func: ZeroShotClassifier) -> None:
        super().__init__(forward_func, sc_clip_path(_check_depth(forward_func, "SC-CLIP")))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class LayerSCCLIP(_SCCLIPPath, LayerShapeMixin):
    """SC-CLIP on the patch grid: outliers replaced, patches aggregated by likeness, (N, 1, h, w).

    The 5 % of patches with the greatest local outlier factor (30 neighbors) in the stream that
    enters the last block are replaced by the mean of their sound neighbors, and patches are
    aggregated by their cosines after block 9 of 12 (from 0.4 on). The last block returns its
    attention only, the mean of q-q, k-k and attention by likeness. A second branch passes the sum
    of the streams after blocks 4 to 10 through the same block, by likeness alone. The sum of both
    is aggregated by the cosines after block 4.

    Open in the formulas, and decided here: outliers are those of the last block's stream in the
    middle streams too; those without a sound neighbor are replaced after the others; the branch
    sums streams as they are; the mean of cosines is that of the image; tokens are aggregated ahead
    of the projection.

    Args:
        forward_func: The classifier.

    Raises:
        TypeError: If the image tower has fewer than 3 blocks.

    References:
        Bai, Liu, Han, Zhang, Tang, Zhou, Lu: Self-Calibrated CLIP for Training-Free
        Open-Vocabulary Segmentation. IEEE Transactions on Image Processing, 2025.
    """


class SCCLIP(_SCCLIPPath, InputShapeMixin):
    """SC-CLIP shaped like the images; see `LayerSCCLIP` for the method."""


class _SFPPath(DualPathAttribution):
    method_name = "SFP"

    def __init__(self, forward_func: ZeroShotClassifier) -> None:
        count = _check_depth(forward_func, "SFP")
        tower = forward_func.tower
        if tower.pooling != "class token":
            raise TypeError(
                f"SFP is not defined on {tower.family} pooled by {tower.pooling}: it finds "
                "outliers by the attention of a class token; use LayerSCCLIP"
            )
        super().__init__(forward_func, sfp_path(count))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class LayerSFP(_SFPPath, LayerShapeMixin):
    """SFP on the patch grid, in its form with CLIP alone: attributions (N, 1, h, w).

    Patches to which the class token attends more than they attend to themselves (its attention
    times 1.5) are replaced by the mean of their sound neighbors, and patches are aggregated by
    their cosines after block 9 of 12 (from 0.4 on). The last block returns its attention only, the
    mean of q-q, k-k and attention by likeness, to which 0.3 of the class token's stream is added.

    The paper purifies at each layer; here outliers are found once, by the mean over heads of the
    attention of the last block but one, and replaced in the stream that enters the last block.

    Args:
        forward_func: The classifier.

    Raises:
        TypeError: If the image tower has fewer than 3 blocks or is not pooled by a class token.

    References:
        Jin, Yu, Zhang, Sun, Dong, Xiao: Feature Purification Matters: Suppressing Outlier
        Propagation for Training-Free Open-Vocabulary Semantic Segmentation. ICCV 2025.
    """


class SFP(_SFPPath, InputShapeMixin):
    """SFP shaped like the images; see `LayerSFP` for the method."""


class _ResCLIPPath(DualPathAttribution):
    method_name = "ResCLIP"

    def __init__(
        self, forward_func: ZeroShotClassifier, baseline: str = "NACLIP", weight: float = 0.5
    ) -> None:
        count = _check_depth(forward_func, "ResCLIP")
        if baseline not in BASELINES:
            raise ValueError(f"baseline must be one of {', '.join(BASELINES)}, got {baseline!r}")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= 1:
            raise ValueError(f"weight must be a number from 0 to 1, got {weight!r}")
        first, last = (scale_block(number, count) for number in ATTENTION_BLOCKS)
        blocks = tuple(range(first - 1, last))
        path = BASELINES[baseline]
        path_config = replace(
            path,
            attention=MixedAttention(path, blocks, weight),
            reads_trace=True,
            attentions=blocks,
        )
        super().__init__(forward_func, path_config)
        self.baseline = baseline
        self.weight = weight

    def __repr__(self) -> str:
        return f"{type(self).__name__}(baseline={self.baseline!r}, weight={self.weight})"


class LayerResCLIP(_ResCLIPPath, LayerShapeMixin):
    """ResCLIP on the patch grid: a baseline's attention mixed with middle blocks', (N, 1, h, w).

    In the last block, the baseline's self-self attention has the weight 1 - `weight` and the mean
    of the q-k attention of blocks 6 to 9 of 12, head by head, has `weight`.

    The blocks and the default weight are stated from memory of the paper. Its second stage, in
    which patches of one predicted class attend to each other, is left out: it would make the map
    of a text depend on the other texts.

    Args:
        forward_func: The classifier.
        baseline: The method whose last block is changed: "SCLIP", "ClearCLIP" or "NACLIP".
        weight: Weight of the middle blocks' attention, from 0, the baseline, to 1.

    Raises:
        TypeError: If the image tower has fewer than 3 blocks.
        ValueError: If `baseline` is unknown, or `weight` is not a number from 0 to 1.

    References:
        Yang, Deng, Li, Duan: ResCLIP: Residual Attention for Training-free Dense Vision-language
        Inference. CVPR 2025.
    """


class ResCLIP(_ResCLIPPath, InputShapeMixin):
    """ResCLIP shaped like the images; see `LayerResCLIP` for the method and its arguments."""
