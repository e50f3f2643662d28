"""What holds for any model, images and texts: properties on generated ones.

`CAPTUM_CLIP_SURGERY_CASES` says how many cases there are in all, other ones at each run; without it
they are the same at each run, 2,000 where the project itself runs its tests and 200 elsewhere.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from torch import Tensor

from captum_clip_surgery import (
    CLIPSurgery,
    LayerCLIPSimilarity,
    LayerCLIPSurgery,
    LayerFeatureCLIPSurgery,
    ZeroShotClassifier,
    functional,
)
from tests._helpers.plain_towers import alone, enliven, new_path, trace
from tests._helpers.tiny import with_preprocessing

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

PROPERTIES = 13
CASES = os.environ.get("CAPTUM_CLIP_SURGERY_CASES")
IN_ALL = int(CASES or ("2000" if "CAPTUM_CLIP_SURGERY_CI" in os.environ else "200"))
WIDTH = 12  # of the joint space
TEXT = dict(context_length=4, vocab_size=8, width=8, heads=1, layers=1)  # features are given
VARIANTS = (None, "release", "paper", "empty")

cases = settings(
    max_examples=-(-IN_ALL // PROPERTIES),
    derandomize=CASES is None,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],  # a case is as small as it gets
)


# --- models --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """Of an image tower; `kind` is its family and how it pools."""

    kind: str
    heads: int
    head_width: int
    depth: int
    patch: int
    prefix: int  # further prefix tokens, "registers"


_trunk: dict[str, Any] = {}  # what the next trunk of timm is made with


def generated_vit(pretrained: bool = False, **options: Any) -> Any:
    return timm.create_model("vit_base_patch16_224", **(options | _trunk))


timm.models.register_model(generated_vit)


def vision_of(shape: Shape) -> dict[str, Any]:
    family, _, pool = shape.kind.partition(" ")
    if family == "resnet":
        return dict(
            image_size=64,
            layers=(1, 1, 1, 1),
            width=4 * shape.heads,
            head_width=32,
            patch_size=None,
        )
    if family == "timm":
        return dict(
            timm_model_name="generated_vit",
            timm_pool=pool,
            timm_proj="linear",
            image_size=3 * shape.patch,
        )
    pooled = {} if pool == "token" else dict(pool_type="avg", final_ln_after_pool=True)
    return dict(
        image_size=3 * shape.patch,
        layers=shape.depth,
        width=shape.heads * shape.head_width,
        head_width=shape.head_width,
        patch_size=shape.patch,
        no_ln_pre=shape.prefix > 0,
        **pooled,
    )


@functools.lru_cache(256)
def model_of(shape: Shape) -> Any:
    """In float64, so that what differs by more than rounding shows."""
    torch.manual_seed(0)
    vision = vision_of(shape)
    _trunk.clear()
    _trunk.update(
        img_size=3 * shape.patch,
        patch_size=shape.patch,
        embed_dim=shape.heads * shape.head_width,
        depth=shape.depth,
        num_heads=shape.heads,
        reg_tokens=shape.prefix,
        class_token=shape.kind == "timm token",
        global_pool=shape.kind.partition(" ")[2],
    )
    model: Any = CLIP(embed_dim=WIDTH, vision_cfg=vision, text_cfg=TEXT).eval()
    enliven(model.visual)
    return with_preprocessing(model).double()


shapes = st.builds(
    Shape,
    kind=st.sampled_from(["vit token", "vit avg", "resnet", "timm token", "timm avg", "timm map"]),
    heads=st.integers(1, 3),
    head_width=st.sampled_from([4, 8]),
    depth=st.integers(1, 3),
    patch=st.sampled_from([4, 8]),
    prefix=st.integers(0, 2),
)


# --- cases ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    clip: ZeroShotClassifier
    images: Tensor
    depth: int
    form: str | None

    @property
    def surgery(self) -> LayerCLIPSurgery:
        return LayerCLIPSurgery(self.clip, num_blocks=self.depth, feature_surgery=self.form)

    def with_features(self, features: Tensor) -> LayerCLIPSurgery:
        clip = classifier(self.clip.model, features, self.clip.empty_features())
        return LayerCLIPSurgery(clip, num_blocks=self.depth, feature_surgery=self.form)


def classifier(model: Any, features: Tensor, empty: Tensor | None) -> ZeroShotClassifier:
    return ZeroShotClassifier.from_features(model, features, empty)


@st.composite
def drawn(draw: Any, native: bool = False, forms: tuple[str | None, ...] = VARIANTS) -> Case:
    model = model_of(draw(shapes))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    features = torch.randn(draw(st.integers(2, 9)), WIDTH, generator=generator, dtype=torch.float64)
    empty = torch.randn(WIDTH, generator=generator, dtype=torch.float64)
    clip = classifier(model, features, empty)
    size = clip.native_size
    if not native:
        size = tuple(draw(st.integers(1, 4)) * patch for patch in clip.tower.patch_size)
    batch, spread = draw(st.integers(1, 4)), draw(st.sampled_from([0.1, 1.0, 5.0]))
    images = spread * torch.randn(batch, 3, *size, generator=generator, dtype=torch.float64)
    depth = draw(st.integers(0, len(clip.tower.blocks)))
    return Case(clip, images, depth, draw(st.sampled_from(forms)))


def same(found: Tensor, expected: Tensor, rtol: float = 1e-6) -> None:
    torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-9)


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


# --- properties ----------------------------------------------------------------------------------


@pytest.mark.slow
@cases
@given(drawn())
def test_a_batch_is_its_images_one_by_one(case: Case) -> None:
    alone_each = [case.surgery.attribute_all(image[None]) for image in case.images]
    same(case.surgery.attribute_all(case.images), torch.cat(alone_each))
    same(case.clip(case.images), torch.cat([case.clip(image[None]) for image in case.images]))


@pytest.mark.slow
@cases
@given(drawn(), st.randoms(use_true_random=False))
def test_permuted_images_give_permuted_maps(case: Case, random: Any) -> None:
    order = random.sample(range(len(case.images)), len(case.images))
    same(
        case.surgery.attribute_all(case.images[order]),
        case.surgery.attribute_all(case.images)[order],
    )


@pytest.mark.slow
@cases
@given(drawn(), st.randoms(use_true_random=False))
def test_permuted_texts_give_permuted_maps(case: Case, random: Any) -> None:
    features = case.clip.text_features()
    order = random.sample(range(len(features)), len(features))
    found = case.with_features(features[order]).attribute_all(case.images)
    same(found, case.surgery.attribute_all(case.images)[:, order])


@cases
@given(drawn(), st.data())
def test_one_target_is_that_of_all(case: Case, data: Any) -> None:
    count = len(case.clip.texts)
    target = data.draw(st.integers(-count, count - 1))
    found = case.surgery.attribute(case.images, target=target)
    same(found, case.surgery.attribute_all(case.images, targets=[target]))
    each = data.draw(
        st.lists(st.integers(0, count - 1), min_size=len(case.images), max_size=len(case.images))
    )
    everything = case.surgery.attribute_all(case.images)
    same(
        case.surgery.attribute(case.images, target=each),
        everything[range(len(each)), each][:, None],
    )


@cases
@given(drawn(forms=(None, "empty")), st.integers(0, 2**16))
def test_another_text_changes_no_scores_of_others(case: Case, seed: int) -> None:
    more = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = case.with_features(torch.cat([case.clip.text_features(), more])).attribute_all(
        case.images
    )
    same(found[:, :-1], case.surgery.attribute_all(case.images))


@cases
@given(drawn(forms=("paper",)))
def test_paper_form_keeps_the_ranking_at_each_patch(case: Case) -> None:
    plain = LayerCLIPSurgery(case.clip, num_blocks=case.depth, feature_surgery=None)
    before, after = plain.attribute_all(case.images), case.surgery.attribute_all(case.images)
    gaps = before[:, :, None] - before[:, None]
    same(after[:, :, None] - after[:, None], gaps)
    clear = gaps.abs() > 1e-9
    assert ((after[:, :, None] > after[:, None]) == (gaps > 0))[clear].all()


@cases
@given(drawn(forms=("release",)))
def test_release_form_is_its_definition(case: Case) -> None:
    tower, texts = case.clip.tower, case.clip.text_features()
    encoded = tower.dual_path(case.images, case.surgery.path_config)
    tokens, pooled = F.normalize(encoded.patches, dim=-1), F.normalize(encoded.pooled, dim=-1)
    weights = (functional.INVERSE_TEMPERATURE * pooled @ texts.T).softmax(-1)
    weights = weights / weights.mean(-1, keepdim=True)
    products = tokens[:, :, None] * texts * weights[:, None, :, None]  # (N, L, T, C)
    expected = (products - products.mean(2, keepdim=True)).sum(-1).mT.unflatten(-1, encoded.grid)
    same(case.surgery.attribute_all(case.images), expected)


@cases
@given(drawn(), st.data())
def test_the_length_of_a_text_feature_changes_nothing(case: Case, data: Any) -> None:
    count = len(case.clip.texts)
    powers = st.lists(st.floats(-6, 6), min_size=count, max_size=count)
    lengths = 10 ** torch.tensor(data.draw(powers), dtype=torch.float64)[:, None]
    found = case.with_features(case.clip.text_features() * lengths)
    same(found.attribute_all(case.images), case.surgery.attribute_all(case.images))
    same(found.forward_func(case.images), case.clip(case.images))


@cases
@given(drawn(), st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
def test_type_device_and_shapes_are_those_of_the_images(case: Case, dtype: torch.dtype) -> None:
    images, texts = case.images.to(dtype), len(case.clip.texts)
    rows, columns = case.clip.tower.grid(*images.shape[-2:])
    maps = case.surgery.attribute_all(images)
    assert maps.shape == (len(images), texts, rows, columns)
    logits = case.clip(images)
    assert logits.shape == (len(images), texts)
    for found in maps, logits:
        assert found.dtype == dtype
        assert found.device == images.device


@pytest.mark.slow
@cases
@given(drawn(), st.floats(-30, 10), st.sampled_from([0.0, 1.0, -1.0]))
def test_finite_in_finite_out(case: Case, power: float, shift: float) -> None:
    images = (case.images + shift) * 10**power
    methods = LayerCLIPSimilarity(case.clip), LayerFeatureCLIPSurgery(case.clip, "release")
    for method in (case.surgery, *methods):
        assert method.attribute_all(images).isfinite().all()
    assert case.clip(images).isfinite().all()
    assert case.surgery.attribute_all(torch.zeros_like(images)).isfinite().all()


@cases
@given(drawn(native=True))
def test_at_depth_0_tokens_are_clips_own(case: Case) -> None:
    visual, tower = case.clip.model.visual, case.clip.tower
    tokens = alone(visual, new_path(visual, trace(visual, case.images), 0))
    tokens = F.normalize(tokens[:, tower.num_prefix_tokens :], dim=-1)
    expected = (tokens @ case.clip.text_features().T).mT
    plain = LayerCLIPSurgery(case.clip, num_blocks=0, feature_surgery=None)
    same(plain.attribute_all(case.images).flatten(2), expected)


@cases
@given(drawn(native=True))
def test_logits_are_the_models_own(case: Case) -> None:
    model = case.clip.model
    image = F.normalize(model.encode_image(case.images), dim=-1)
    expected = model.logit_scale.exp() * image @ F.normalize(case.clip.text_features(), dim=-1).T
    same(case.clip(case.images), expected)


@cases
@given(drawn(), st.data())
def test_image_maps_are_enlarged_grids_in_thirds(case: Case, data: Any) -> None:
    target = data.draw(st.integers(0, len(case.clip.texts) - 1))
    surgery = CLIPSurgery(case.clip, num_blocks=case.depth, feature_surgery=case.form)
    found = surgery.attribute(case.images, target=target)
    grid = case.surgery.attribute(case.images, target=target)
    enlarged = F.interpolate(grid, case.images.shape[-2:], mode="bilinear", align_corners=False)
    same(found.sum(1, keepdim=True), enlarged)
    assert torch.equal(found[:, 0], found[:, 2])


def test_properties_are_counted() -> None:
    found = [name for name, each in globals().items() if hasattr(each, "hypothesis")]
    assert len(found) == PROPERTIES
