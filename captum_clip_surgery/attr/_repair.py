"""The option `repair` of dual-path methods: steps that keep outlier tokens from spoiling maps."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from captum_clip_surgery._utils.outliers import local_outliers, norm_outliers
from captum_clip_surgery.attr._token_steps import (
    LIKENESS_BLOCK,
    Aggregate,
    Likeness,
    replace_outliers,
    scale_block,
    split_patches,
)
from captum_clip_surgery.models.image import PathConfig, PathTrace, Tower

#: Values of `repair`, besides None.
REPAIRS = ("auto", "neighbors", "likeness")


@dataclass(frozen=True)
class FillOutliers:
    """Replaces outlier patches by the mean of their sound neighbors.

    Attributes:
        local: Whether local outliers are replaced, and not only patches of extreme norm.
    """

    local: bool

    def __call__(self, tokens: Tensor, trace: PathTrace) -> Tensor:
        """Return tokens (N, P + h*w, D) with outliers among the patches replaced."""
        _, patches = split_patches(tokens, trace)
        outliers = norm_outliers(patches)
        if self.local:
            outliers = outliers | local_outliers(patches)
        return replace_outliers(tokens, outliers, trace)


def repaired_path(path: PathConfig, repair: str | None, tower: Tower) -> PathConfig:
    """Return a path with the steps of a repair.

    Args:
        path: A path without steps.
        repair: One of `REPAIRS`, or None for the path as it is.
        tower: The tower that the path will run on.

    Raises:
        ValueError: If `repair` is unknown.
    """
    if repair is None:
        return path
    if repair == "registers":
        raise ValueError(
            "registers are found from images and serve all methods: make the method on "
            "clip.with_registers(images), without repair="
        )
    if repair not in REPAIRS:
        options = ", ".join(map(repr, REPAIRS))
        raise ValueError(f"repair must be one of {options} or None, got {repair!r}")
    if repair == "likeness":
        block = scale_block(LIKENESS_BLOCK, len(tower.blocks))
        return replace(path, after=Aggregate(Likeness(block)), streams=(block,))
    fill = FillOutliers(local=repair == "neighbors")
    # Without blocks, there is nothing but the tower's own last tokens.
    return replace(path, before=fill) if path.num_blocks else replace(path, after=fill)
