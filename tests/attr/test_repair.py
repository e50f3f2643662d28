"""The option `repair`: on the model that writes outliers, and on sound ones."""

from __future__ import annotations

import pytest
import torch

from captum_clip_surgery import (
    CLIPSurgery,
    LayerCLIPSurgery,
    LayerFeatureCLIPSurgery,
    LayerGEM,
    LayerNACLIP,
    ZeroShotClassifier,
    tower_report,
)
from captum_clip_surgery.attr import DualPathAttribution
from captum_clip_surgery.demo import Scenes, nouns
from captum_clip_surgery.evaluation import evaluate_scenes
from tests._helpers.outliers import mean_correlation, scene_maps, with_outliers
from tests._helpers.tiny import random_images, tiny_model

METHODS = (LayerCLIPSurgery, LayerFeatureCLIPSurgery, LayerGEM, LayerNACLIP)


def test_auto_changes_nothing_on_a_sound_tower():
    clip = ZeroShotClassifier.demo(["dog", "pizza"])
    images = clip.preprocess([scene.image for scene in Scenes("test", 3)])
    for method in METHODS:
        plain, auto = (method(clip, repair=r).attribute_all(images) for r in (None, "auto"))
        assert (plain - auto).abs().max() < 1e-6
        for repair in ("neighbors", "likeness"):
            assert (method(clip, repair=repair).attribute_all(images) - plain).abs().max() > 1e-3


def test_repair_is_the_model_run_on_filled_tokens():
    """Outliers made by hand in what enters the path; the model's own embedding stays."""
    clip = ZeroShotClassifier(tiny_model("vit"), ["a dog", "a cat"], templates=())
    images = random_images(clip)
    blocks = clip.model.visual.transformer.resblocks
    place, amplified = 1 + 5, 100.0

    def amplify(module, arguments, output):
        output = output.clone()
        output[:, place] *= amplified
        return output

    handle = blocks[0].mlp.register_forward_hook(amplify)
    try:
        pooled = clip.tower.encode(images)
        x, spec = clip.tower.enter(images, 1)
        output = clip.tower.dual_path(
            images, LayerCLIPSurgery(clip, num_blocks=2, repair="auto").path_config
        )
    finally:
        handle.remove()
    assert torch.allclose(output.pooled, pooled, atol=1e-6)
    around = [place + 4 * i + j for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]
    stream = x.clone()
    stream[:, place] = x[:, around].mean(1)
    tokens = stream
    for index in (1, 2):  # a naive second path
        heads = clip.tower.attention_inputs(index, stream, spec)
        attention = (heads.v @ heads.v.mT * heads.v.shape[-1] ** -0.5).softmax(-1)
        tokens = tokens + clip.tower.merge(index, attention @ heads.v, heads.x)
        stream = blocks[index](stream)
    assert torch.allclose(output.patches, clip.tower.project(tokens[:, 1:]), atol=1e-5)


def test_options():
    clip = ZeroShotClassifier(tiny_model("vit"), ["a dog", "a cat"], templates=())
    with pytest.raises(ValueError, match=r"repair must be one of 'auto', .* got 'all'"):
        CLIPSurgery(clip, repair="all")
    with pytest.raises(ValueError, match=r"clip.with_registers\(images\)"):
        LayerNACLIP(clip, repair="registers")
    assert repr(LayerGEM(clip, repair="auto")).endswith("(num_blocks=3, repair='auto')")
    assert repr(LayerNACLIP(clip)) == "LayerNACLIP()"
    assert "repair='likeness'" in repr(CLIPSurgery(clip, repair="likeness"))
    image = random_images(clip)[:, :, :8, :8]  # one patch
    for repair in ("auto", "neighbors", "likeness"):
        assert LayerCLIPSurgery(clip, repair=repair).attribute_all(image).isfinite().all()


def test_towers_pooled_by_queries_keep_their_own_tokens_by_default():
    clip = ZeroShotClassifier(tiny_model("siglip"), ["a dog", "a cat"], templates=())
    images = random_images(clip)
    surgery = LayerCLIPSurgery(clip)
    assert "num_blocks=0 (default for towers pooled by attention)" in repr(surgery)
    own = LayerFeatureCLIPSurgery(clip).attribute_all(images)
    assert torch.equal(surgery.attribute_all(images), own)
    assert repr(LayerCLIPSurgery(clip, num_blocks=3)).startswith("LayerCLIPSurgery(num_blocks=3,")
    report = tower_report(clip, images)
    assert report.default_num_blocks[0] == 0
    assert "default num_blocks     0 (0 for towers pooled by attention" in str(report)


@pytest.mark.slow
def test_a_check_up_names_the_remedy_and_shows_it():
    clip = with_outliers()
    images = clip.preprocess([scene.image for scene in Scenes("test", 6, objects=[2])])
    report = tower_report(clip, images)
    assert report.verdict.startswith("Outliers: ")
    assert 'repair="auto"' in report.verdict
    likely = clip(images).argmax(-1)
    for maps, repair in zip(report.maps, (None, "auto"), strict=True):
        surgery = LayerCLIPSurgery(clip, feature_surgery="empty", repair=repair)
        expected = surgery.attribute(images, target=likely).detach().flatten(1)
        assert torch.allclose(maps, expected, atol=1e-3)  # outliers magnify rounding
    drawn = report.figure().subfigs[1].axes[:2]
    assert [axis.get_title() for axis in drawn] == ["surgery, likeliest text", 'with repair="auto"']


# --- remedies on the model that writes outliers ---------------------------------------------------


@pytest.mark.slow
def test_surgery_collapses_and_remedies_bring_its_maps_back():
    """On the scenes of docs/models.md, whose figures `benchmarks/outliers.py` prints."""
    sound, edited = ZeroShotClassifier.demo(nouns()), with_outliers()
    single = Scenes("test", 200, sound.native_size[0], objects=[1])
    images = sound.preprocess([scene.image for scene in single])
    targets = torch.tensor([sound.index(scene.nouns[0]) for scene in single])
    with torch.no_grad():
        top1 = {
            name: (clip(images).argmax(-1) == targets).double().mean().item()
            for name, clip in {"sound": sound, "edited": edited}.items()
        }
        cosine = (sound.image_features(images) * edited.image_features(images)).sum(-1).mean()
    assert top1["edited"] > top1["sound"] - 0.05
    assert cosine > 0.97
    scenes = Scenes("test", 60, sound.native_size[0], objects=[2, 3])
    registers = edited.with_registers(edited.preprocess([s.image for s in scenes[:24]]))
    remedies = {
        "sound": (sound, None),
        "edited": (edited, None),
        "registers": (registers, None),
        **{repair: (edited, repair) for repair in ("auto", "neighbors", "likeness")},
    }
    references = scene_maps(sound, LayerCLIPSurgery, scenes)
    found, overlap = {}, {}
    for name, (clip, repair) in remedies.items():

        def method(clip: ZeroShotClassifier, repair: str | None = repair) -> DualPathAttribution:
            return LayerCLIPSurgery(clip, repair=repair)

        measures = evaluate_scenes(clip, scenes, {name: method}, progress=False, confidence=False)
        found[name] = mean_correlation(scene_maps(clip, method, scenes), references)
        overlap[name] = measures[name].measures["explanation_iou"]
    assert found["edited"] < 0.6
    assert overlap["edited"] < 0.6 * overlap["sound"] < 0.7 * overlap["registers"]
    assert found["registers"] > 0.95
    assert found["auto"] > 0.9
    assert found["neighbors"] > 0.9
    assert found["likeness"] < 0.85  # the path itself still attends elsewhere
