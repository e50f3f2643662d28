"""The check-up of a tower, on models with known faults."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

from captum_clip_surgery import LayerCLIPSurgery, ZeroShotClassifier, tower_report
from captum_clip_surgery.demo import Scenes, nouns
from captum_clip_surgery.diagnostics._verdict import describe_verdict
from tests._helpers.tiny import TOWERS, random_images, tiny_model, with_preprocessing


@pytest.fixture(scope="module")
def demo() -> ZeroShotClassifier:
    return ZeroShotClassifier.demo(nouns())


@pytest.fixture(scope="module")
def scenes(demo) -> torch.Tensor:
    return demo.preprocess([scene.image for scene in Scenes("test", 6)])


def test_norms_are_those_of_the_tokens(demo, scenes):
    entering = []
    blocks = demo.model.visual.transformer.resblocks
    handles = [b.register_forward_pre_hook(lambda _, a: entering.append(a[0])) for b in blocks]
    handles.append(blocks[-1].register_forward_hook(lambda _, a, out: entering.append(out)))
    try:
        with torch.no_grad():
            demo.model.encode_image(scenes)
    finally:
        for handle in handles:
            handle.remove()
    expected = torch.stack([tokens[:, 1:].norm(dim=-1) for tokens in entering])
    report = tower_report(demo, scenes)
    assert report.grid == (14, 14)
    assert torch.allclose(report.norms.float(), expected, rtol=1e-4)


def test_the_embedded_model_is_in_order(demo, scenes):
    report = tower_report(demo, scenes)
    assert not report.outliers.any()
    assert report.agreement == pytest.approx(1, abs=1e-5)
    assert 0.1 < report.common_energy < 0.5  # all are nouns in the same templates
    # The num_blocks at which the overlap with the true masks levels off (docs/models.md).
    assert report.suggested_num_blocks == 6
    said = str(report)
    for part in (
        "14 x 14 patches",
        "none (4 times",
        "lowest cosine with encode_image 1.0",
        "suggested num_blocks   6",
    ):
        assert part in said
    assert demo.tower.describe() in said


def test_outlier_tokens_are_found(demo, scenes):
    """Three patches of each image made extreme by block 4, as a trained-in sink would be."""

    def make_extreme(module, args, output):
        output = output.clone()
        output[:, [5, 77, 150]] += 300.0
        return output

    handle = demo.model.visual.transformer.resblocks[4].mlp.register_forward_hook(make_extreme)
    try:
        report = tower_report(demo, scenes)
    finally:
        handle.remove()
    assert report.outliers.tolist() == [0, 0, 0, 0, 0, 3, 3, 3, 3]
    extreme = report.norms[5].topk(3, dim=-1).indices.sort().values
    assert (extreme + 1 == torch.tensor([5, 77, 150])).all()
    assert "3.0 per image entering block 5, first at 5" in str(report)


def test_spread_is_that_of_the_maps(demo, scenes):
    report = tower_report(demo, scenes)
    likely = demo(scenes).argmax(-1)
    for num_blocks in (0, 1, 6, 8):
        surgery = LayerCLIPSurgery(demo, num_blocks=num_blocks, feature_surgery="empty")
        maps = surgery.attribute(scenes, target=likely).detach()
        assert report.spread[num_blocks] == pytest.approx(
            float(maps.flatten(1).std(1).mean()), rel=1e-4
        )
    assert len(report.spread) == 9


def test_energy_common_to_all_texts(demo, scenes):
    model, width = demo.model, 128
    orthogonal, alike = torch.eye(4, width), torch.ones(4, width)
    for features, expected in ((orthogonal, 0.0), (alike, 1.0), (alike[:1], None)):
        clip = ZeroShotClassifier.from_features(model, features)
        found = tower_report(clip, scenes[:1]).common_energy
        assert found == (expected if expected is None else pytest.approx(expected, abs=1e-6))
    assert "needs two texts" in str(tower_report(clip, scenes[:1]))


def test_disagreement_is_measured(demo, scenes, monkeypatch):
    """An adapter that got a block of a checkpoint wrong would show here."""
    merge = type(demo.tower).merge
    monkeypatch.setattr(type(demo.tower), "merge", lambda *given: 0 * merge(*given))
    assert tower_report(demo, scenes).agreement < 0.9


def test_images_of_one_patch_are_refused(demo):
    with pytest.raises(ValueError, match="images have one patch"):
        tower_report(demo, torch.zeros(1, 3, 16, 16))


@pytest.mark.parametrize("kind", TOWERS)
@pytest.mark.parametrize("native", [True, False])
def test_every_tower_at_any_size(kind, native):
    clip = ZeroShotClassifier(tiny_model(kind), ["a dog", "a cat"], templates=())
    rows, columns = clip.tower.patch_size
    images = random_images(clip) if native else torch.randn(2, 3, 3 * rows, 5 * columns)
    report = tower_report(clip, images)
    assert report.norms.shape[1:] == (2, report.grid[0] * report.grid[1])
    if native:
        assert report.agreement == pytest.approx(1, abs=1e-5)
    else:
        assert report.agreement is None
        assert "not of native size" in str(report)
    assert 0 <= report.suggested_num_blocks <= len(clip.tower.blocks)
    assert json.loads(json.dumps(report.to_dict()))["images"] == 2
    report.figure()


def test_half_precision_and_refusals(demo, scenes):
    half = ZeroShotClassifier(
        tiny_model("vit").to(torch.bfloat16), ["a dog", "a cat"], templates=()
    )
    report = tower_report(half, random_images(half))
    assert report.norms.dtype == torch.float64
    assert report.agreement == pytest.approx(1, abs=1e-2)
    with pytest.raises(ValueError, match="expected"):
        tower_report(demo, scenes[0])


def test_the_figure_shows_what_the_report_holds(demo, scenes):
    report = tower_report(demo, scenes)
    norms, on_grid, spread = report.figure().axes[:3]
    middle = next(line for line in norms.lines if line.get_label() == "median")
    assert middle.get_ydata() == pytest.approx(report.norms.flatten(1).quantile(0.5, dim=1).numpy())
    assert on_grid.images[0].get_array().shape == (14, 14)
    assert spread.lines[0].get_ydata() == pytest.approx(report.spread)
    assert spread.lines[1].get_xdata() == [report.suggested_num_blocks]


def built(kind: str) -> Any:
    """A model as its library builds it, with random weights."""
    if kind == "resnet":
        vision = CLIPVisionCfg(layers=(1, 1, 1, 1), width=8, image_size=64)
    else:
        vision = CLIPVisionCfg(layers=2, width=16, head_width=8, image_size=32, patch_size=16)
    text = CLIPTextCfg(context_length=8, width=16, heads=2, layers=1)
    return with_preprocessing(CLIP(16, vision, text).eval())


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_random_weights_are_told_from_trained_ones(kind):
    clip = ZeroShotClassifier(built(kind), ["a dog", "a cat"], templates=())
    report = tower_report(clip, random_images(clip))
    assert report.untrained == ("image tower", "text tower")
    assert report.to_dict()["verdict"] == "untrained"
    assert "Not a trained model: all normalization layers of the image tower and" in str(report)
    with torch.no_grad():  # one step of training changes every gain
        for parameter in clip.model.visual.parameters():
            parameter += 1e-3 * torch.randn_like(parameter) * (parameter.ndim == 1)
    assert tower_report(clip, random_images(clip)).untrained == ("text tower",)


def test_verdicts_have_their_numbers(demo, scenes):
    report = tower_report(demo, scenes)
    assert (
        report.verdict == "Sound: 0.0 outlier tokens per image, and a rebuilt embedding that "
        "agrees (1.0000)."
    )
    norms = report.norms.clone()
    norms[5, :, :3] *= 100
    outliers = replace(report, norms=norms, agreement=None)
    assert outliers.verdict.startswith(
        "Outliers: up to 3.0 patch tokens per image (entering block 5)"
    )
    mismatch = replace(outliers, agreement=0.5)
    assert "has a cosine of only 0.500 with the model's own" in mismatch.verdict
    assert [each.to_dict()["verdict"] for each in (outliers, mismatch)] == ["outliers", "mismatch"]


def test_verdicts_name_the_place_and_do_not_take_nan_for_agreement():
    last = torch.tensor([0.0, 0.1, 0.0, 2.5])  # three blocks: the last row is after them
    assert "(after the last block)" in describe_verdict((), 1.0, last)[1]
    assert "(entering block 2)" in describe_verdict((), 1.0, last.roll(-1))[1]
    assert describe_verdict((), float("nan"), torch.zeros(4))[0] == "mismatch"
