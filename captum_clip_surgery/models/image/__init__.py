"""Image towers: one adapter per family, and the registry that finds the right one."""

from captum_clip_surgery.models._blocks import AttentionInputs, join_heads, split_heads
from captum_clip_surgery.models.image._base import Tower
from captum_clip_surgery.models.image._data import (
    BlockTrace,
    GridSpec,
    PathConfig,
    TowerOutput,
    nearest_multiple,
    resize_positions,
)
from captum_clip_surgery.models.image._registry import (
    build_tower,
    get_tower_class,
    register_tower,
)
from captum_clip_surgery.models.image.open_clip_vit import VisionTransformerTower
from captum_clip_surgery.models.image.resnet import ModifiedResNetTower
from captum_clip_surgery.models.image.timm import EvaTower, TimmVisionTransformerTower

__all__ = [
    "AttentionInputs",
    "BlockTrace",
    "EvaTower",
    "GridSpec",
    "ModifiedResNetTower",
    "PathConfig",
    "TimmVisionTransformerTower",
    "Tower",
    "TowerOutput",
    "VisionTransformerTower",
    "build_tower",
    "get_tower_class",
    "join_heads",
    "nearest_multiple",
    "register_tower",
    "resize_positions",
    "split_heads",
]
