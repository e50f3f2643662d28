"""Methods by name, side by side, and what they cost."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import numpy as np
import open_clip
import pytest
import torch
from captum.attr import IntegratedGradients, Occlusion, Saliency

from captum_clip_surgery import LayerCLIPSurgery, ZeroShotClassifier, comparison
from captum_clip_surgery._utils import profiling
from captum_clip_surgery.attr import _registry
from captum_clip_surgery.attr._passes import images_per_pass
from captum_clip_surgery.attr._registry import DEFAULT_METHODS, METHODS, choose
from captum_clip_surgery.comparison import compare
from captum_clip_surgery.demo import Scenes
from tests._helpers.tiny import (
    peak_where_told,
    quick_on,
    random_images,
    relative_error,
    tiny_model,
)
from tests._helpers.tower_kinds import TINY

SCENES = Scenes("test", 2, size=96, objects=[2])
TEXTS = ["a dog", "a cat", "a tree"]


@pytest.fixture(scope="module")
def clip() -> ZeroShotClassifier:
    return ZeroShotClassifier.demo(SCENES[0].nouns)


@pytest.fixture(scope="module")
def images(clip) -> torch.Tensor:
    return clip.preprocess([scene.image for scene in SCENES], size=64)


# --- by name -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", quick_on(("vit",), TINY))
def test_every_method_gives_finite_maps_or_says_why_not(kind, monkeypatch):
    monkeypatch.setattr(_registry, "KERNEL_SHAP_SAMPLES", 5)
    clip = ZeroShotClassifier(tiny_model(kind), TEXTS, templates=())
    images = random_images(clip)
    chosen, left_out = choose(clip, ["all"])
    assert set(chosen) | set(left_out) == set(METHODS)
    assert {"CLIP", "CLIPSurgery", "GEM", "GradCam", "Saliency", "Occlusion"} <= set(chosen)
    assert ("GuidedGradCam" in chosen) == (kind == "resnet")
    for name, method in chosen.items():
        maps = method(clip).attribute_all(images)
        assert maps.shape[:2] == (2, 3), name
        assert torch.isfinite(maps).all(), name
        assert maps.detach().flatten(2).std(-1).any(), name
    for name, why in left_out.items():
        assert f"not defined on {clip.tower.family}" in why, name
    assert all(parameter.grad is None for parameter in clip.model.parameters())
    # GuidedGradCam and others hook the model and take their hooks away again.
    assert not any(m._forward_hooks or m._backward_hooks for m in clip.model.modules())


@pytest.fixture(scope="module")
def tiny() -> ZeroShotClassifier:
    """For methods of many passes: 4 x 4 patches of 8 pixels."""
    return ZeroShotClassifier(tiny_model("vit"), TEXTS[:2], templates=())


def test_captums_methods_are_captums(tiny):
    clip, images = tiny, random_images(tiny)
    cases = {
        "Saliency": (Saliency, {}),
        "IntegratedGradients": (IntegratedGradients, {}),
        "Occlusion": (
            Occlusion,
            {"sliding_window_shapes": (3, 8, 8), "strides": (3, 8, 8)},
        ),
    }
    for name, (method, options) in cases.items():
        maps = METHODS[name](clip).attribute_all(images)
        for target in range(2):
            expected = method(clip).attribute(images, target=target, **options).sum(1)
            assert relative_error(maps[:, target], expected.detach()) < 1e-3, name
        assert torch.equal(METHODS[name](clip).attribute_all(images[:1], [-1])[:, 0], maps[:1, 1])


@pytest.mark.parametrize("name", ["Occlusion", "KernelShap"])
def test_perturbed_images_are_seen_once_for_all_texts(name, monkeypatch):
    clip = ZeroShotClassifier(tiny_model("vit"), TEXTS, templates=())
    images = random_images(clip)[:1]
    seen = []
    image_features = ZeroShotClassifier.image_features
    monkeypatch.setattr(
        ZeroShotClassifier,
        "image_features",
        lambda self, batch: seen.append(len(batch)) or image_features(self, batch),
    )
    explain = METHODS[name](clip)
    together = explain.attribute_all(images)
    passes = sum(seen)
    explain.attribute_all(images, [0])
    assert sum(seen) == 2 * passes
    for index in range(len(TEXTS)):  # and every text's map is the one that it has alone
        alone = METHODS[name](clip).attribute(images, target=index).sum(1)
        assert relative_error(together[:, index], alone) < 1e-5
    with torch.no_grad():
        next(clip.model.parameters()).add_(0.1)
    assert not torch.equal(explain.attribute_all(images), together)


def test_occlusion_hides_whole_patches_in_a_grid_of_at_most_seven(tiny):
    images = torch.randn(1, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    maps = METHODS["Occlusion"](tiny).attribute_all(images)[0, 0]
    cells = maps.reshape(7, 16, 7, 16)
    assert (cells == cells[:, :1, :, :1]).all()


def test_passes_at_once_follow_from_the_size(clip):
    sizes = {224: 20, 512: 4, 2048: 1}
    for side, count in sizes.items():
        images = torch.empty(1, 3, side, side, device="meta")
        assert images_per_pass(clip, images) == count


def test_kernel_shap_without_scikit_learn_is_left_out_by_name(clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ValueError, match=r"no chosen method is defined .*KernelShap.*scikit-learn"):
        choose(clip, ["KernelShap"])
    chosen, left_out = choose(clip, ["CLIP", "KernelShap"])
    assert list(chosen) == ["CLIP"]
    assert left_out == {"KernelShap": "KernelShap needs scikit-learn: pip install scikit-learn"}


@pytest.mark.parametrize("name", ["Saliency", "IntegratedGradients", "Occlusion", "KernelShap"])
def test_captums_methods_in_any_mode_and_again(tiny, name):
    images, explain = random_images(tiny), METHODS[name](tiny).attribute_all
    before = torch.random.get_rng_state()
    expected = explain(images[:1])
    assert torch.equal(torch.random.get_rng_state(), before)
    with torch.inference_mode():
        assert relative_error(explain(images[:1].clone()), expected) < 1e-5


def test_unknown_names_are_refused(clip):
    assert list(choose(clip, ["surgery", "CLIPSURGERY", "clip"])[0]) == ["CLIPSurgery", "CLIP"]
    with pytest.raises(ValueError, match="unknown method 'Surgeon'; known: CLIP, CLIPSurgery, "):
        choose(clip, ["Surgeon"])
    with pytest.raises(TypeError, match=r"must be a list, got the string 'all'; pass \['all'\]"):
        choose(clip, "all")


def test_a_method_of_ones_own_is_one_line(clip, images, monkeypatch):
    monkeypatch.setitem(
        METHODS, "Mine", lambda clip: LayerCLIPSurgery(clip, num_blocks=3).attribute_all
    )
    found = compare(clip, images, methods=["Mine"])
    expected = LayerCLIPSurgery(clip, num_blocks=3).attribute_all(images).detach()
    assert torch.allclose(found.maps["Mine"], expected, atol=1e-6)


@pytest.mark.slow
def test_integrated_gradients_at_512_pixels_stay_under_eight_gibibytes():
    model = open_clip.create_model("ViT-B-16").eval()
    clip = ZeroShotClassifier.from_features(model, torch.randn(1, 512))
    images = torch.randn(1, 3, 512, 512)
    at_once = images_per_pass(clip, images)

    def explain():
        # Of its 50 steps no more than these are in memory at once.
        method = IntegratedGradients(clip)
        return method.attribute(images, target=0, n_steps=at_once, internal_batch_size=at_once)

    _, cost = profiling.profile_call(explain, images.device)
    assert (peak_where_told(cost) or 0) < 8 << 30


# --- side by side --------------------------------------------------------------------------------


def test_images_and_batches_compare_alike(clip):
    names = ["CLIP", "CLIPSurgery", "LeGrad"]
    pictures = [scene.image for scene in SCENES]
    found = compare(clip, pictures, methods=names)
    batch = clip.preprocess(pictures)
    again = compare(clip, batch, methods={name: METHODS[name] for name in names})
    for name in names:
        assert found.maps[name].shape == (2, 2, 14, 14)
        assert torch.equal(found.maps[name], again.maps[name])
    assert torch.allclose(found.logits, clip(batch).detach())
    assert np.array_equal(found.images[0], pictures[0])
    assert again.images[0].shape == (224, 224, 3)
    assert 0 <= again.images[0].min() <= again.images[0].max() <= 1
    assert (found.left_out, found.measures) == ({}, {})


def test_targets_choose_and_order_the_texts(clip, images):
    whole = compare(clip, images, methods=["CLIP"])
    some = compare(clip, images, targets=[1, 0], methods=["CLIP"])
    assert some.texts == whole.texts[::-1]
    assert torch.equal(some.maps["CLIP"], whole.maps["CLIP"].flip(1))
    assert torch.equal(some.logits, whole.logits.flip(1))
    with pytest.raises(IndexError):
        compare(clip, images, targets=[2], methods=["CLIP"])


def test_only_what_is_asked_for_is_explained(clip, images):
    asked = []

    def spy(clip):
        def explain(images, targets=None):
            asked.append(targets)
            return LayerCLIPSurgery(clip).attribute_all(images, targets)

        return explain

    found = compare(clip, images, targets=[-1], methods={"spy": spy})
    assert asked == [[1]]
    assert found.maps["spy"].shape[:2] == (2, 1)


def test_what_fails_is_left_out_and_the_others_compared(images):
    features = ZeroShotClassifier.demo(SCENES[0].nouns)
    bare = ZeroShotClassifier.from_features(features.model, features.text_features())
    found = compare(bare, images, methods=["CLIP", "CLIPSurgery"])
    assert list(found.maps) == list(found.costs) == ["CLIP"]
    assert "empty" in found.left_out["CLIPSurgery"]
    with pytest.raises(ValueError, match=r"no method gave a map: CLIPSurgery: .*empty"):
        compare(bare, images, methods=["CLIPSurgery"])


def test_size_is_of_images(clip, images):
    found = compare(clip, SCENES[0].image, methods=["CLIP"], size=(64, 96))
    assert found.maps["CLIP"].shape[-2:] == (4, 6)
    with pytest.raises(ValueError, match="size=64 does not apply to a batch"):
        compare(clip, images, methods=["CLIP"], size=64)


def test_masks_give_measures(clip):
    scene = SCENES[0]
    found = compare(
        clip, [scene.image], masks=[torch.from_numpy(scene.masks)], methods=DEFAULT_METHODS[:2]
    )
    assert found.measures["CLIPSurgery"]["msc"] > found.measures["CLIP"]["msc"]
    table = found.to_markdown()
    assert f"{found.measures['CLIPSurgery']['explanation_iou']:.1f}" in table
    with pytest.raises(ValueError, match=r"expected \(2 texts, H, W\) for each of 1 images"):
        compare(clip, [scene.image], masks=torch.zeros(2, 2, 8, 8, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"masks must be bool, got \[torch.uint8\]"):
        compare(clip, [scene.image], masks=[scene.masks.astype(np.uint8)])
    with pytest.raises(ValueError, match="every mask is empty or full"):
        compare(clip, [scene.image], masks=[np.zeros((2, 8, 8), dtype=bool)])


def test_trust_says_how_much_each_map_depends_on_its_text(clip, images):
    surgery = partial(LayerCLIPSurgery, feature_surgery="release")  # is not defined for one text
    methods = {"CLIP": METHODS["CLIP"], "Raw": METHODS["RawAttention"], "Release": surgery}
    found = compare(clip, images, methods=methods, trust=True)
    assert set(found.maps) == set(methods)
    assert {name: values.shape for name, values in found.specificity.items()} == {
        "CLIP": (2, 2),
        "Raw": (2, 2),
    }
    assert "only one" in found.left_out["text specificity of Release"]
    lines = {line.split("|")[1].strip(): line for line in found.to_markdown().splitlines()}
    assert "hardly depends on the text: 1.00" in lines["Raw"]
    assert f"text: {found.specificity['CLIP'].mean():.2f}" in lines["CLIP"]
    assert lines["Release"].split("|")[-2].strip() == "-"
    notes = [axis.get_xlabel() for axis in found.figure().axes[:3]]
    assert notes[0].endswith(f"{found.specificity['CLIP'][0, 0]:.2f}")
    assert notes[1] == "hardly depends on the text: 1.00"
    assert notes[2].endswith(" ms")
    assert not compare(clip, images, methods=["CLIP"]).specificity


def test_tables_with_and_without_pandas(clip, images, monkeypatch):
    found = compare(clip, images, methods=["CLIP", "GEM"])
    monkeypatch.setattr(comparison, "find_spec", lambda _: None)
    rows = found.table()
    assert [row["method"] for row in rows] == ["CLIP", "GEM"]
    assert all(row["seconds"] > 0 for row in rows)
    monkeypatch.undo()
    pandas = pytest.importorskip("pandas")
    frame = found.table()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.index) == ["CLIP", "GEM"]


def test_the_figure_has_a_row_for_each_image_and_text(clip, images):
    found = compare(clip, images, methods=["CLIP", "CLIPSurgery"])
    figure = found.figure()
    panels = figure.axes[: 2 * 2 * 2]
    assert len(figure.axes) == len(panels) + 2 + 2  # images and color bars
    assert [axis.get_title() for axis in panels[:2]] == ["CLIP", "CLIP Surgery"]
    assert [axis.get_ylabel() for axis in panels[::2]] == list(clip.texts) * 2
    (note,) = panels[0].texts
    assert note.get_text() == f"cosine {found.cosines[0, 0]:.3f}"
    assert panels[0].get_xlabel().endswith(" ms")


def test_more_rows_than_a_figure_holds_are_refused(clip, images, monkeypatch):
    monkeypatch.setattr(comparison, "MAX_ROWS", 3)
    with pytest.raises(ValueError, match="2 images and 2 texts make 4 rows; the limit is 3"):
        compare(clip, images, methods=["CLIP"]).figure()


def test_many_images_pass_in_parts(clip, images, monkeypatch):
    whole = compare(clip, images, methods=["CLIPSurgery", "LeGrad"])
    monkeypatch.setattr(comparison, "BATCH_SIZE", 1)
    parts = compare(clip, images, methods=["CLIPSurgery", "LeGrad"])
    for name, maps in whole.maps.items():
        assert relative_error(parts.maps[name], maps) < 1e-5
    assert torch.allclose(parts.logits, whole.logits, atol=1e-4)


# --- costs ---------------------------------------------------------------------------------------


def test_memory_at_its_peak_is_measured():
    def takes(megabytes: int) -> int:
        held = torch.ones(megabytes << 18)  # of four bytes
        return len(held)

    device = torch.device("cpu")
    result, cost = profiling.profile_call(lambda: takes(200), device)
    assert result == 200 << 18
    assert cost.seconds > 0
    if peak_where_told(cost) is None:
        return
    assert 190 << 20 < cost.peak_bytes < 300 << 20


FREED_BEFORE = """
import torch
from captum_clip_surgery._utils.profiling import profile_call
rows = [torch.ones(1 << 18) for _ in range(200)]  # too small to be returned at once
del rows
peak = profile_call(lambda: [torch.ones(1 << 14) for _ in range(200 << 4)], torch.device("cpu"))[1]
print(-1 if peak.peak_bytes is None else peak.peak_bytes >> 20)
"""


@pytest.mark.slow
def test_what_was_freed_before_does_not_count_as_free_to_use():
    """In a process of its own: the heap of this one has grown in too many pieces."""
    ended = subprocess.run([sys.executable, "-c", FREED_BEFORE], capture_output=True, check=True)
    megabytes = int(ended.stdout)
    if megabytes == -1:
        peak_where_told(profiling.ProfileResult(1.0, None))
        return
    assert 190 < megabytes < 400


def test_where_memory_is_not_told_it_is_none(monkeypatch, tmp_path):
    monkeypatch.setattr(profiling, "PROCESS", tmp_path / "none")
    assert profiling.profile_call(lambda: 1, torch.device("cpu"))[1].peak_bytes is None
