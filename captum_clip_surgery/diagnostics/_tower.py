"""Check-up of a checkpoint: its patch tokens and its texts.

Self-attention repairs are reported to fail on some checkpoints, where a few patch tokens of extreme
norm attract all attention (Darcet et al., "Vision Transformers Need Registers", ICLR 2024). The
check-up needs no labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from captum_clip_surgery._utils.outliers import NORM_RATIO, norm_outliers
from captum_clip_surgery._utils.tensors import as_double
from captum_clip_surgery.attr import PathConfig
from captum_clip_surgery.attr._engine import forward_pass, tower_output
from captum_clip_surgery.attr._repair import repaired_path
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.diagnostics._verdict import describe_verdict, untrained_parts
from captum_clip_surgery.functional import full_precision, normalized
from captum_clip_surgery.models._validation import check_images
from captum_clip_surgery.models.image import Tower
from captum_clip_surgery.models.image._surgery import (
    RELEASED_NUM_BLOCKS,
    default_num_blocks,
    released_num_blocks,
    surgery_path,
    vv_attention,
)
from captum_clip_surgery.visualization._scales import COLORS

#: Largest number of blocks that is tried.
MAX_NUM_BLOCKS = 12
#: The suggested num_blocks is the smallest whose spread reaches this share of the largest spread.
SUFFICIENT = 0.95


@dataclass(frozen=True)
class TowerReport:
    """Findings about an image tower and its texts, as `tower_report` returns them.

    Args:
        tower: One-line description of the image tower.
        grid: Rows and columns of patches.
        norms: Norms of the patch tokens that enter each block and that leave the last,
            (blocks + 1, N, h*w).
        agreement: Smallest cosine between the adapter's pooled embedding, where every block is
            rebuilt from its queries, keys and values, and `encode_image`; None for images of
            another than the native size, which `encode_image` does not accept.
        common_energy: Mean cosine between different text features: 0 for texts with nothing in
            common, 1 for identical ones; None for one text.
        spread: For 0, 1, ... blocks of surgery, the mean standard deviation over patches of the
            scores of each image's most likely text.
        untrained: Towers whose weights are random: "image tower", "text tower".
        default_num_blocks: Number of blocks that surgery spans by default, and why.
        maps: Maps of each image's most likely text by surgery as it is and with `repair="auto"`,
            (2, N, h*w).
    """

    tower: str
    grid: tuple[int, int]
    norms: Tensor
    agreement: float | None
    common_energy: float | None
    spread: tuple[float, ...]
    untrained: tuple[str, ...] = ()
    default_num_blocks: tuple[int, str] = (RELEASED_NUM_BLOCKS, "as released")
    maps: Tensor | None = None

    @property
    def verdict(self) -> str:
        """Verdict in one sentence: sound, outliers, a mismatch, or not a trained model."""
        return describe_verdict(self.untrained, self.agreement, self.outliers)[1]

    @property
    def outliers(self) -> Tensor:
        """Mean number of outlier tokens per image, (blocks + 1,)."""
        # A norm is that of a vector of one number.
        return norm_outliers(self.norms[..., None]).double().sum(-1).mean(-1)

    @property
    def suggested_num_blocks(self) -> int:
        """Smallest number of blocks whose maps vary nearly as much as with any other number.

        On the three models that this project trained, maps over that many blocks overlap most with
        the true masks, or nearly so (docs/models.md). Treat it as a hint: it has not been validated
        on pretrained models. 0 stands for the tower's own tokens, to be used with feature surgery.
        """
        return next(d for d, s in enumerate(self.spread) if s >= SUFFICIENT * max(self.spread))

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values; norms are summarized per block."""
        norms = self.norms.flatten(1)
        return {
            "verdict": describe_verdict(self.untrained, self.agreement, self.outliers)[0],
            "tower": self.tower,
            "grid": list(self.grid),
            "images": self.norms.shape[1],
            "norm_median": norms.median(1).values.tolist(),
            "norm_99": norms.quantile(0.99, dim=1).tolist(),
            "norm_max": norms.amax(1).tolist(),
            "outliers": self.outliers.tolist(),
            "agreement": self.agreement,
            "common_energy": self.common_energy,
            "spread": list(self.spread),
            "suggested_num_blocks": self.suggested_num_blocks,
            "default_num_blocks": self.default_num_blocks[0],
        }

    def __str__(self) -> str:
        norms, outliers = self.norms.flatten(1), self.outliers
        worst = int(outliers.argmax())
        where = "none"
        if outliers[worst]:
            first = int(outliers.nonzero()[0])
            where = f"{outliers[worst]:.1f} per image entering block {worst}, first at {first}"
        agreement = "not checked, because the images are not of native size"
        if self.agreement is not None:
            agreement = f"lowest cosine with encode_image {self.agreement:.6f}"
        common = "needs two texts"
        if self.common_energy is not None:
            common = f"{self.common_energy:.0%} of the text features' energy"
        return "\n".join(
            [
                self.verdict,
                self.tower,
                f"images                 {self.norms.shape[1]}, {self.grid[0]} x {self.grid[1]} "
                "patches each",
                f"norms of patch tokens  {norms[0].median():.1f} (median) before the first block, "
                f"{norms[-1].median():.1f} after the last, {norms.max():.1f} at most",
                f"outlier tokens         {where} ({NORM_RATIO:g} times the median norm or more)",
                f"pooled embedding       {agreement}",
                f"common to all texts    {common}",
                f"suggested num_blocks   {self.suggested_num_blocks} (a hint: see docs/models.md)",
                "default num_blocks     {} ({})".format(*self.default_num_blocks),
            ]
        )

    def figure(self) -> Figure:
        """Draw norms of patch tokens by block, the image with the largest, and spread by blocks.

        Returns:
            A figure that is not registered with pyplot; `visualization.save_figure` writes it.
        """
        shows_maps = self.maps is not None and bool(self.outliers.any())
        figure = Figure(figsize=(11, 6.2 if shows_maps else 3.4), layout="constrained")
        upper, *lower = figure.subfigures(1 + shows_maps, 1, squeeze=False)[:, 0]
        by_block, on_grid, by_num_blocks = upper.subplots(1, 3, width_ratios=[1.25, 1, 1.25])
        self._draw_norms(by_block)
        last = len(self.norms) - 1
        worst = int(self.outliers.argmax()) if self.outliers.any() else last
        norms = self.norms[worst]
        image = int((norms.amax(-1) / norms.median(-1).values).argmax())
        grid = norms[image].reshape(self.grid).numpy()
        drawn = on_grid.imshow(grid, cmap=COLORS["range"], vmin=0)
        figure.colorbar(drawn, ax=on_grid, shrink=0.8)
        where = "after the last block" if worst == last else f"before block {worst}"
        on_grid.set(xticks=[], yticks=[], xlabel=where, title=f"norms in image {image}")
        self._draw_spread(by_num_blocks)
        if self.maps is not None and shows_maps:
            titles = ("surgery, likeliest text", 'with repair="auto"')
            for axis, title, maps in zip(lower[0].subplots(1, 2), titles, self.maps, strict=True):
                drawn = axis.imshow(maps[image].reshape(self.grid).numpy(), cmap=COLORS["all"])
                figure.colorbar(drawn, ax=axis, shrink=0.8)
                axis.set(xticks=[], yticks=[], xlabel=f"image {image}", title=title)
        return figure

    def _draw_norms(self, axis: Axes) -> None:
        norms = self.norms.flatten(1).numpy()
        blocks = range(len(norms))
        low, median, high = np.quantile(norms, [0.01, 0.5, 0.99], axis=1)
        axis.fill_between(blocks, low, high, alpha=0.25, color="tab:blue", label="1 % to 99 %")
        axis.plot(blocks, median, color="tab:blue", label="median")
        axis.plot(blocks, norms.max(1), color="tab:orange", ls="--", label="largest")
        axis.plot(
            blocks, NORM_RATIO * median, color="grey", ls=":", label=f"{NORM_RATIO:g} x median"
        )
        axis.set(yscale="log", xlabel="before block (last: after all)")
        axis.set_title("norms of patch tokens")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.legend(fontsize=7)

    def _draw_spread(self, axis: Axes) -> None:
        best = self.suggested_num_blocks
        axis.plot(range(len(self.spread)), self.spread, marker="o", ms=3, color="tab:blue")
        marked = {"ms": 9, "mfc": "none", "color": "tab:orange", "label": "suggested"}
        axis.plot(best, self.spread[best], "o", **marked)  # type: ignore[arg-type]
        axis.set(xlabel="num_blocks", title="spread of the likeliest text's map", ylim=(0, None))
        axis.legend(fontsize=7, loc="lower right")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def tower_report(clip: ZeroShotClassifier, images: Tensor) -> TowerReport:
    """Check a classifier's image tower and texts on a few images.

    Args:
        clip: The classifier. Its texts, distractors included, are what the images are scored for.
        images: Images (N, 3, H, W) from `clip.preprocess`; a dozen are enough.

    Returns:
        The report; `print` and `figure` show it.

    Raises:
        TypeError: If `images` is not a dense floating-point tensor.
        ValueError: If the images do not fit the model or have one patch, or the model is in train
            mode where that matters.

    Example::

        >>> clip = ZeroShotClassifier.demo(["dog", "pizza"])
        >>> report = tower_report(clip, torch.rand(2, 3, 64, 64))
        >>> report.norms.shape, len(report.spread)
        (torch.Size([9, 2, 16]), 9)
    """
    tower = clip.tower
    check_images(images, tower, clip.device)
    configs = _path_configs(clip)
    surgery = surgery_path(tower)
    pair = [surgery, repaired_path(surgery, "auto", tower)]
    with torch.no_grad(), forward_pass(clip, images, [*configs, *pair]):
        grid = tower.grid(*images.shape[-2:])
        if grid == (1, 1):
            raise ValueError("images have one patch, so maps cannot vary; pass larger images")
        return TowerReport(
            tower=tower.describe(),
            grid=grid,
            norms=_norms(tower, images),
            agreement=_agreement(clip, images),
            common_energy=_common_energy(clip.text_features()),
            spread=tuple(float(_maps(clip, images, path).std(1).mean()) for path in configs),
            untrained=untrained_parts(clip.model),
            default_num_blocks=(surgery.num_blocks, _why_by_default(tower)),
            maps=torch.stack([_maps(clip, images, path).cpu() for path in pair]),
        )


def _path_configs(clip: ZeroShotClassifier) -> list[PathConfig]:
    """List surgery over 0 to `MAX_NUM_BLOCKS` blocks."""
    most = min(MAX_NUM_BLOCKS, len(clip.tower.blocks))
    return [PathConfig(num_blocks, vv_attention) for num_blocks in range(most + 1)]


def _norms(tower: Tower, images: Tensor) -> Tensor:
    """Return the norms (blocks + 1, N, h*w) of patch tokens."""

    def patch_norms(tokens: Tensor) -> Tensor:
        return as_double(tokens[:, tower.num_prefix_tokens :]).norm(dim=-1).cpu()

    tokens, spec = tower.embed(images.to(tower.dtype))
    norms = [patch_norms(tokens)]
    for index in range(len(tower.blocks)):
        tokens = tower.run_block(index, tokens, spec)
        # A ResNet's one block leaves embeddings, whose norms do not compare with those before.
        norms += [patch_norms(tokens)] if tower.has_residual else []
    return torch.stack(norms)


def _agreement(clip: ZeroShotClassifier, images: Tensor) -> float | None:
    """Return the smallest cosine between the rebuilt embeddings and those of `encode_image`."""
    if tuple(images.shape[-2:]) != clip.native_size:
        return None
    expected = normalized(clip.model.encode_image(images.to(clip.tower.dtype)))
    rebuilt = tower_output(clip, images, PathConfig(len(clip.tower.blocks), vv_attention)).pooled
    return float((normalized(rebuilt) * expected).sum(-1).min())


def _common_energy(features: Tensor) -> float | None:
    """Return the mean product of different text features, which is their cosine."""
    count = len(features)
    if count == 1:
        return None
    lengths = float(features.square().sum(-1).mean())
    return (count * float(features.mean(0).square().sum()) - lengths) / (count - 1)


def _why_by_default(tower: Tower) -> str:
    if default_num_blocks(tower) != released_num_blocks(tower):
        return "0 for towers pooled by attention: see docs/models.md"
    return "as released"


def _maps(clip: ZeroShotClassifier, images: Tensor, path_config: PathConfig) -> Tensor:
    """Return the scores (N, h*w) of each image's likeliest text by a path."""
    features, empty = clip.text_features(), clip.empty_features()
    contrast = features if empty is None else features - empty
    output = tower_output(clip, images, path_config)
    with full_precision(images):
        patches, pooled = normalized(output.patches), normalized(output.pooled)
        likely = (pooled @ features.T.to(pooled.dtype)).argmax(-1)  # (N,)
        scores = patches @ contrast[likely][..., None].to(patches.dtype)  # (N, h*w, 1)
    return scores[..., 0]
