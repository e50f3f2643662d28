"""Image towers: one adapter per family, and the registry that finds the right one."""

from captum_clip_surgery.models._blocks import AttentionInputs, join_heads, split_heads
from captum_clip_surgery.models.image._base import Tower
from captum_clip_surgery.models.image._data import (
    GridSpec,
    PathConfig,
    PathTrace,
    TowerOutput,
)
from captum_clip_surgery.models.image._open_clip_vit import VisionTransformerTower
from captum_clip_surgery.models.image._registry import build_tower, register_tower

__all__ = [
    "AttentionInputs",
    "GridSpec",
    "PathConfig",
    "PathTrace",
    "Tower",
    "TowerOutput",
    "VisionTransformerTower",
    "build_tower",
    "join_heads",
    "register_tower",
    "split_heads",
]
