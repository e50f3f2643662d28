"""The options of surgery: form, inverse_temperature, and where the second path begins."""

from __future__ import annotations

import pytest
import torch

from captum_clip_surgery import LayerCLIPSurgery, ZeroShotClassifier
from tests._helpers.cases import each
from tests._helpers.tiny import on_models, random_images, tiny_model


@pytest.fixture
def vit() -> ZeroShotClassifier:
    return ZeroShotClassifier(tiny_model("vit"), ["a dog", "a cat"], templates=())


@each("form", ["release", "paper"])
def test_forms_that_contrast_texts_need_several(vit, form):
    clip, images = vit, random_images(vit)
    alone = clip.with_texts(["a dog"])
    with pytest.raises(ValueError, match=f"'{form}' contrasts texts, and there is only one"):
        LayerCLIPSurgery(alone, feature_surgery=form).attribute(images)
    with_rival = clip.with_texts(["a dog"], distractors=["a cat"])
    assert LayerCLIPSurgery(with_rival, feature_surgery=form).attribute(images).any()


def test_an_unknown_form_names_those_there_are(vit):
    known = "'auto', 'release', 'paper', 'empty' or None"
    with pytest.raises(
        ValueError, match=f"feature_surgery must be one of {known}, got 'published'"
    ):
        LayerCLIPSurgery(vit, feature_surgery="published")


@each("inverse_temperature", [float("nan"), float("inf"), "2", None, True])
def test_inverse_temperature_is_a_finite_number(vit, inverse_temperature):
    with pytest.raises(ValueError, match="must be a finite number"):
        LayerCLIPSurgery(vit, inverse_temperature=inverse_temperature)


@on_models
def test_a_layer_names_the_depth(clip):
    images = random_images(clip)
    blocks = clip.tower.blocks
    for num_blocks in range(1, len(blocks) + 1):
        by_depth = LayerCLIPSurgery(clip, num_blocks=num_blocks)
        by_layer = LayerCLIPSurgery(clip, blocks[-num_blocks])
        assert by_depth.layer is by_layer.layer is blocks[-num_blocks]
        assert torch.equal(by_depth.attribute(images, 0), by_layer.attribute(images, 0))


@each(
    ("options", "message"),
    [
        ({"num_blocks": 4}, "num_blocks must be an int from 0 to the tower's 3, got 4"),
        ({"num_blocks": -1}, "tower's 3, got -1"),
        ({"num_blocks": True}, "tower's 3, got True"),
        ({"num_blocks": 1.0}, "tower's 3, got 1.0"),
        ({"layer": torch.nn.Identity()}, "layer must be one of the tower's 3 blocks, got Identity"),
        ({"layer": torch.nn.Identity(), "num_blocks": 1}, "pass one"),
    ],
)
def test_refused_depths(vit, options, message):
    with pytest.raises(ValueError, match=message):
        LayerCLIPSurgery(vit, **options)
