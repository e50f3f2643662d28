"""Image towers: one adapter per family, and the registry that finds the right one."""

from captum_clip_surgery.models._blocks import AttentionInputs, join_heads, split_heads
from captum_clip_surgery.models.image._base import Tower
from captum_clip_surgery.models.image._data import (
    GridSpec,
    PathConfig,
    TowerOutput,
    resize_positions,
)
from captum_clip_surgery.models.image._registry import build_tower, register_tower
from captum_clip_surgery.models.image.open_clip_vit import VisionTransformerTower
from captum_clip_surgery.models.image.resnet import ModifiedResNetTower
from captum_clip_surgery.models.image.timm import EvaTower, TimmVisionTransformerTower
from captum_clip_surgery.models.image.transformers import (
    Siglip2Tower,
    SiglipTower,
    Tipsv2Tower,
    TransformersCLIPTower,
)

__all__ = [
    "AttentionInputs",
    "EvaTower",
    "GridSpec",
    "ModifiedResNetTower",
    "PathConfig",
    "Siglip2Tower",
    "SiglipTower",
    "TimmVisionTransformerTower",
    "Tipsv2Tower",
    "Tower",
    "TowerOutput",
    "TransformersCLIPTower",
    "VisionTransformerTower",
    "build_tower",
    "join_heads",
    "register_tower",
    "resize_positions",
    "split_heads",
]
