"""Image towers of the plans that train variants of the embedded model; importing registers them."""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn


def _small_vit(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    """timm's ViT without a class token, as small as the embedded model's image tower."""
    shape = {"img_size": 128, "patch_size": 16, "embed_dim": 128, "depth": 6, "num_heads": 4}
    model: nn.Module = build_model_with_cfg(
        VisionTransformer, name, pretrained, class_token=False, **shape, **options
    )
    return model


def scenes_vit_map(pretrained: bool = False, **options: Any) -> nn.Module:
    """Pooled by one query, as SigLIP's."""
    return _small_vit("scenes_vit_map", pretrained, {"global_pool": "map", **options})


def scenes_vit_avg(pretrained: bool = False, **options: Any) -> nn.Module:
    """Pooled by the mean of its patches."""
    return _small_vit("scenes_vit_avg", pretrained, {"global_pool": "avg", **options})


#: timm reads here that nothing about these is out of the ordinary.
default_cfgs = generate_default_cfgs({"scenes_vit_map": {}, "scenes_vit_avg": {}})
for entry in (scenes_vit_map, scenes_vit_avg):
    register_model(entry)
