"""Image towers of the embedded model's variants; importing the module registers them with timm."""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn


def _small_vit(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    """Build timm's ViT without a class token, as small as the embedded model's image tower."""
    shape = {"img_size": 128, "patch_size": 16, "embed_dim": 128, "depth": 6, "num_heads": 4}
    model: nn.Module = build_model_with_cfg(
        VisionTransformer, name, pretrained, class_token=False, **shape, **options
    )
    return model


def scenes_vit_map(pretrained: bool = False, **options: Any) -> nn.Module:
    """Build a ViT pooled by attention with one query, as SigLIP's."""
    return _small_vit("scenes_vit_map", pretrained, {"global_pool": "map", **options})


def scenes_vit_avg(pretrained: bool = False, **options: Any) -> nn.Module:
    """Build a ViT pooled by the mean of its patches."""
    return _small_vit("scenes_vit_avg", pretrained, {"global_pool": "avg", **options})


#: timm looks here for the default configurations of registered models.
default_cfgs = generate_default_cfgs({"scenes_vit_map": {}, "scenes_vit_avg": {}})
for entry in (scenes_vit_map, scenes_vit_avg):
    register_model(entry)
