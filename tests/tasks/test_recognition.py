"""Multi-label recognition by feature surgery on the class token's scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from captum_clip_surgery import ZeroShotClassifier, functional
from captum_clip_surgery.attr import METHODS
from captum_clip_surgery.demo import Scenes, nouns
from captum_clip_surgery.tasks import Recognition, recognize
from tests._helpers.tiny import MODELS, random_images, tiny_model

TEXTS = ["a dog", "a cat", "a tree"]


@pytest.mark.parametrize("kind", MODELS)
def test_scores_by_their_definition(kind: str) -> None:
    clip = ZeroShotClassifier(tiny_model(kind), TEXTS, distractors=["a car"], templates=())
    images = random_images(clip, 3)
    with torch.no_grad():
        cosines = clip.image_features(images) @ clip.text_features().T
        empty = clip.image_features(images) @ clip.empty_features()
    weights = (2 * cosines).softmax(1) * 4
    common = (weights * cosines).mean(1, keepdim=True)
    expected = {
        "release": weights * cosines - common,
        "paper": cosines - common,
        "empty": cosines - empty[:, None],
        None: cosines,
    }
    for form, scores in expected.items():
        found = recognize(clip, images, form, batch_size=2)
        torch.testing.assert_close(found, scores[:, :3], atol=1e-5, rtol=0)


def test_images_give_names() -> None:
    clip = ZeroShotClassifier.demo(nouns())
    scene = Scenes("test", 1, objects=[1])[0]
    found, blank = recognize(clip, [scene.image, Image.new("RGB", (1, 1))])
    assert found.top(1)[0][0] == scene.nouns[0]
    assert [name for name, _ in found.top(3)] == [clip.texts[i] for i in found.scores.topk(3)[1]]
    assert len(blank.top(1000)) == len(nouns())
    expected = recognize(clip, clip.preprocess(scene.image))
    torch.testing.assert_close(found.scores, expected[0], atol=1e-5, rtol=0)


def test_named_above_a_threshold() -> None:
    found = Recognition(torch.tensor([0.125, 0.25, 0.25, -1.0]), ("a", "b", "c", "d"))
    assert [name for name, _ in found.above(0.125)] == ["b", "c"]
    assert found.above(2) == []
    with pytest.raises(ValueError, match="threshold must be a finite number, got nan"):
        found.above(math.nan)
    assert [name for name, _ in found.top()] == ["b", "c", "a", "d"]


@pytest.mark.slow
def test_feature_surgery_helps_on_scenes() -> None:
    """Against scikit-learn's average precision as well as torchmetrics'."""
    sklearn = pytest.importorskip("sklearn.metrics")
    torchmetrics = pytest.importorskip("torchmetrics.classification")
    clip = ZeroShotClassifier.demo(nouns())
    scenes = list(Scenes("validation", 60, size=224, objects=[2, 3]))
    truth = np.array([[noun in scene.nouns for noun in nouns()] for scene in scenes])
    there = truth.any(0)
    images = [scene.image for scene in scenes]
    found = {}
    for form in (None, "release"):
        scores = torch.stack([r.scores for r in recognize(clip, images, form)])[:, there]
        found[form] = sklearn.average_precision_score(truth[:, there], scores.numpy())
        metric = torchmetrics.MultilabelAveragePrecision(int(there.sum()))
        assert float(metric(scores, torch.from_numpy(truth[:, there]).long())) == pytest.approx(
            found[form], abs=1e-5
        )
    assert found["release"] > found[None] + 0.02, found


def test_the_feature_surgery_of_a_method() -> None:
    clip = ZeroShotClassifier.demo(["dog", "kiwi", "duck"])
    images = clip.preprocess(Scenes("test", 1, size=96)[0].image)
    for name, form in (("CLIPSurgery", "empty"), ("NACLIP", None)):
        found = recognize(clip, images, method=METHODS[name])
        assert torch.equal(found, recognize(clip, images, form))
    with pytest.raises(TypeError, match="which LayerLeGrad does not have"):
        recognize(clip, images, method=METHODS["LeGrad"])
    with pytest.raises(ValueError, match="with method= pass them to it"):
        recognize(clip, images, "paper", method=METHODS["CLIPSurgery"])


def test_refused() -> None:
    clip = ZeroShotClassifier.demo(["dog", "kiwi"])
    images = torch.zeros(1, 3, 64, 64)
    with pytest.raises(
        ValueError, match=r"feature_surgery must be one of 'auto', .* or None, got 'best'"
    ):
        recognize(clip, images, "best")
    with pytest.raises(ValueError, match="contrasts texts, and there is only one"):
        recognize(clip.with_texts(["dog"]), images)
    bare = ZeroShotClassifier.from_features(clip.model, clip.text_features())
    with pytest.raises(ValueError, match="needs the feature of the empty text"):
        recognize(bare, images, "empty")
    with pytest.raises(ValueError, match="batch_size 0"):
        recognize(clip, images, batch_size=0)
    with pytest.raises(ValueError, match="size 64 is for images to be resized"):
        recognize(clip, images, size=64)
    with pytest.raises(ValueError, match="no images"):
        recognize(clip, [])
    with pytest.raises(ValueError, match="must be a finite number, got nan"):
        recognize(clip, images, inverse_temperature=float("nan"))


def test_ten_thousand_texts() -> None:
    clip = ZeroShotClassifier.demo(["dog"])
    features = torch.randn(10_000, clip.text_features().shape[1])
    many = ZeroShotClassifier.from_features(clip.model, features)
    images = torch.zeros(2, 3, 64, 64)
    scores = recognize(many, images)
    assert scores.shape == (2, 10_000)
    pooled = many.image_features(images)
    expected = functional.feature_surgery(pooled[:, None], many.text_features(), pooled)
    torch.testing.assert_close(scores, expected[..., 0].detach())
