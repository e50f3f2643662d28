"""Tiny models of every kind of image tower: the classes of real configurations, fewer and narrower
blocks. One table drives all tests of towers; a new kind is one more entry of `TINY`."""

from __future__ import annotations

import copy
import functools
import math
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
import torch.nn.functional as F
from open_clip.coca_model import CoCa
from open_clip.model import CLIP
from timm.models import vision_transformer, vision_transformer_hybrid, vitamin
from torch import Tensor, nn

TEXT = dict(context_length=16, vocab_size=49408, width=16, heads=2, layers=2)


@dataclass(frozen=True)
class Parts:
    """Names within an image tower, by which tests reach for its modules and parameters.

    Args:
        entry: the module in which every pass begins, once.
        exit: the module in which a pass of surgery ends.
        blocks: the blocks, first to last.
        layers: more modules that users may hook; a pass calls each once.
        positions: the positional embedding, ([1,] prefix + patches, D).
        beside: modules whose weights the model's own pass hands to a function, and which the
            adapter calls.
    """

    entry: str
    exit: str
    blocks: tuple[str, ...]
    layers: tuple[str, ...]
    positions: str
    beside: tuple[str, ...] = ()


NATIVE = Parts(
    entry="conv1",
    exit="ln_post",
    blocks=tuple(f"transformer.resblocks.{i}" for i in range(3)),
    layers=("ln_post",),
    positions="positional_embedding",
)
RESNET = Parts(
    entry="conv1",
    exit="attnpool.c_proj",
    blocks=("attnpool",),
    layers=("layer4",),
    positions="attnpool.positional_embedding",
    beside=tuple(f"attnpool.{name}_proj" for name in "qkvc"),
)
TIMM = Parts(
    entry="trunk.patch_embed",
    exit="head",
    blocks=tuple(f"trunk.blocks.{i}" for i in range(3)),
    layers=("head",),
    positions="trunk.pos_embed",
)


@dataclass(frozen=True)
class Tiny:
    """One kind of tower.

    `like` is a real configuration of the same classes; on `everywhere` kinds every test of the
    foundation runs by default, on the others it is marked slow.
    """

    like: str
    vision: dict[str, Any]
    embed_dim: int = 24
    everywhere: bool = False
    others: dict[str, Any] = field(default_factory=dict)
    parts: Parts = TIMM

    @property
    def config(self) -> dict[str, Any]:
        """What open_clip's configuration files hold."""
        config = dict(embed_dim=self.embed_dim, vision_cfg=self.vision, text_cfg=TEXT)
        return copy.deepcopy(config | self.others)

    def build(self, **options: Any) -> nn.Module:
        config = self.config | options
        return CoCa(**config) if config.pop("custom_text", False) else CLIP(**config)


def _native(**options: Any) -> dict[str, Any]:
    """open_clip's own VisionTransformer of 4 x 4 patches."""
    return dict(image_size=32, layers=3, width=32, head_width=8, patch_size=8) | options


def _timm(name: str, pool: str, proj: str | None = None) -> dict[str, Any]:
    return dict(timm_model_name=name, timm_pool=pool, timm_proj=proj, image_size=32)


def _register(name: str, make: Callable[..., nn.Module]) -> str:
    """A timm model under a name of the tests' own."""

    def entry(pretrained: bool = False, **options: Any) -> nn.Module:
        return make(**options)

    entry.__name__ = name
    timm.models.register_model(entry)
    return name


def _shrunk(real: str, **options: Any) -> str:
    """timm's model of a real name with 3 blocks of width 32, on 4 x 4 patches of 8 pixels."""
    shape = dict(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=4) | options
    return _register(f"tiny_{real}", functools.partial(timm.create_model, real, **shape))


def _tiny_vitamin(**options: Any) -> nn.Module:
    stages = vitamin.VitCfg(
        embed_dim=(8, 16, 32),
        depths=(1, 1, 1),
        stem_width=8,
        conv_cfg=vitamin.VitConvCfg(norm_layer="layernorm2d", norm_eps=1e-6),
        head_type="1d",
    )
    return timm.create_model(
        "vitamin_small_224", img_size=64, embed_cfg=stages, embed_dim=32, depth=3, num_heads=4,
        **options,
    )  # fmt: skip


def _tiny_mobileclip(**options: Any) -> nn.Module:
    stem = vision_transformer_hybrid.ConvStem(
        channels=(8, 8, 32), stride=(4, 2, 2), kernel_size=(4, 2, 2), padding=0, act_layer=nn.GELU
    )
    return timm.models.build_model_with_cfg(
        vision_transformer.VisionTransformer,
        "vit_base_mci_224",
        False,
        embed_layer=functools.partial(
            vision_transformer_hybrid.HybridEmbed, backbone=stem, proj=False
        ),
        img_size=64, patch_size=1, embed_dim=32, depth=3, num_heads=4, no_embed_class=True,
        **{k: v for k, v in options.items() if not k.startswith(("pretrained", "cache"))},
    )  # fmt: skip


_COCA = dict(
    custom_text=True,  # by which open_clip's factory knows it
    multimodal_cfg=dict(context_length=16, vocab_size=49408, width=16, heads=2, layers=1),
    text_cfg=dict(**TEXT, embed_cls=True, output_tokens=True),
)
_CUSTOM = dict(qk_norm=True, scale_heads=True, scale_attn_inner=True, scale_attn=True)

TINY: dict[str, Tiny] = {
    "vit": Tiny("ViT-B-16", _native(), everywhere=True, parts=NATIVE),
    "resnet": Tiny(
        "RN50",
        dict(image_size=64, layers=(1, 1, 1, 1), width=4, head_width=32, patch_size=None),
        everywhere=True,
        parts=RESNET,
    ),
    "layerscale": Tiny("ViT-M-16-alt", _native(ls_init_value=0.3), parts=NATIVE),
    "custom": Tiny(
        "ViT-B-16",
        _native(**_CUSTOM, scale_fc=True, ls_init_value=0.5),
        parts=NATIVE,
    ),
    "clipa": Tiny(
        "ViT-L-14-CLIPA",
        _native(no_ln_pre=True, pool_type="avg", final_ln_after_pool=True),
        parts=NATIVE,
    ),
    "coca": Tiny(
        "coca_ViT-B-32",
        _native(
            attentional_pool=True, attn_pooler_queries=5, attn_pooler_heads=2, output_tokens=True
        ),
        embed_dim=16,  # the width of its texts, which its decoder attends to together with images
        others=_COCA,
        parts=NATIVE,
    ),
    "siglip": Tiny(
        "ViT-B-16-SigLIP",
        _timm(_shrunk("vit_base_patch16_siglip_224"), "map", "none"),
        embed_dim=32,
        everywhere=True,
    ),
    "gap": Tiny(
        "vit_medium_patch16_gap_256",
        _timm(_shrunk("vit_medium_patch16_gap_256", init_values=0.3), "", "linear"),
    ),
    "vitamin": Tiny("ViTamin-S", _timm(_register("tiny_vitamin", _tiny_vitamin), "", "linear")),
    "mobileclip": Tiny(
        "MobileCLIP-B", _timm(_register("tiny_mobileclip", _tiny_mobileclip), "token")
    ),
    "mobileclip2-l": Tiny(
        "MobileCLIP2-L-14", _timm(_shrunk("vit_large_patch14_clip_224"), "token")
    ),
    "eva01": Tiny("EVA01-g-14", _timm(_shrunk("eva_giant_patch14_224"), "token")),
    "eva02": Tiny(
        "EVA02-B-16",
        _timm(_shrunk("eva02_base_patch16_clip_224", ref_feat_shape=(3, 3)), "token"),
        everywhere=True,
    ),
    "eva02-e": Tiny("EVA02-E-14", _timm(_shrunk("eva02_enormous_patch14_clip_224"), "token")),
    "pe": Tiny(
        "PE-Core-B-16",
        _timm(
            _shrunk("vit_pe_core_base_patch16_224", ref_feat_shape=(3, 3), attn_pool_num_heads=2),
            "map",
        ),
    ),
    "pe-bigG": Tiny(
        "PE-Core-bigG-14-448",
        _timm(
            _shrunk(
                "vit_pe_core_gigantic_patch14_448", ref_feat_shape=(5, 5), attn_pool_num_heads=2
            ),
            "map",
        ),
    ),
}


def build_tiny(kind: str, seed: int = 0) -> Any:
    """A random model whose every part matters: what images, places and texts do to it shows.

    On flat maps that are all alike, whatever is asked of them holds.
    """
    model: Any = TINY[kind].build().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # By name, so that all kinds share one text tower.
            torch.manual_seed(seed + zlib.crc32(name.removeprefix("text.").encode()))
            _enliven(name, parameter)
        _settle(model.visual)
    return model


def _enliven(name: str, parameter: Tensor) -> None:
    """Many weights start at zero or at next to nothing, and attention as the mean of all tokens."""
    if "bias" in name or "bn3.weight" in name:
        parameter.normal_(0, 0.3)
    elif (parameter.ndim > 1 and "head_scale" not in name) or name.endswith(("_emb", "_embedding")):
        parameter.normal_(0, parameter[0].numel() ** -0.5)
    else:  # of norms, layer scales and the like, around one
        parameter.mul_(1 + 0.2 * torch.randn_like(parameter))
    if name.endswith(("qkv.weight", "in_proj_weight")):
        parameter[: 2 * parameter.shape[1]].mul_(2)
    elif re.search(r"\b[qk](_proj)?[._]weight$", name):
        parameter.mul_(2)
    # The few tokens of a ResNet are much alike.
    if re.search("attnpool.[qkv]_proj.weight", name):
        parameter.mul_(4)


def _settle(visual: nn.Module) -> None:
    """BatchNorm with the statistics of its input; the kinds that have any take 64 pixels."""
    norms = [module for module in visual.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    generator = torch.Generator().manual_seed(1)
    contrast = 2 * torch.rand(64, 1, 1, 1, generator=generator)
    visual(contrast * torch.randn(64, 3, 64, 64, generator=generator))
    visual.eval()


def built_for(kind: str, model: nn.Module, grid: tuple[int, int], mode: str = "bilinear") -> Any:
    """A copy whose own size is a grid of patches, its positions resized in float64.

    What it computes natively is what the model should give at that size.
    """
    built: Any = copy.deepcopy(model)
    owner, _, name = TINY[kind].parts.positions.rpartition(".")
    owner = built.visual.get_submodule(owner)
    table = getattr(owner, name).detach()
    side = math.isqrt(table.shape[-2])
    if hasattr(built.visual, "trunk"):
        pixels = built.visual.trunk.patch_embed.img_size[0] // side
        # Rotary embeddings follow; positions do too, but otherwise than asked for.
        built.visual.trunk.set_input_size((grid[0] * pixels, grid[1] * pixels))
    else:
        built.visual.grid_size = grid
    prefix, patches = table.double().flatten(0, -2).split([table.shape[-2] - side**2, side**2])
    resized = F.interpolate(
        patches.T.reshape(1, -1, side, side), grid, mode=mode, antialias=mode == "bicubic"
    )
    rows = torch.cat([prefix, resized[0].flatten(1).T]).to(table.dtype)
    setattr(owner, name, nn.Parameter(rows.reshape(*table.shape[:-2], *rows.shape)))
    return built
