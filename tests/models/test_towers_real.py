"""open_clip's 144 configurations: what each is taken for, and which towers are refused, and why.

All are built without weights, on the meta device.
"""

from __future__ import annotations

import collections
import functools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import open_clip
import pytest
import timm
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import ResidualAttentionBlock
from timm.layers import AttentionPool2d
from timm.models.vision_transformer import ParallelScalingBlock
from torch import nn

from captum_clip_surgery.models.image import Tower, build_tower
from captum_clip_surgery.models.image._registry import TOWER_CLASSES
from tests._helpers.cases import each
from tests._helpers.plain_towers import blocks_of
from tests._helpers.tower_kinds import TINY


@functools.cache
def configuration(name: str) -> dict[str, Any]:
    return open_clip.get_model_config(name)


def on_meta(name: str) -> Any:
    """The image tower of a configuration, without weights."""
    config = configuration(name)
    return _built(config["embed_dim"], json.dumps(config["vision_cfg"], sort_keys=True))


@functools.cache  # many configurations differ in their text tower alone
def _built(embed_dim: int, vision: str) -> Any:
    with torch.device("meta"):
        return open_clip.model._build_vision_tower(embed_dim, json.loads(vision))


# --- what each configuration is taken for --------------------------------------------------------

NATIVE, RESNET = "open_clip VisionTransformer", "open_clip ModifiedResNet"
TIMM, EVA = "timm VisionTransformer", "timm Eva"

#: Pattern of names, the family and pooling or the class refused, how many there are.
TABLE = [
    (r"RN\d.*", RESNET, "attention", 10),
    (r"coca_ViT-.*", NATIVE, "attention", 2),
    (r"ViT-(L|H|bigG)-14-CLIPA.*", NATIVE, "average", 6),
    (r"ViT-(S|M|B|L|H|g|e|bigG)-(14|16|32)(?!.*(SigLIP|CLIPA)).*", NATIVE, "class token", 39),
    (r"(xlm-)?roberta-.*|mt5-.*|nllb-clip-(base|large)", NATIVE, "class token", 7),
    (r"coca_(base|roberta-.*)", NATIVE, "class token", 2),
    (r"ViT-.*-SigLIP.*|nllb-.*-siglip", TIMM, "attention", 28),
    (r"ViTamin-.*|vit_medium_patch16_gap_256", TIMM, "average", 16),
    (r"MobileCLIP2?-(B|L-14)", TIMM, "class token", 3),
    (r"EVA0[12]-.*", EVA, "class token", 7),
    (r"PE-Core-.*", EVA, "attention", 5),
    (r"convnext_.*", "refused", "ConvNeXt", 11),
    (r"MobileCLIP2?-S\d", "refused", "FastVit", 6),
    (r"swin_.*", "refused", "SwinTransformer", 1),
    (r"vit_relpos_.*", "refused", "VisionTransformerRelPos", 1),
]
REFUSED = {"ConvNeXt", "FastVit", "SwinTransformer", "VisionTransformerRelPos"}
NAMES = open_clip.list_models()


def expected(name: str) -> tuple[str, str]:
    found = [row for row in TABLE if re.fullmatch(row[0], name)]
    assert len(found) == 1, f"{name} is in {len(found)} rows of the table"
    return found[0][1:3]


class Reached(Exception):
    """The tokens have come to the first block, and no more need be computed."""


def tokens_at_native_size(tower: Tower) -> int:
    """How many tokens enter the first block of the model itself, which may refuse the size."""
    shapes = []

    def seen(_: nn.Module, args: Any) -> None:
        shapes.append(args[0].shape)
        raise Reached

    handle = blocks_of(tower.visual)[0].register_forward_pre_hook(seen)
    with pytest.raises(Reached):
        tower.visual(torch.empty(1, 3, *tower.native_size, device="meta"))
    handle.remove()
    shape = shapes[0]  # (1, L, D), or a ResNet's (1, D, h, w) before its mean token
    return shape[1] if len(shape) == 3 else 1 + shape[2] * shape[3]


def names_of(pattern: str) -> set[str]:
    return {name for name in NAMES if re.fullmatch(pattern, name)}


#: A small configuration of each row of the table.
SMALL = [
    *("RN50", "coca_ViT-B-32", "ViT-L-14-CLIPA", "ViT-S-32", "roberta-ViT-B-32", "coca_base"),
    *("ViT-B-16-SigLIP", "ViTamin-S", "MobileCLIP-B", "EVA02-B-16", "PE-Core-T-16-384"),
    *("convnext_base", "MobileCLIP-S1", "swin_base_patch4_window7_224"),
    "vit_relpos_medium_patch16_cls_224",
]


@pytest.mark.slow
@each("name", SMALL)
def test_one_configuration_of_each_row(name):
    check_configuration(name)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", [pattern for pattern, *_ in TABLE])
def test_all_configurations(pattern):
    for name in sorted(names_of(pattern)):
        try:
            check_configuration(name)
        except Exception as error:
            error.add_note(name)
            raise


def check_configuration(name: str) -> None:
    family, kind = expected(name)
    visual = on_meta(name)
    if family == "refused":
        assert type(visual.trunk).__name__ == kind
        with pytest.raises(TypeError, match="is not supported"):
            build_tower(visual)
        return
    tower = build_tower(visual)
    assert (tower.family, tower.pooling) == (family, kind)
    config = configuration(name)["vision_cfg"]
    # One configuration states another size than its trunk has.
    side = 384 if name == "ViTamin-XL-384" else config["image_size"]
    assert tower.native_size == (side, side)
    if family != RESNET:
        trunk = config.get("timm_model_name", "")
        stated = re.search(r"patch(\d+)", trunk)
        patch = int(stated[1]) if stated else 16 if trunk else config["patch_size"]
        assert tower.patch_size == (patch, patch)
    rows, columns = tower.grid(*tower.native_size)
    assert tokens_at_native_size(tower) == tower.num_prefix_tokens + rows * columns
    assert len(tower.blocks) == len(blocks_of(visual))


def test_the_table_is_complete():
    counts = collections.Counter(expected(name) for name in NAMES)
    stated: collections.Counter[tuple[str, str]] = collections.Counter()
    for _, family, kind, count in TABLE:
        stated[family, kind] += count
    assert counts == stated
    assert len(NAMES) == 144
    assert all(names_of(pattern) & {*SMALL} for pattern, *_ in TABLE)
    assert sum(count for (family, _), count in counts.items() if family != "refused") == 125
    assert {kind for family, kind in counts if family == "refused"} == REFUSED


# --- the tiny kinds are what they stand for ------------------------------------------------------


def kinds_of(module: Any, *names: str) -> dict[str, Any]:
    """What is under these names of a module, and the classes of all that is inside."""
    kinds: dict[str, Any] = {}
    for name in names:
        part = getattr(module, name, None)
        plain = isinstance(part, (bool, int, str))
        kinds[name] = part if plain else type(part).__name__
        if isinstance(part, nn.Module):
            for path, inner in part.named_modules(prefix=name):
                # Only training tells these two apart.
                kinds[path] = type(inner).__name__.replace("DropPath", "Identity")
            kinds |= {path: "Parameter" for path, _ in part.named_parameters(prefix=name)}
    return kinds


def make_up(visual: Any) -> dict[str, Any]:
    """All by which adapters tell towers apart, and of which a forward pass is made."""
    blocks = [kinds_of(nn.ModuleDict({"block": block}), "block") for block in blocks_of(visual)]
    assert all(block == blocks[0] for block in blocks)
    made = {"visual": type(visual)} | blocks[0]
    if isinstance(visual, ModifiedResNet):
        return made
    if not isinstance(visual, TimmModel):
        own = ("ln_pre", "attn_pool", "ln_post", "proj", "pool_type", "final_ln_after_pool")
        return made | kinds_of(visual, "conv1", "patch_dropout", *own)
    trunk, attention = visual.trunk, blocks_of(visual)[0].attn
    made |= {"trunk": type(trunk), "patches": type(trunk.patch_embed)}
    made |= {"open_clip's " + path: kind for path, kind in kinds_of(visual, "head").items()}
    made |= kinds_of(trunk, "norm_pre", "norm", "fc_norm", "attn_pool", "head", "global_pool")
    made |= kinds_of(trunk, "cls_token", "reg_token", "pos_embed", "num_prefix_tokens")
    made |= kinds_of(trunk, "no_embed_class", "pool_include_prefix", "dynamic_img_size")
    made |= kinds_of(attention, "rotate_half", "num_kv_groups", "qkv_bias_separate")
    rope = getattr(trunk, "rope", None)
    made |= kinds_of(trunk, "rope", "rope_mixed") | kinds_of(rope, "grid_indexing")
    return made | {"other grid in rope": getattr(rope, "ref_feat_shape", None) is not None}


#: No configuration has custom blocks; the tests of options make sure of them.
@pytest.mark.slow
@each("kind", [kind for kind in TINY if kind != "custom"])
def test_tiny_kind_is_made_like_its_configuration(kind):
    assert make_up(TINY[kind].build().visual) == make_up(on_meta(TINY[kind].like))


# --- refusals ------------------------------------------------------------------------------------

FAMILIES = "Supported families: " + "; ".join(tower.family for tower in TOWER_CLASSES)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("convnext_base", "timm's ConvNeXt: it convolves and has no self-attention to repair"),
        ("MobileCLIP-S1", "timm's FastVit: it mixes tokens by convolution, .* no single grid"),
        ("swin_base_patch4_window7_224", "SwinTransformer: it attends within windows, on grids"),
        ("vit_relpos_medium_patch16_cls_224", "RelPos: its attention is of relative positions"),
    ],
)
def test_refused_configurations_say_why(name, reason):
    with pytest.raises(TypeError, match=f"TimmModel is not supported: its trunk is .*{reason}"):
        build_tower(on_meta(name))
    with pytest.raises(TypeError, match=re.escape(f"{FAMILIES}. `clip-surgery models` lists")):
        build_tower(on_meta(name))


def native(base: str = "vit", **options: Any) -> Any:
    return replace(TINY[base], vision=TINY[base].vision | options).build().visual


def with_block(visual: Any, block: nn.Module) -> Any:
    blocks_of(visual)[1] = block
    return visual


def inside_timm_model(real: str, name: str, pool: str, proj: str | None, **options: Any) -> Any:
    def entry(pretrained: bool = False, **others: Any) -> nn.Module:
        shape = dict(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4)
        return timm.create_model(real, **shape | options | others)

    entry.__name__ = f"refused_{name}"
    timm.models.register_model(entry)
    return TimmModel(entry.__name__, embed_dim=24, image_size=32, pool=pool, proj=proj)


vit = functools.partial(inside_timm_model, "vit_base_patch16_224")
eva = functools.partial(inside_timm_model, "eva02_base_patch16_clip_224")


def with_pool_in_head() -> Any:
    visual = vit("head_pool", "token", "linear")
    visual.head.add_module("pool", AttentionPool2d(32, feat_size=4, num_heads=4))
    return visual


def with_two_queries() -> Any:
    visual = vit("two", "map", "none", class_token=False, global_pool="map")
    visual.trunk.attn_pool.latent_len = 2
    return visual


REFUSALS: dict[str, tuple[Callable[[], Any], str]] = {
    "scaled cosines": (
        lambda: native(scaled_cosine_attn=True),
        "block 0 attends by scaled cosines, which open_clip 3.3 itself cannot run",
    ),
    "parallel": (
        lambda: native("coca", attentional_pool="parallel"),
        "attentional pooling is 'parallel', .* defined for attentional_pool=True",
    ),
    "cascade": (
        lambda: native("coca", attentional_pool="cascade"),
        "attentional pooling is 'cascade'",
    ),
    "no pooling": (
        lambda: native(pool_type="none"),
        "it pools its tokens by 'none', which gives no single embedding",
    ),
    "length first": (
        lambda: with_block(native(), ResidualAttentionBlock(32, 4, batch_first=False)),
        r"block 1 takes its tokens as \(L, N, D\), not batch first",
    ),
    "another block": (
        lambda: with_block(native(), nn.TransformerEncoderLayer(32, 4)),
        "block 1 is a TransformerEncoderLayer, not a ResidualAttentionBlock or Custom",
    ),
    "timm's other blocks": (
        lambda: vit("parallel", "token", None, block_fn=ParallelScalingBlock),
        "block 0 is a ParallelScalingBlock",
    ),
    "timm's other attention": (
        lambda: vit("diff", "token", None, attn_layer="diff"),
        "block 0 has the attention DiffAttention",
    ),
    "max": (lambda: vit("max", "max", None), "by 'max', expected one of token, avg"),
    "avgmax": (
        lambda: eva("avgmax", "avgmax", None),
        "by 'avgmax', expected one of token, avg",
    ),
    "timm without pooling": (
        lambda: vit("nothing", "", "none"),
        "by '', expected one of token, avg",
    ),
    "pooling in the head": (with_pool_in_head, "head pools once more, by AttentionPool2d"),
    "a trunk that pools its own way": (
        lambda: inside_timm_model("deit_base_distilled_patch16_224", "deit", "token", None),
        "trunk is a VisionTransformerDistilled, which may pool and project differently",
    ),
    "several queries in the pooling": (
        with_two_queries,
        "its attention pooling has positional embeddings or several queries",
    ),
    "grouped queries": (
        lambda: eva("grouped", "token", None, attn_type="rope", num_kv_heads=2, qkv_fused=False),
        r"several queries of block 0 share one value \(grouped-query attention\)",
    ),
    "no tower": (lambda: nn.Linear(2, 2), "no supported family has its class"),
}


@each("name", REFUSALS)
def test_refused_towers_say_why(name):
    make, reason = REFUSALS[name]
    with pytest.raises(TypeError, match=f"is not supported: .*{reason}.*{FAMILIES}"):
        build_tower(make())


def test_open_clip_cannot_run_scaled_cosines():
    """When it can, the adapter should learn them."""
    with pytest.raises(RuntimeError, match="3D tensor"):
        native(scaled_cosine_attn=True)(torch.zeros(1, 3, 32, 32))


def test_unknown_positions():
    with pytest.raises(ValueError, match="positions must be one of bilinear, bicubic"):
        build_tower(native(), positions="nearest")
