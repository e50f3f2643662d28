"""Models in half precision as open_clip builds them, autocast, and float64."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch import Tensor, nn

from captum_clip_surgery import (
    CLIPSimilarity,
    CLIPSurgery,
    LayerCLIPSimilarity,
    LayerCLIPSurgery,
    ZeroShotClassifier,
)
from captum_clip_surgery.attr._base import PatchAttribution
from tests._helpers.cases import each
from tests._helpers.tiny import (
    MODELS,
    REFERENCE,
    TOWERS,
    TWO_MODELS,
    load_reference_model,
    quick_on,
    relative_error,
    tiny_model,
)
from tests._helpers.tower_kinds import TINY, built_for

TEXTS = ["dog", "cat", "remote control", "potted plant", "tv monitor"]
TEMPLATES = ["a photo of a {}."]
MAPS: dict[str, Callable[[ZeroShotClassifier], PatchAttribution]] = {
    **{
        f"surgery {form}": functools.partial(CLIPSurgery, feature_surgery=form)
        for form in ("release", "paper", "empty", None)
    },
    "similarity": CLIPSimilarity,
}
HALVES = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "pure_fp16": torch.float16,
    "pure_bf16": torch.bfloat16,
}
# open_clip's mixed precision leaves layer scales and learned queries in float32, and its own pass
# fails.
NOT_MIXED = ("layerscale", "custom", "coca")
each_family = pytest.mark.parametrize("family", TOWERS)
#: Each type in one of the two ways to compute with it; slow in the other.
each_half = pytest.mark.parametrize("precision", quick_on(("fp16", "pure_bf16"), HALVES))


def has_precision(family: str, precision: str) -> bool:
    """Whether open_clip itself can run the family in this precision."""
    return family not in NOT_MIXED or "pure" in precision


def structured(count: int, height: int, width: int, seed: int) -> Tensor:
    """Noise of several scales, so that patches differ as they do in pictures."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(count, 3, height, width)
    for scale in (32, 8, 1):
        noise = torch.randn(count, 3, -(-height // scale), -(-width // scale), generator=generator)
        images += F.interpolate(noise, (height, width), mode="bilinear")
    return images


def images_of(clip: ZeroShotClassifier, grid: tuple[int, int]) -> Tensor:
    rows, columns = clip.tower.patch_size
    return structured(2, grid[0] * rows, grid[1] * columns, seed=7)


def correlation(maps: Tensor, expected: Tensor) -> float:
    """The least Pearson correlation of a map, of one image and text, with what is expected."""
    assert maps.shape == expected.shape
    assert torch.isfinite(maps).all()
    rows = (m.detach().flatten(2).double() for m in (maps, expected))
    a, b = (F.normalize(row - row.mean(-1, keepdim=True), dim=-1) for row in rows)
    return float((a * b).sum(-1).min())


def settled_resnet() -> CLIP:
    """The reference ResNet with batch norms that have seen images, as training leaves them.

    On its random weights and statistics attention is so peaked, and the tower's own tokens are so
    alike, that bfloat16 decides where maps are high.
    """
    model = load_reference_model("resnet")
    torch.manual_seed(0)
    model.visual.init_parameters()
    for module in model.visual.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
            module.momentum = None
            module.train()
    with torch.no_grad():
        model.visual(structured(16, 64, 64, seed=5))
    return model.eval()


# --- half precision ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ZeroShotClassifier]:
    """Models as open_clip builds them from a folder, in any precision."""

    @functools.cache
    def folder(family: str) -> Path:
        config, model = REFERENCE.get(family, TINY[family].config), tiny_model(family)
        if family in REFERENCE:  # with more blocks than the tiny ones
            model = settled_resnet() if family == "resnet" else load_reference_model(family)
        path = tmp_path_factory.mktemp(family)
        written = {"model_cfg": config, "preprocess_cfg": {}}
        (path / "open_clip_config.json").write_text(json.dumps(written))
        save_file(model.state_dict(), path / "open_clip_model.safetensors")
        return path

    @functools.cache
    def loaded(family: str, precision: str = "fp32") -> ZeroShotClassifier:
        name = f"local-dir:{folder(family)}"
        return ZeroShotClassifier.from_pretrained(
            name, None, TEXTS, templates=TEMPLATES, precision=precision
        )

    return loaded


@pytest.mark.parametrize("grid", [(8, 5), pytest.param((6, 6), marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", quick_on(("vit",), TINY))
def test_half_precision_models_give_the_maps_of_full_precision(load, family, grid):
    full = load(family)
    halves = {p: load(family, p) for p in HALVES if has_precision(family, p)}
    for precision, half in halves.items():
        entry = half.model.visual.get_submodule(TINY[family].parts.entry)
        assert {parameter.dtype for parameter in entry.parameters()} == {HALVES[precision]}
        assert half.tower.dtype == HALVES[precision]
    images = images_of(full, grid)
    for method, make in MAPS.items():
        expected = make(full).attribute_all(images)
        for precision, half in halves.items():
            maps = make(half).attribute_all(images)
            assert maps.dtype == images.dtype, method
            assert correlation(maps, expected) > 0.99, (method, precision)


@pytest.mark.parametrize("family", TWO_MODELS)
@each_half
def test_results_have_the_dtype_of_the_images(load, family, precision):
    if not has_precision(family, precision):
        return
    half = load(family, precision)
    images = images_of(half, (6, 6)).to(HALVES[precision])
    for make in (CLIPSurgery, LayerCLIPSurgery, LayerCLIPSimilarity):
        method = make(half)
        for dtype in (images.dtype, torch.float32, torch.float64):
            # The same pixels: what differs is the type of the result alone.
            maps = method.attribute(images.to(dtype), target=1)
            assert maps.dtype == dtype
            assert torch.isfinite(maps).all()
        exact, rounded = (method.attribute_all(x).detach() for x in (images.float(), images))
        assert relative_error(rounded.float(), exact) < 2 * torch.finfo(images.dtype).eps
    assert half(images).dtype == images.dtype
    assert half.text_features().dtype == torch.float32


@each_family
@each_half
def test_half_precision_logits_are_close(load, family, precision):
    if not has_precision(family, precision):
        return
    full, half = load(family), load(family, precision)
    for grid in (full.tower.grid(*full.native_size), (6, 4)):
        images = images_of(full, grid)
        assert half(images).dtype == torch.float32
        # As cosines, since a small logit is a small difference of large products.
        error = (half(images) - full(images)).abs().max() / full.model.logit_scale.exp()
        assert error < 5 * torch.finfo(HALVES[precision]).eps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_what_open_clip_itself_cannot_run_in_mixed_precision(dtype):
    """Once it can, there is more to test above."""

    def embed(kind: str) -> Tensor:
        model = TINY[kind].build(cast_dtype=dtype).eval()
        open_clip.model.convert_weights_to_lp(model, dtype)
        return model.encode_image(torch.zeros(1, 3, 32, 32, dtype=dtype))

    assert embed("vit").dtype == dtype
    for kind in NOT_MIXED:
        with pytest.raises(RuntimeError, match="same dtype"):
            embed(kind)


@pytest.mark.parametrize("family", MODELS)
@each("dtype", [torch.bfloat16, torch.float16])
def test_autocast(load, family, dtype):
    clip = load(family)
    images = images_of(clip, (8, 5))
    logits = clip(images).detach()
    with torch.autocast("cpu", dtype):
        assert relative_error(clip(images).detach(), logits) < 0.1
    for method, make in MAPS.items():
        maps = make(clip)
        expected = maps.attribute_all(images)
        with torch.autocast("cpu", dtype):
            actual = maps.attribute_all(images)
        assert actual.dtype == images.dtype, method
        assert not torch.equal(actual, expected), method  # autocast did something
        assert correlation(actual, expected) > 0.99, method


@pytest.mark.parametrize("family", ["vit", "resnet", pytest.param("coca", marks=pytest.mark.slow)])
@each("where", ["made", "with_texts", "attribute"])
def test_text_features_remembered_under_autocast_are_exact(load, family, where):
    """A cache outlives the mode it was filled in."""
    clip = load(family)
    images = images_of(clip, (6, 6))
    expected = CLIPSurgery(clip).attribute_all(images).detach()
    make = functools.partial(ZeroShotClassifier, clip.model, templates=TEMPLATES)
    others, same = make(["bird"]), make(TEXTS)
    with torch.autocast("cpu", torch.bfloat16):
        if where == "made":
            fresh = make(TEXTS)
        elif where == "with_texts":
            fresh = others.with_texts(TEXTS)
        else:
            # The texts are known already, but the empty one is not.
            fresh = same
            CLIPSurgery(fresh).attribute_all(images)
    assert relative_error(fresh.text_features(), clip.text_features()) < 1e-6
    assert relative_error(CLIPSurgery(fresh).attribute_all(images).detach(), expected) < 1e-5


# --- float64 -------------------------------------------------------------------------------------


@functools.cache
def double_clip(family: str) -> ZeroShotClassifier:
    model = tiny_model(family).double()
    return ZeroShotClassifier(model, TEXTS[:3], distractors=TEXTS[3:], templates=TEMPLATES)


@pytest.mark.parametrize("family", MODELS)
@each("grid", [None, (3, 2)])
@each("method", MAPS)
def test_float64_in_float64_out(family, grid, method):
    clip = double_clip(family)
    single = ZeroShotClassifier(
        tiny_model(family), clip.texts, distractors=clip.distractors, templates=TEMPLATES
    )
    images = images_of(clip, grid or clip.tower.grid(*clip.native_size)).double()
    maps = MAPS[method](clip).attribute_all(images)
    expected = MAPS[method](single).attribute_all(images.float())
    assert maps.dtype == clip(images).dtype == clip.text_features().dtype == torch.float64
    assert relative_error(maps.detach().float(), expected.detach()) < 1e-4


@each_family
@each("positions", ["bilinear", "bicubic"])
def test_float64_models_are_computed_in_float64_at_any_size(family, positions):
    """A model built for the size, its positions resized beforehand in float64, agrees to 1e-12."""
    model = double_clip(family).model
    clip = ZeroShotClassifier(model, TEXTS, templates=TEMPLATES, positions=positions)
    grid = (3, 3)
    built = built_for(family, model, grid, positions)
    native_there = ZeroShotClassifier(built, TEXTS, templates=TEMPLATES)
    assert native_there.tower.grid(*native_there.native_size) == grid
    images = images_of(clip, grid).double()
    for make in MAPS.values():
        actual, expected = (make(c).attribute_all(images).detach() for c in (clip, native_there))
        assert relative_error(actual, expected) < 1e-12
