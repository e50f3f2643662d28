"""Deep copies, pickles and `torch.save` of every public object; what cannot says so."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import captum_clip_surgery as package
from captum_clip_surgery import METHODS, LayerCLIPSurgery, ZeroShotClassifier, compare
from captum_clip_surgery._utils.profiling import ProfileResult
from captum_clip_surgery.evaluation import Protocol, Result
from captum_clip_surgery.export import explain_batch
from captum_clip_surgery.metrics import PairMeasures
from captum_clip_surgery.models.image import PathConfig
from captum_clip_surgery.models.image._surgery import vv_attention
from captum_clip_surgery.tasks import prompts, recognize, segment, word_maps
from tests._helpers.model_snapshot import differences, snapshot
from tests._helpers.tiny import random_images, relative_error, tiny_model

TEXTS = ["a dog", "a cat", "a tree"]


def saved(value: Any, **options: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, **options)


COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "torch.save": lambda value: saved(value, weights_only=False),
}


def make(family: str = "vit") -> ZeroShotClassifier:
    return ZeroShotClassifier(tiny_model(family), TEXTS, distractors=["a car"], templates=["{}."])


def assert_same(actual: Any, expected: Any, place: str = "it") -> None:
    """Of the same type and with the same content, down to the bits of tensors and arrays."""
    assert type(actual) is type(expected), place
    if isinstance(expected, Tensor):
        assert torch.equal(actual, expected), place
        assert (actual.dtype, actual.device) == (expected.dtype, expected.device), place
    elif isinstance(expected, np.ndarray):
        np.testing.assert_array_equal(actual, expected)
    elif is_dataclass(expected):
        for field in fields(expected):
            one, other = (getattr(value, field.name) for value in (actual, expected))
            assert_same(one, other, f"{place}.{field.name}")
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys(), place
        for key in expected:
            assert_same(actual[key], expected[key], f"{place}[{key!r}]")
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected), place
        for index, (one, other) in enumerate(zip(actual, expected, strict=True)):
            assert_same(one, other, f"{place}[{index}]")
    elif hasattr(expected, "__dict__") and not callable(expected):
        assert_same(vars(actual), vars(expected), place)
    else:
        assert actual == expected, place


def _measured() -> PairMeasures:
    measures = PairMeasures()
    generator = np.random.default_rng(0)
    for image in range(3):
        mask = np.zeros((16, 16), bool)
        mask[4:9, 3:8] = True
        measures.update(
            torch.from_numpy(generator.normal(size=(4, 4))), torch.from_numpy(mask), image
        )
    return measures


#: What functions give, of a classifier and images.
VALUES: dict[str, Callable[[ZeroShotClassifier, Tensor], Any]] = {
    "PathConfig": lambda clip, images: PathConfig(2, vv_attention, values_only=True),
    "path of a method": lambda clip, images: LayerCLIPSurgery(clip).path_config,
    "TowerOutput": lambda clip, images: clip.tower.dual_path(images, PathConfig(1, vv_attention)),
    "Segmentation": lambda clip, images: segment(
        clip, [np.zeros((20, 30, 3), np.uint8)], size=32, scores=True
    ),
    "Comparison": lambda clip, images: compare(clip, images, methods=["CLIP", "CLIPSurgery"]),
    "Prompt": lambda clip, images: prompts(clip, images, boxes=True, masks=True),
    "Recognition": lambda clip, images: recognize(clip, [np.zeros((20, 30, 3), np.uint8)]),
    "WordMaps": lambda clip, images: word_maps(clip, images[:1], ["a dog"]),
    "WordScores": lambda clip, images: package.word_scores(clip, images, "a dog"),
    "BatchResult": lambda clip, images: explain_batch(LayerCLIPSurgery(clip), images),
    "TowerReport": lambda clip, images: package.tower_report(clip, images),
    "ModelEntry": lambda clip, images: package.list_models(["ViT-B-32"]),
    "Preprocess": lambda clip, images: clip.preprocessing,
    "Result": lambda clip, images: Result({"msc": 1.0}, {"msc": (0.5, 1.5)}, 0.1, None),
    "ProfileResult": lambda clip, images: ProfileResult(0.5, 100),
    "Protocol": lambda clip, images: Protocol.load("paper"),
    "PairMeasures": lambda clip, images: _measured(),
    "TEMPLATES": lambda clip, images: package.TEMPLATES,
}


@pytest.fixture(scope="module")
def values() -> dict[str, Any]:
    clip = make()
    images = random_images(clip)
    with torch.no_grad():
        return {name: value(clip, images) for name, value in VALUES.items()}


@pytest.mark.parametrize("duplicate", COPIES)
@pytest.mark.parametrize("name", VALUES)
def test_a_result_and_its_copy_are_the_same(
    values: dict[str, Any], name: str, duplicate: str
) -> None:
    twin = COPIES[duplicate](values[name])
    assert_same(twin, values[name])
    assert repr(twin) == repr(values[name]) or "0x" in repr(twin)


CLASSES = [
    value
    for name in package.__all__
    if isinstance(value := getattr(package, name), type)
    and issubclass(value, package.attr._base.PatchAttribution)
]


@pytest.mark.parametrize("duplicate", COPIES)
@pytest.mark.parametrize("method", CLASSES)
def test_a_method_and_its_copy_find_the_same(method: Any, duplicate: str) -> None:
    clip = make()
    images = random_images(clip)
    original = method(clip)
    expected = original.attribute_all(images)
    before = snapshot(clip.model)
    twin = COPIES[duplicate](original)
    assert not differences(before, snapshot(clip.model))
    assert (twin.forward_func.model is clip.model) == (duplicate == "copy")
    assert torch.equal(twin.attribute_all(images), expected)
    if hasattr(original, "layer") and duplicate != "copy":  # a block of its own model
        (place,) = (i for i, b in enumerate(clip.tower.blocks) if b is original.layer)
        assert twin.layer is twin.forward_func.tower.blocks[place]
    assert not differences(before, snapshot(clip.model))


def test_every_class_of_methods_is_tried() -> None:
    assert len(CLASSES) == 38


@pytest.mark.parametrize("family", ["vit", "resnet", "siglip", "eva02"])
def test_a_classifier_saved_whole(family: str, tmp_path: Path) -> None:
    clip = make(family)
    images = random_images(clip)
    before = snapshot(clip.model)
    torch.save(clip, tmp_path / "clip.pt")
    assert not differences(before, snapshot(clip.model))
    twin = torch.load(tmp_path / "clip.pt", weights_only=False)
    assert torch.equal(twin(images), clip(images))
    surgery, other = LayerCLIPSurgery(clip), LayerCLIPSurgery(twin)
    assert torch.equal(other.attribute_all(images), surgery.attribute_all(images))
    fresh = twin.with_texts(["a bird"])
    assert torch.equal(fresh(images), clip.with_texts(["a bird"])(images))
    # torch's own default loads tensors alone, and says what else there was.
    with pytest.raises(pickle.UnpicklingError, match="ZeroShotClassifier"):
        torch.load(tmp_path / "clip.pt")


def test_the_state_of_a_classifier_is_its_models(tmp_path: Path) -> None:
    clip, other = make(), ZeroShotClassifier(tiny_model("vit", 1), TEXTS, templates=["{}."])
    images = random_images(clip)
    own = {f"model.{name}" for name in clip.model.state_dict()}
    assert set(clip.state_dict()) == own
    torch.save(clip.state_dict(), tmp_path / "state.pt")
    assert not torch.equal(other(images), clip(images))
    other.load_state_dict(torch.load(tmp_path / "state.pt"))
    # Of the texts, too: their features are computed anew.
    assert relative_error(other(images), clip(images)) < 1e-6
    assert relative_error(other.text_features(), clip.text_features()[:3]) < 1e-6


def test_a_recipe_of_a_lambda_says_that_it_cannot() -> None:
    recipe = PathConfig(1, lambda heads: heads.v)
    assert copy.deepcopy(recipe) == recipe
    for duplicate in ("pickle", "torch.save"):
        with pytest.raises((pickle.PicklingError, AttributeError), match=r"[Cc]an't.*<lambda>"):
            COPIES[duplicate](recipe)


@pytest.mark.parametrize("name", METHODS)
def test_a_function_of_the_registry(name: str) -> None:
    """Those of the package's classes are pickled; those around Captum's say that they cannot."""
    clip = make("resnet" if name == "GuidedGradCam" else "vit")
    explain = METHODS[name](clip).attribute_all
    images = random_images(clip)
    if not hasattr(explain, "__self__"):
        with pytest.raises((pickle.PicklingError, AttributeError), match="explain"):
            pickle.dumps(explain)
        return
    twin = pickle.loads(pickle.dumps(explain))
    assert torch.equal(twin(images, [1]), explain(images, [1]))
