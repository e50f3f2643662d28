"""Every adapter against its model run as a whole, and against the method restated plainly.

Cases are the tiny kinds of `towers.TINY`, options of open_clip's and timm's classes that no
configuration uses, and small real configurations with random weights. Each passes the same tests.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import open_clip
import pytest
import timm
import torch
from open_clip.timm_model import TimmModel
from timm.layers import Attention, AttentionRope
from timm.models.eva import EvaAttention
from torch import nn

from captum_clip_surgery import functional
from captum_clip_surgery.models._blocks import linear_rows
from captum_clip_surgery.models.image import PathConfig, build_tower
from tests._helpers.cases import each
from tests._helpers.model_snapshot import differences, snapshot
from tests._helpers.plain_towers import alone, at_size, enliven, new_path, trace
from tests._helpers.tiny import relative_error, tiny_model
from tests._helpers.tower_kinds import TINY, build_tiny

TOLERANCE = 1e-5

# --- the cases -----------------------------------------------------------------------------------


def tiny(kind: str) -> nn.Module:
    return tiny_model(kind).visual


def native(base: str = "vit", **options: Any) -> nn.Module:
    """open_clip's VisionTransformer with other options."""
    return replace(TINY[base], vision=TINY[base].vision | options).build().visual


NUMBERS = itertools.count()
SHAPE = dict(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=4)


def inside_timm_model(
    real: str, pool: str = "", proj: str | None = "linear", **options: Any
) -> Any:
    """A shrunk trunk of timm's inside open_clip's TimmModel, which takes registered names alone."""

    def entry(pretrained: bool = False, **others: Any) -> nn.Module:
        return timm.create_model(real, **SHAPE | options | others)

    entry.__name__ = f"option_{next(NUMBERS)}"
    timm.models.register_model(entry)
    visual = TimmModel(entry.__name__, embed_dim=24, image_size=32, pool=pool, proj=proj)
    with torch.no_grad():
        for parameter in visual.trunk.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)  # timm starts so small that the blocks would hardly show
    return visual


def with_attention(visual: Any, attention: Callable[..., nn.Module], **options: Any) -> Any:
    """Other attention, where timm's models have no argument that asks for it."""
    for block in visual.trunk.blocks:
        block.attn = attention(32, 4, qkv_bias=True, norm_layer=nn.LayerNorm, **options)
    return visual


vit = functools.partial(inside_timm_model, "vit_base_patch16_224")
siglip = functools.partial(inside_timm_model, "vit_base_patch16_siglip_224", "map")
eva = functools.partial(inside_timm_model, "eva02_base_patch16_clip_224")
pe = functools.partial(inside_timm_model, "vit_pe_core_base_patch16_224", attn_pool_num_heads=2)
ALL_NATIVE = dict(qk_norm=True, scale_heads=True, scale_attn_inner=True, scale_attn=True)

OPTIONS: dict[str, Callable[[], nn.Module]] = {
    # open_clip's own
    "qk_norm": lambda: native(qk_norm=True),
    "scale_heads": lambda: native(scale_heads=True),
    "scale_attn_inner": lambda: native(scale_attn_inner=True),
    "scale_attn": lambda: native(scale_attn=True),
    "scale_fc": lambda: native(scale_fc=True),
    "custom blocks": lambda: native(block_type="custom"),
    "layer scale": lambda: native(ls_init_value=1e-5),
    "all": lambda: native(**ALL_NATIVE, scale_fc=True, ls_init_value=1e-5),
    "all, attention pooling": lambda: native("coca", **ALL_NATIVE, scale_fc=True),
    "average after norm": lambda: native(pool_type="avg"),
    "average of queries": lambda: native("coca", pool_type="avg"),
    "oblong": lambda: native(image_size=(32, 24), patch_size=(8, 4)),
    # timm's VisionTransformer
    "vit qk_norm": lambda: vit(qk_norm=True),
    "vit scale_attn_norm": lambda: vit(scale_attn_norm=True),
    "vit norms": lambda: vit(
        qk_norm=True, scale_attn_norm=True, scale_mlp_norm=True, init_values=1e-5
    ),
    "vit gated": lambda: with_attention(vit(), Attention, gated=True),
    "vit gated, norms": lambda: with_attention(
        vit(), Attention, gated=True, qk_norm=True, scale_norm=True
    ),
    "vit registers": lambda: vit(reg_tokens=3, class_token=True),
    "vit registers, average": lambda: vit("avg", None, reg_tokens=3),
    "vit registers, no_embed_class": lambda: vit("avg", None, reg_tokens=3, no_embed_class=True),
    "vit registers alone": lambda: siglip(reg_tokens=2),
    "vit average with prefix": lambda: vit("avg", None, pool_include_prefix=True),
    "vit no fc_norm": lambda: vit("avg", None, fc_norm=False),
    "vit fc_norm": lambda: vit("token", None, fc_norm=True),
    "vit no positions": lambda: vit(pos_embed="none"),
    "vit dynamic": lambda: vit(dynamic_img_size=True),
    "vit oblong": lambda: vit(img_size=(16, 40)),
    "siglip dynamic, mlp head": lambda: siglip(proj="mlp", dynamic_img_size=True),
    # timm's Eva
    "eva gated": lambda: with_attention(eva(), EvaAttention, gated=True, scale_norm=False),
    "eva gated, norms": lambda: with_attention(eva(), EvaAttention, gated=True, qk_norm=True),
    "eva rope gated": lambda: with_attention(eva(), AttentionRope, gated=True, scale_norm=True),
    "eva mixed": lambda: eva(rope_type="mixed"),
    "eva mixed, registers": lambda: eva(rope_type="mixed", num_reg_tokens=2),
    "eva mrope": lambda: eva(
        rope_type="mrope", num_heads=2, rope_mrope_section=(2, 3, 3), qkv_fused=True
    ),
    "eva dinov3": lambda: eva(rope_type="dinov3", rope_rotate_half=True),
    "eva registers": lambda: eva(num_reg_tokens=3),
    "eva registers, average": lambda: eva("avg", None, num_reg_tokens=3, no_embed_class=True),
    "eva average, no class": lambda: eva("avg", None, class_token=False),
    "eva average, both norms": lambda: eva("avg", None, use_post_transformer_norm=True),
    "eva scales": lambda: eva(init_values=1e-5, qk_norm=True, scale_attn_inner=True),
    "eva attention scale alone": lambda: eva(init_values=1e-5, attn_only_layer_scale=True),
    "eva fused": lambda: eva(qkv_fused=True, attn_type="rope", rope_rotate_half=True),
    "eva post-norm rope": lambda: eva(use_post_norm=True, scale_attn_inner=True),
    "eva no bias": lambda: eva(qkv_bias=False, qkv_fused=True),
    "eva own heads": lambda: eva(attn_type="rope", num_kv_heads=4),
    "eva no positions": lambda: eva(use_abs_pos_emb=False, ref_feat_shape=(3, 3)),
    "eva dynamic": lambda: eva(dynamic_img_size=True),
    "eva dynamic, mixed": lambda: eva(dynamic_img_size=True, rope_type="mixed"),
    "pe registers": lambda: pe("map", num_reg_tokens=2),
    "pe average": lambda: pe("avg", None),
}

#: Whole configurations, image tower alone; True where they take long: their kinds are tiny, too.
REAL = {
    "ViT-S-32": False,
    "RN50": True,
    "coca_ViT-B-32": True,
    "ViT-B-16-SigLIP": True,
    "ViTamin-S": True,
    "MobileCLIP-B": True,
    "vit_medium_patch16_gap_256": True,
    "EVA02-B-16": True,
    "PE-Core-T-16-384": False,
    "ViT-M-16-alt": True,
}


def real(name: str) -> nn.Module:
    config = open_clip.get_model_config(name)
    torch.manual_seed(0)
    return open_clip.model._build_vision_tower(config["embed_dim"], config["vision_cfg"])


CASES: dict[str, Callable[[], nn.Module]] = {
    **{kind: functools.partial(tiny, kind) for kind in TINY},
    **OPTIONS,
    **{name: functools.partial(real, name) for name in REAL},
}
SIZES = ("native", "wide", "as many")


@functools.lru_cache(maxsize=1)  # the sizes of a tower come one after another
def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    visual = CASES[name]()
    enliven(visual)
    # Wide numbers where they cost little: what random weights saturate is sensitive to rounding.
    return visual.eval() if name in REAL else visual.eval().double()


class Case:
    """A tower with its adapter at one size, and the model's own pass over the same images."""

    def __init__(self, name: str, size: str) -> None:
        self.visual = built(name)
        self.tower = build_tower(self.visual)
        rows, columns = self.tower.grid(*self.tower.native_size)
        # The last has the native number of patches: their count alone does not tell the size.
        grids = {"native": (rows, columns), "wide": (3, 6), "as many": (1, rows * columns)}
        self.grid, patch = grids[size], self.tower.patch_size
        self.pixels = (self.grid[0] * patch[0], self.grid[1] * patch[1])
        torch.manual_seed(0)
        count, dtype = (1, torch.float32) if name in REAL else (2, torch.float64)
        self.images = torch.randn(count, 3, *self.pixels, dtype=dtype)
        self.run = trace(self.own(), self.images)

    def own(self, positions: str = "bilinear") -> Any:
        """The model itself, or made for the size by others."""
        if self.pixels == self.tower.native_size:
            return self.visual
        return at_size(self.visual, self.grid, self.pixels, positions)


def cases(names: Iterable[str]) -> Iterator[Any]:
    """Towers, each at its sizes; options that no configuration uses at their native size, slow."""
    for name in names:
        slow, quick = [], []
        for size in SIZES:
            if size == "as many" and name not in TINY:
                continue
            is_slow = REAL.get(name) or (name in OPTIONS and size == "native")
            (slow if is_slow else quick).append(size)
        for sizes, marks in ((quick, ()), (slow, pytest.mark.slow)):
            if sizes:
                yield pytest.param((name, sizes), id=f"{name}, {', '.join(sizes)}", marks=marks)


#: Towers whose positions differ; other options do not affect how positions are resized.
POSITIONED = [
    *TINY,
    *(name for name in OPTIONS if re.search("regist|oblong|no_embed|posit|dynamic|mixed", name)),
    *REAL,
]


@pytest.fixture(scope="module", params=cases(CASES))
def sized(request: pytest.FixtureRequest) -> list[Case]:
    """A tower at each of its sizes."""
    name, sizes = request.param
    with torch.no_grad():
        return [Case(name, size) for size in sizes]


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


# --- what holds for all --------------------------------------------------------------------------


def test_blocks_are_rebuilt(sized):
    """Attention of q, k, v, merged, is what the block's own adds; the feed-forward completes it."""
    for case in sized:
        check_blocks(case)


def check_blocks(case: Case) -> None:
    tower, run = case.tower, case.run
    entering, grid_spec = tower.embed(case.images)
    assert grid_spec.grid == case.grid
    assert relative_error(entering, run.inputs[0]) < TOLERANCE
    assert len(tower.blocks) == len(run.inputs) == len(run.outputs)
    for index, (x, out) in enumerate(zip(run.inputs, run.outputs, strict=True)):
        heads = tower.attention_inputs(index, x, grid_spec)
        assert heads.grid == case.grid
        update = tower.merge(index, heads.attend(), heads.x)
        if not tower.has_residual:  # and the block returns its first token alone
            assert relative_error(tower.feed_forward(index, update)[:, 0], out) < TOLERANCE
            continue
        assert relative_error(update, run.updates[index]) < TOLERANCE
        assert relative_error(tower.feed_forward(index, x + update), out) < TOLERANCE
        assert relative_error(tower.run_block(index, x, grid_spec), out) < TOLERANCE
    assert relative_error(tower.encode(case.images), run.pooled) < TOLERANCE


def test_dual_path(sized):
    for case in sized:
        for num_blocks in (0, len(case.run.inputs)):
            check_dual_path(case, num_blocks)


def check_dual_path(case: Case, num_blocks: int) -> None:
    """Patches of the path restated plainly, each pooled alone; the embedding is the model's own."""
    recipe = PathConfig(num_blocks, lambda heads: functional.vv_attention(heads.v))
    encoded = case.tower.dual_path(case.images, recipe)
    rows, columns = case.grid
    path = new_path(case.visual, case.run, num_blocks)[:, -rows * columns :]
    assert encoded.grid == (rows, columns)
    assert relative_error(encoded.patches, alone(case.visual, path)) < TOLERANCE
    assert relative_error(encoded.pooled, case.run.pooled) < TOLERANCE
    # Queries that nobody looks at need not be made.
    sparing = case.tower.dual_path(case.images, replace(recipe, values_only=True))
    assert relative_error(sparing.patches, encoded.patches) < TOLERANCE
    assert relative_error(sparing.pooled, encoded.pooled) < TOLERANCE


def check_positions(name: str) -> None:
    case = Case(name, "wide")
    bicubic = build_tower(case.visual, positions="bicubic")
    expected = trace(case.own("bicubic"), case.images).pooled
    assert relative_error(bicubic.encode(case.images), expected) < TOLERANCE


@pytest.mark.slow
@each("name", [name for name in POSITIONED if not REAL.get(name)])
def test_positions_as_open_clip_resizes_them(name):
    check_positions(name)


@pytest.mark.slow
@each("name", [name for name, is_slow in REAL.items() if is_slow])
def test_positions_of_whole_configurations(name):
    check_positions(name)


@each("kind", TINY)
def test_queries_of_the_first_tokens_alone(kind):
    tower = build_tower(tiny_model(kind).visual)
    x, grid_spec = tower.embed(torch.randn(2, 3, *tower.native_size))
    for count in (1, 3):  # past the prefix tokens, too
        whole, few = (tower.attention_inputs(0, x, grid_spec, queries) for queries in (None, count))
        assert relative_error(few.q[:, :, :count], whole.q[:, :, :count]) < TOLERANCE
        assert relative_error(few.k, whole.k) < TOLERANCE
        assert relative_error(few.v, whole.v) < TOLERANCE


def test_linear_rows_of_what_wraps_a_linear_map():
    linear, x, rows = nn.Linear(4, 6), torch.randn(2, 4), slice(2, 5)
    expected = linear(x)[:, rows]
    assert relative_error(linear_rows(linear, x, rows), expected) < TOLERANCE

    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    doubled = Doubled(4, 6)
    doubled.load_state_dict(linear.state_dict())
    assert relative_error(linear_rows(doubled, x, rows), 2 * expected) < TOLERANCE
    linear.register_forward_hook(lambda module, inputs, output: 3 * output)
    assert relative_error(linear_rows(linear, x, rows), 3 * expected) < TOLERANCE


@each("name", TINY)
def test_the_model_is_left_alone(name):
    case = Case(name, "wide")
    before = snapshot(case.visual)
    case.tower.encode(case.images)
    case.tower.dual_path(case.images, PathConfig(1, lambda heads: heads.attend()))
    assert differences(before, snapshot(case.visual)) == []


@each("kind", TINY)
def test_embedding_is_encode_image(kind):
    model = tiny_model(kind)
    tower = build_tower(model.visual)
    images = torch.randn(2, 3, *tower.native_size)
    expected = model.encode_image(images, normalize=False)  # CoCa normalises by default
    assert relative_error(tower.encode(images), expected) < TOLERANCE
    encoded = tower.dual_path(images, PathConfig(1, lambda heads: heads.v))
    assert relative_error(encoded.pooled, expected) < TOLERANCE


@each("kind", ["vit", "clipa", "coca", "custom"])
def test_positions_of_a_model_built_for_the_size(kind):
    """As open_clip loads weights into a model of another size."""
    model = build_tiny(kind)
    other = replace(TINY[kind], vision=TINY[kind].vision | dict(image_size=(24, 48))).build()
    state = model.state_dict()
    open_clip.model.resize_pos_embed(state, other)
    other.load_state_dict(state)
    images = torch.randn(2, 3, 24, 48)
    expected = other.eval().encode_image(images, normalize=False)
    tower = build_tower(model.visual, positions="bicubic")
    assert relative_error(tower.encode(images), expected) < TOLERANCE
