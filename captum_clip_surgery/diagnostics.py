"""A check-up of a checkpoint before its maps are trusted: what its tokens and texts look like.

Self-attention repairs are reported to collapse on some checkpoints, where a few patch tokens of
extreme norm attract everything (Darcet et al., "Vision Transformers Need Registers", ICLR 2024, on
such tokens). Nothing here needs labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_clip_surgery.attr._engine import forward_pass, tower_output
from captum_clip_surgery.attr.clip_surgery import vv_attention
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.functional import full_precision, normalized
from captum_clip_surgery.models import validation
from captum_clip_surgery.models.image import PathConfig, Tower

#: A patch token is an outlier from so many times the median norm of its image's on.
OUTLIER = 4.0
#: Depths tried at most, each one pass.
MAX_NUM_BLOCKS = 12
#: The suggested num_blocks is the smallest whose spread reaches this share of the widest.
ENOUGH = 0.95


@dataclass(frozen=True)
class TowerReport:
    """What `tower_report` finds.

    Args:
        tower: the image tower in one line.
        grid: (rows, columns) of patches.
        norms: (blocks + 1, N, h*w) norms of the patch tokens entering each block, and leaving the
            last.
        agreement: least cosine of the adapter's pooled embedding, with every block rebuilt from its
            queries, keys and values, with `encode_image`; None at a size that is not native, where
            the model itself has none.
        common_energy: share of the text features' energy that all share, their mean pairwise
            cosine: 0 for texts that have nothing in common, 1 for texts that are all alike; None
            for one text.
        spread: for depths from 0 on, the mean standard deviation over patches of the scores of each
            image's most likely text.
    """

    tower: str
    grid: tuple[int, int]
    norms: Tensor
    agreement: float | None
    common_energy: float | None
    spread: tuple[float, ...]

    @property
    def outliers(self) -> Tensor:
        """(blocks + 1,) patch tokens an image with `OUTLIER` times the median norm or more."""
        median = self.norms.median(-1, keepdim=True).values
        return (self.norms >= OUTLIER * median).double().sum(-1).mean(-1)

    @property
    def suggested_num_blocks(self) -> int:
        """The smallest number of blocks whose maps vary nearly as much as with any number.

        On the three models that this project trained, maps over that many blocks overlap most with
        the true masks, or nearly so (docs/models.md). Treat it as a hint: it has not been validated
        on pretrained models. 0 stands for the tower's own tokens, to be used with feature surgery.
        """
        return next(d for d, s in enumerate(self.spread) if s >= ENOUGH * max(self.spread))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, as JSON takes them; of the norms their median, 99 % and maximum."""
        return {
            "tower": self.tower,
            "grid": list(self.grid),
            "images": self.norms.shape[1],
            "norm_median": self.norms.flatten(1).median(1).values.tolist(),
            "norm_99": self.norms.flatten(1).quantile(0.99, dim=1).tolist(),
            "norm_max": self.norms.flatten(1).amax(1).tolist(),
            "outliers": self.outliers.tolist(),
            "agreement": self.agreement,
            "common_energy": self.common_energy,
            "spread": list(self.spread),
            "suggested_num_blocks": self.suggested_num_blocks,
        }

    def __str__(self) -> str:
        norms, outliers = self.norms.flatten(1), self.outliers
        worst = int(outliers.argmax())
        where = "none"
        if outliers[worst]:
            first = int(outliers.nonzero()[0])
            where = f"{outliers[worst]:.1f} an image entering block {worst}, first at {first}"
        agreement = "not asked: the images are not of native size"
        if self.agreement is not None:
            agreement = f"cosine {self.agreement:.6f} at least"
        common = "needs two texts"
        if self.common_energy is not None:
            common = f"{self.common_energy:.0%} of the text features' energy"
        return "\n".join(
            [
                self.tower,
                f"images                 {self.norms.shape[1]}, {self.grid[0]} x {self.grid[1]} "
                "patches each",
                f"norms of patch tokens  {norms[0].median():.1f} (median) before the first block, "
                f"{norms[-1].median():.1f} after the last, {norms.max():.1f} at most",
                f"outlier tokens         {where} ({OUTLIER:g} times the median norm or more)",
                f"pooled embedding       {agreement}, against encode_image",
                f"common to all texts    {common}",
                f"suggested num_blocks   {self.suggested_num_blocks} (a hint: see docs/models.md)",
            ]
        )


def tower_report(clip: ZeroShotClassifier, images: Tensor) -> TowerReport:
    """Check a classifier's image tower and texts on some images.

    Args:
        clip: the classifier; its texts, distractors included, are what images are asked about.
        images: (N, 3, H, W), as `clip.preprocess` makes; a dozen will do.

    Raises:
        TypeError, ValueError: images or a model that every method would refuse.

    Example::

        >>> clip = ZeroShotClassifier.demo(["dog", "pizza"])
        >>> report = tower_report(clip, torch.rand(2, 3, 64, 64))
        >>> report.norms.shape, len(report.spread)
        (torch.Size([9, 2, 16]), 9)
    """
    tower = clip.tower
    validation.check_images(images, tower, clip.device)
    validation.check_modes(clip.model)
    grid = tower.grid(*images.shape[-2:])
    if grid == (1, 1):
        raise ValueError("images of one patch have no map to stand out; give larger ones")
    with torch.no_grad(), forward_pass(clip, images, _path_configs(clip)):
        return TowerReport(
            tower=tower.describe(),
            grid=grid,
            norms=_norms(tower, images),
            agreement=_agreement(clip, images),
            common_energy=_common_energy(clip.text_features()),
            spread=_spread(clip, images),
        )


def _path_configs(clip: ZeroShotClassifier) -> list[PathConfig]:
    """List surgery over 0 to `MAX_NUM_BLOCKS` blocks."""
    most = min(MAX_NUM_BLOCKS, len(clip.tower.blocks))
    return [PathConfig(num_blocks, vv_attention) for num_blocks in range(most + 1)]


def _norms(tower: Tower, images: Tensor) -> Tensor:
    def norms(x: Tensor) -> Tensor:
        return x[:, tower.num_prefix_tokens :].double().norm(dim=-1).cpu()

    x, grid_spec = tower.embed(images.to(tower.dtype))
    found = [norms(x)]
    for index in range(len(tower.blocks)):
        x = tower.run_block(index, x, grid_spec)
        # A ResNet's one block makes no stream: it leaves embeddings, whose norms are others.
        found += [norms(x)] if tower.has_residual else []
    return torch.stack(found)


def _agreement(clip: ZeroShotClassifier, images: Tensor) -> float | None:
    if tuple(images.shape[-2:]) != clip.native_size:
        return None
    theirs = normalized(clip.model.encode_image(images.to(clip.tower.dtype)))
    rebuilt = tower_output(clip, images, PathConfig(len(clip.tower.blocks), vv_attention)).pooled
    return float((normalized(rebuilt) * theirs).sum(-1).min())


def _common_energy(features: Tensor) -> float | None:
    """The mean cosine of different texts, whose features are L2-normalised."""
    count = len(features)
    if count == 1:
        return None
    return (count * float(features.mean(0).square().sum()) - 1) / (count - 1)


def _spread(clip: ZeroShotClassifier, images: Tensor) -> tuple[float, ...]:
    features, empty = clip.text_features(), clip.empty_features()
    contrast = features if empty is None else features - empty
    found = []
    for path_config in _path_configs(clip):
        encoded = tower_output(clip, images, path_config)
        with full_precision(images):
            patches, pooled = normalized(encoded.patches), normalized(encoded.pooled)
            likely = (pooled @ features.T.to(pooled.dtype)).argmax(-1)
            scores = patches @ contrast[likely][..., None].to(patches.dtype)
        found.append(float(scores[..., 0].std(1).mean()))
    return tuple(found)
