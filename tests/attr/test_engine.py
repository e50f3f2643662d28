"""What a method overrides takes effect wherever maps are made; images pass the tower once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_clip_surgery import METHODS, LayerCLIPSurgery, ZeroShotClassifier, compare
from captum_clip_surgery.app._explaining import Explainer
from captum_clip_surgery.app._images import example_image
from captum_clip_surgery.app._settings import Settings
from captum_clip_surgery.attr import (
    CLIPSurgery,
    DualPathAttribution,
    attribute_many,
)
from captum_clip_surgery.demo import Scenes
from captum_clip_surgery.evaluation import Protocol, evaluate, evaluate_scenes
from captum_clip_surgery.export import explain_batch
from captum_clip_surgery.metrics import randomization
from tests._helpers.written_scenes import scene_folder

TEXTS = ("star", "zebra", "pizza")


class Shifted(LayerCLIPSurgery):
    """Overrides `scores`."""

    def scores(self, images: Tensor, targets: Tensor) -> Tensor:
        return super().scores(images, targets) + 100


class Negated(LayerCLIPSurgery):
    """Overrides `attribute_all`."""

    def attribute_all(
        self, inputs: Tensor, targets: Sequence[int] | None = None, check_finite: bool = True
    ) -> Tensor:
        return -super().attribute_all(inputs, targets, check_finite)


class Blocky(CLIPSurgery):
    """Overrides the image shape: cells are repeated instead of interpolated."""

    def _upsample(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(maps, size, mode="nearest")


OWN: dict[str, type[DualPathAttribution]] = {
    "Shifted": Shifted,
    "Negated": Negated,
    "Blocky": Blocky,
}


@pytest.fixture(scope="module")
def clip() -> ZeroShotClassifier:
    return ZeroShotClassifier.demo(TEXTS)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, method in OWN.items():
        monkeypatch.setitem(METHODS, name, method)


@pytest.fixture(scope="module")
def images(clip: ZeroShotClassifier) -> Tensor:
    return clip.preprocess([scene.image for scene in Scenes("test", 2, 224, objects=[2])])


def plain_maps(clip: ZeroShotClassifier, images: Tensor) -> dict[str, Tensor]:
    """What each method should give, from the parent's own maps."""
    surgery = LayerCLIPSurgery(clip).attribute_all(images).detach()
    blocky = F.interpolate(surgery, images.shape[-2:], mode="nearest")
    return {"Shifted": surgery + 100, "Negated": -surgery, "Blocky": blocky}


def check(found: Tensor | np.ndarray, expected: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(
        torch.as_tensor(found).float(), expected, rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("name", OWN)
def test_attribute_and_attribute_all(clip: ZeroShotClassifier, images: Tensor, name: str) -> None:
    method, expected = OWN[name](clip), plain_maps(clip, images)[name]
    check(method.attribute_all(images).detach(), expected)
    check(attribute_many({name: method}, images)[name].detach(), expected)
    if name != "Negated":  # it overrides `attribute_all` only
        single = method.attribute(images, target=1).detach().sum(1)
        check(single, expected[:, 1])


def test_comparison(clip: ZeroShotClassifier, images: Tensor) -> None:
    found = compare(clip, images, methods=list(OWN))
    for name, expected in plain_maps(clip, images).items():
        check(found.maps[name], expected)


def test_page(clip: ZeroShotClassifier) -> None:
    picture = example_image(0)
    settings = Settings(texts=TEXTS, example=0, caption="a star")
    *_, found = Explainer(clip).explain(picture, replace(settings, methods=tuple(OWN)))
    expected = plain_maps(clip, clip.preprocess(picture.pixels))
    for name in OWN:
        check(found.maps[name], expected[name][0])


@pytest.mark.parametrize("name", OWN)
def test_export(clip: ZeroShotClassifier, images: Tensor, name: str) -> None:
    expected = plain_maps(clip, images)[name]
    check(explain_batch(OWN[name](clip), images).maps, expected, 2e-3)  # float16


@pytest.mark.slow
def test_evaluation_on_data_and_on_scenes(clip: ZeroShotClassifier, tmp_path: Path) -> None:
    scenes = Scenes("test", 4, 224, objects=[2])
    methods = {name: METHODS[name] for name in ("CLIPSurgery", *OWN)}
    data = scene_folder(scenes, tmp_path)
    on_data = evaluate(clip, data, methods, Protocol.load("present"), progress=False).results
    on_scenes = evaluate_scenes(clip, scenes, methods, progress=False)
    for results in (on_data, on_scenes):
        msc = {name: result.measures["msc"] for name, result in results.items()}
        assert msc["Shifted"] == pytest.approx(msc["CLIPSurgery"], abs=0.05)  # min-max scaled
        assert msc["Negated"] == pytest.approx(-msc["CLIPSurgery"], abs=1e-3)
        assert msc["Blocky"] != pytest.approx(msc["CLIPSurgery"], abs=1e-3)


def test_randomization(clip: ZeroShotClassifier, images: Tensor) -> None:
    methods = {name: METHODS[name] for name in ("CLIPSurgery", "Negated")}
    found = randomization(clip, methods, images[:1], [0])
    # A sign changes no rank correlation, and both run on the same shuffled models.
    first, second = found.correlations.values()
    assert first == pytest.approx(second, abs=1e-6)


def test_subclasses_and_other_texts_share_one_pass(
    clip: ZeroShotClassifier, images: Tensor
) -> None:
    methods = {name: method(clip) for name, method in OWN.items()}
    methods["other texts"] = LayerCLIPSurgery(clip.with_texts(["camera"]))
    batches: list[int] = []
    conv: nn.Module = clip.model.visual.conv1
    handle = conv.register_forward_hook(lambda module, inputs, output: batches.append(len(output)))
    try:
        attribute_many(methods, images, [0])
    finally:
        handle.remove()
    assert batches == [len(images)]


def test_images_changed_by_a_method_pass_the_tower_again(
    clip: ZeroShotClassifier, images: Tensor
) -> None:
    """A method may brighten the images it was given, even in place."""

    class Brighter(LayerCLIPSurgery):
        def attribute_all(
            self, inputs: Tensor, targets: Sequence[int] | None = None, check_finite: bool = True
        ) -> Tensor:
            inputs += 0.5
            return super().attribute_all(inputs, targets, check_finite)

    own = images.clone()
    found = attribute_many({"plain": LayerCLIPSurgery(clip), "brighter": Brighter(clip)}, own)
    check(found["plain"].detach(), LayerCLIPSurgery(clip).attribute_all(images).detach())
    check(found["brighter"].detach(), LayerCLIPSurgery(clip).attribute_all(images + 0.5).detach())


def test_outputs_given_are_used_and_added_to(clip: ZeroShotClassifier, images: Tensor) -> None:
    outputs: dict = {}
    first = attribute_many({"m": LayerCLIPSurgery(clip)}, images, outputs=outputs)["m"]
    assert len(outputs) == 1
    other = clip.with_texts(TEXTS[::-1])
    zeros = torch.zeros_like(images)  # not looked at: the outputs stand for them
    second = attribute_many({"m": LayerCLIPSurgery(other)}, zeros, outputs=outputs)["m"]
    check(second.detach().flip(1), first.detach())
