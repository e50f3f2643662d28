"""The options of surgery: form, tau, and where the second path begins."""

from __future__ import annotations

import pytest
import torch
from conftest import random_images, tiny_model

from captum_clip_surgery import LayerClipSurgery, ZeroShotClassifier


@pytest.mark.parametrize("form", ["release", "paper"])
def test_forms_that_contrast_texts_need_several(clip, form):
    images = random_images(clip)
    alone = clip.with_texts(["a dog"])
    with pytest.raises(ValueError, match=f"'{form}' contrasts texts, and there is one"):
        LayerClipSurgery(alone, feature_surgery=form).attribute(images)
    with_rival = clip.with_texts(["a dog"], rivals=["a cat"])
    assert LayerClipSurgery(with_rival, feature_surgery=form).attribute(images).any()


def test_an_unknown_form_names_those_there_are(clip):
    known = "'auto', 'release', 'paper', 'empty' and None"
    with pytest.raises(ValueError, match=f"feature_surgery 'published' is none of {known}"):
        LayerClipSurgery(clip, feature_surgery="published")


@pytest.mark.parametrize("tau", [float("nan"), float("inf"), "2", None, True])
def test_tau_is_a_finite_number(clip, tau):
    with pytest.raises(ValueError, match="must be a finite number"):
        LayerClipSurgery(clip, tau=tau)


def test_a_layer_names_the_depth(clip):
    images = random_images(clip)
    blocks = clip.tower.blocks
    for depth in range(1, len(blocks) + 1):
        by_depth = LayerClipSurgery(clip, depth=depth)
        by_layer = LayerClipSurgery(clip, blocks[-depth])
        assert by_depth.layer is by_layer.layer is blocks[-depth]
        assert torch.equal(by_depth.attribute(images, 0), by_layer.attribute(images, 0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 4}, "depth 4 must be an int from 0 to the tower's 3"),
        ({"depth": -1}, "depth -1 must be"),
        ({"depth": True}, "depth True must be"),
        ({"depth": 1.0}, "depth 1.0 must be"),
        ({"layer": torch.nn.Identity()}, "Identity is none of the tower's 3 blocks"),
        ({"layer": torch.nn.Identity(), "depth": 1}, "pass one"),
    ],
)
def test_refused_depths(options, message):
    clip = ZeroShotClassifier(tiny_model("vit"), ["a dog"], templates=())
    with pytest.raises(ValueError, match=message):
        LayerClipSurgery(clip, **options)
