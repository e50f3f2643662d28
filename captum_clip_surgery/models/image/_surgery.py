"""The path of architecture surgery as it was released."""

from __future__ import annotations

from torch import Tensor

from captum_clip_surgery import functional
from captum_clip_surgery.models._blocks import AttentionInputs
from captum_clip_surgery.models.image._base import Tower
from captum_clip_surgery.models.image._data import PathConfig

#: Blocks that the second path spans in the published code.
RELEASED_NUM_BLOCKS = 6


def vv_attention(inputs: AttentionInputs) -> Tensor:
    """Return values weighted by v-v self-attention, see `functional.vv_attention`."""
    return functional.vv_attention(inputs.v)


def released_num_blocks(tower: Tower) -> int:
    """Return the number of last blocks that surgery spans: 6, or all where there are fewer."""
    return min(RELEASED_NUM_BLOCKS, len(tower.blocks))


def default_num_blocks(tower: Tower) -> int:
    """Return the number of last blocks that surgery spans by default.

    As released, or 0 for a tower whose tokens are pooled by learned queries: the tokens of the one
    such tower that was measured localize as they are, and surgery spoils them (docs/models.md).
    """
    return released_num_blocks(tower) if tower.attention_pool is None else 0


def surgery_path(tower: Tower) -> PathConfig:
    """Return the path of architecture surgery on a tower."""
    return PathConfig(default_num_blocks(tower), vv_attention, values_only=True)
