"""Text and image specificity, on planted methods whose dependence is known."""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Sequence

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from captum_clip_surgery import METHODS, ZeroShotClassifier
from captum_clip_surgery.attr import Method
from captum_clip_surgery.attr._engine import Explain
from captum_clip_surgery.metrics import (
    draw_absent,
    image_specificity,
    modules,
    specificity,
    text_specificity,
)
from captum_clip_surgery.metrics._alone import EVERYDAY, NONSENSE, ask_alone
from captum_clip_surgery.queries import DifferenceQuery, ImageQuery
from tests._helpers.cases import each
from tests._helpers.model_snapshot import snapshot
from tests._helpers.tiny import random_images, tiny_model

TEXTS = ["a dog", "a cat"]
ABSENT = [["a tree", "a car"], ["a car", "a road"]]


@pytest.fixture(scope="module")
def clip() -> ZeroShotClassifier:
    return ZeroShotClassifier(tiny_model("vit"), ["a thing"], templates=["{}"])


@pytest.fixture(scope="module")
def images(clip: ZeroShotClassifier) -> Tensor:
    return random_images(clip, 2)


def noise(seed: object) -> Tensor:
    """A map (1, 1, 24, 24) that its seed determines."""
    generator = torch.Generator().manual_seed(zlib.crc32(repr(seed).encode()))
    return torch.randn(1, 1, 24, 24, generator=generator)


def blind_to_text(clip: ZeroShotClassifier) -> Explain:
    return lambda images, targets=None: noise(float(images.sum()))


def blind_to_image(clip: ZeroShotClassifier) -> Explain:
    return lambda images, targets=None: noise(clip.texts)


def blind_to_both(clip: ZeroShotClassifier) -> Explain:
    return lambda images, targets=None: torch.ones(1, 1, 24, 24)


def perfect(clip: ZeroShotClassifier) -> Explain:
    return lambda images, targets=None: noise((float(images.sum()), clip.texts))


PLANTED: dict[str, Method] = {
    "blind to text": blind_to_text,
    "blind to image": blind_to_image,
    "blind to both": blind_to_both,
    "perfect": perfect,
}
#: Two noises of 576 values correlate by 0.04 on average.
NONE = pytest.approx(0, abs=0.15)


def test_what_a_method_does_not_look_at_shows(clip: ZeroShotClassifier, images: Tensor) -> None:
    found = {
        name: result.means()
        for name, result in specificity(clip, PLANTED, images, TEXTS, ABSENT).items()
    }
    one = pytest.approx(1)
    assert found["blind to text"] == {"absent": one, "nonsense": one, "image": NONE}
    assert found["blind to image"] == {"absent": NONE, "nonsense": NONE, "image": one}
    assert found["blind to both"] == {"absent": one, "nonsense": one, "image": one}
    assert found["perfect"] == {"absent": NONE, "nonsense": NONE, "image": NONE}


def test_one_image_has_nothing_to_compare_it_with(clip: ZeroShotClassifier, images: Tensor) -> None:
    result = specificity(clip, {"": blind_to_image}, images[:1], "a dog", [["a car"]])[""]
    assert math.isnan(result.image)
    assert set(result.means()) == {"absent", "nonsense"}
    result = specificity(clip, {"": perfect}, images, TEXTS, ABSENT, nonsense=())[""]
    assert set(result.means()) == {"absent", "image"}


def test_the_mean_is_over_absent_texts_and_of_each_image(
    clip: ZeroShotClassifier, images: Tensor
) -> None:
    result = specificity(clip, {"": perfect}, images, TEXTS, ABSENT)[""]
    for index, (image, text, absent) in enumerate(zip(images.split(1), TEXTS, ABSENT, strict=True)):
        for others, values in ((absent, result.absent), (NONSENSE, result.nonsense)):
            seeds = [noise((float(image.sum()), (name,))) for name in (text, *others)]
            own, *rest = (one.flatten().numpy() for one in seeds)
            expected = [spearmanr(own, other).statistic for other in rest]
            assert float(values[index]) == pytest.approx(sum(expected) / len(expected), abs=1e-12)


def test_every_text_is_alone_and_asked_once_per_image(
    clip: ZeroShotClassifier, images: Tensor
) -> None:
    asked: list[tuple[float, tuple[str, ...], Sequence[int] | None]] = []

    def watch(local: ZeroShotClassifier) -> Explain:
        def explain(images: Tensor, targets: Sequence[int] | None = None) -> Tensor:
            asked.append((float(images.sum()), local.texts + local.distractors, targets))
            return perfect(local)(images, targets)

        return explain

    before = snapshot(clip.model)
    specificity(clip, {"": watch}, images, TEXTS, ABSENT)
    assert snapshot(clip.model) == before
    assert all(len(texts) == 1 and targets == [0] for _, texts, targets in asked)
    assert len(asked) == len({(image, texts) for image, texts, _ in asked})
    # One's own, two absent, three of nonsense, and the other image's.
    assert len(asked) == 2 * (1 + 2 + 3 + 1)


def test_raw_attention_is_blind_to_the_text(clip: ZeroShotClassifier, images: Tensor) -> None:
    methods = {name: METHODS[name] for name in ("RawAttention", "CLIPSurgery", "LeGrad")}
    found = specificity(clip, methods, images, TEXTS, ABSENT)
    assert found["RawAttention"].means()["absent"] == pytest.approx(1)
    assert all(found[name].means()["absent"] < 0.99 for name in ("CLIPSurgery", "LeGrad"))


def test_dense_methods_share_one_pass_for_all_texts(
    clip: ZeroShotClassifier, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    paths = type(clip.tower).paths
    monkeypatch.setattr(
        type(clip.tower),
        "paths",
        lambda self, *arguments: passes.append(1) or paths(self, *arguments),
    )
    methods = {name: METHODS[name] for name in ("CLIPSurgery", "SCLIP", "ClearCLIP")}
    specificity(clip, methods, images, TEXTS, ABSENT)
    assert len(passes) == len(images)


# --- texts ---------------------------------------------------------------------------------------


def test_absent_texts_are_drawn_from_the_less_likely_half(
    clip: ZeroShotClassifier, images: Tensor
) -> None:
    local = clip.with_texts(EVERYDAY)
    with torch.no_grad():
        logits = local(images)
    drawn = draw_absent(clip, images, [["dog"], ["sign"]], count=4)
    for row, own, values in zip(drawn, ("dog", "sign"), logits, strict=True):
        assert len(set(row)) == 4
        assert own not in row
        assert all(values[EVERYDAY.index(text)] <= values.median() for text in row)
    assert drawn == draw_absent(clip, images, [["dog"], ["sign"]], count=4)
    assert drawn != draw_absent(clip, images, [["dog"], ["sign"]], count=4, seed=1)
    # Each text of this half has its chance.
    often = [draw_absent(clip, images[:1], [["dog"]], count=4, seed=seed)[0] for seed in range(20)]
    by_likelihood = [EVERYDAY[i] for i in logits[0].argsort() if EVERYDAY[i] != "dog"]
    assert set().union(*often) == set(by_likelihood[: len(by_likelihood) // 2])
    with pytest.raises(ValueError, match=r"2 of 3 candidates are not texts of image 0"):
        draw_absent(clip, images, [["dog"], ["sign"]], ["dog", "cat", "car"])


def test_texts_of_the_image_do_not_use_up_the_candidates(
    clip: ZeroShotClassifier, images: Tensor
) -> None:
    names = [f"thing {number}" for number in range(30)]
    drawn = draw_absent(clip, images, [names[:25]] * len(images), names, count=4)
    assert all(set(row) < set(names[25:]) for row in drawn)


def test_a_difference_is_compared_with_differences(
    clip: ZeroShotClassifier, images: Tensor
) -> None:
    picture = ImageQuery(random_images(clip, 1), name="sky")  # a name that is also a candidate
    local = clip.with_queries(
        [DifferenceQuery("dog", "cat"), DifferenceQuery(picture, "bird"), picture]
    )
    methods, absent = {"CLIP": METHODS["CLIP"]}, ["car", "boat", "horse"]
    for name, other in zip(local.texts[:2], ("cat", "bird"), strict=True):
        found = specificity(local, methods, images[:1], name, [absent])["CLIP"]
        compared = local.with_queries([DifferenceQuery(text, other) for text in absent])
        own, *others = (
            METHODS["CLIP"](each_alone).attribute_all(images[:1])[0, 0].detach()
            for each_alone in (
                local.with_texts([name]),
                *(compared.with_texts([text]) for text in compared.texts),
            )
        )
        expected = text_specificity(own, torch.stack(others))
        assert found.absent.item() == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="'cat' is both a text and an absent text of image 0"):
        specificity(local, methods, images[:1], "dog rather than cat", [["car", "cat"]])
    usual = set(EVERYDAY) - {"dog", "cat", "bird", "sky"}
    drawn = draw_absent(local, images[:1], [local.texts], count=8)
    assert set(drawn[0]) <= usual
    named = ["dog rather than cat"]
    assert "sky" not in draw_absent(local, images[:1], [named], count=8)[0]
    assert "bird" in draw_absent(local, images[:1], [named], ["dog", "cat", "bird"], count=1)[0]


def test_absent_texts_that_do_not_fit_are_refused(clip: ZeroShotClassifier, images: Tensor) -> None:
    with pytest.raises(ValueError, match=f"texts has 1 entries for {len(images)} images"):
        draw_absent(clip, images, [["dog"]])
    with pytest.raises(TypeError, match="candidates must be a list, got the string 'dogs'"):
        draw_absent(clip, images, [["dog"]] * len(images), "dogs")
    methods = {"CLIP": METHODS["CLIP"]}
    with pytest.raises(ValueError, match="'dog' is both a text and an absent text of image 0"):
        specificity(clip, methods, images, "dog", [["cat", "dog"]] * len(images))


def test_the_embedded_model_does_not_warn_of_nonsense() -> None:
    clip = ZeroShotClassifier.demo(["dog"])
    images = torch.rand(1, 3, 64, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        specificity(clip, {"": METHODS["CLIP"]}, images, "dog", [["pizza"]])


@each(
    ("changed", "message"),
    [
        ({"texts": ["a dog"]}, "texts has 1 entries for 2 images"),
        ({"absent": [["a car"]]}, "absent has 1 entries for 2 images"),
        ({"absent": [["a car"], []]}, "absent must be a list of texts for each"),
        ({"absent": ["a car", "a tree"]}, "absent must be a list of texts for each"),
        ({"nonsense": "xqzv"}, "nonsense must be a list, got the string 'xqzv'"),
    ],
)
def test_what_does_not_fit_is_refused(
    clip: ZeroShotClassifier, images: Tensor, changed: dict[str, object], message: str
) -> None:
    arguments: dict[str, object] = {"texts": TEXTS, "absent": ABSENT}
    with pytest.raises((TypeError, ValueError), match=message):
        specificity(clip, {"": perfect}, images, **(arguments | changed))  # type: ignore[arg-type]


def test_maps_that_cannot_be_compared_are_refused(clip: ZeroShotClassifier, images: Tensor) -> None:
    flat: Method = lambda local: lambda images, targets=None: torch.ones(1, 24)  # noqa: E731
    with pytest.raises(ValueError, match=r"maps of flat .* are \(1, 24\), expected \(1, 1, h, w\)"):
        ask_alone(clip, {"flat": flat}, images, [["a dog"], ["a cat"]], ABSENT)
    lost: Method = lambda local: lambda images, targets=None: noise(0) * torch.nan  # noqa: E731
    with pytest.raises(ValueError, match="maps of lost"):
        ask_alone(clip, {"lost": lost}, images, [["a dog"], ["a cat"]], ABSENT)
    given = ZeroShotClassifier.from_features(clip.model, clip.text_features())
    with pytest.raises(ValueError, match="from_features"):
        specificity(given, {"": perfect}, images, TEXTS, ABSENT)


# --- plain tensors -------------------------------------------------------------------------------


@each("measure", [text_specificity, image_specificity])
def test_measures_of_tensors_against_scipy(measure) -> None:
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(5, 6, generator=generator).round(decimals=1)
    others = own + torch.randn(3, 5, 6, generator=generator).round(decimals=1)
    expected = [spearmanr(own.flatten(), other.flatten()).statistic for other in others]
    assert measure(own, others) == pytest.approx(sum(expected) / 3, abs=1e-12)
    assert measure(own, torch.ones(1, 5, 6)) == 0
    assert measure(torch.ones(5, 6), torch.zeros(2, 5, 6)) == 1
    with pytest.raises(ValueError, match="no other maps"):
        measure(own, others[:0])
    with pytest.raises(ValueError, match="NaN or infinity"):
        measure(own, others * torch.inf)
    with pytest.raises(ValueError, match="maps have shape"):
        measure(own[0], others)
    with pytest.raises(ValueError, match="same shape"):
        measure(own, others[:, :4])


@each(
    ("metric", "measure"),
    [
        (modules.TextSpecificity, text_specificity),
        (modules.ImageSpecificity, image_specificity),
    ],
)
def test_classes_have_the_functions_mean(metric, measure) -> None:
    maps = torch.cat([noise(i)[0] for i in range(3)])
    others = maps[:, None] + torch.cat([noise(i) for i in range(3, 5)], 1)
    whole = metric()
    for part in (slice(0, 1), slice(1, 3)):
        whole.update(maps[part], others[part])
    expected = sum(measure(one, rest) for one, rest in zip(maps, others, strict=True)) / 3
    assert float(whole.compute()) == pytest.approx(100 * expected, rel=1e-12)
    assert not whole.higher_is_better
