"""The check-up of maps: what it says of planted methods, and what it costs."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from captum.attr import IntegratedGradients
from torch import Tensor

from captum_clip_surgery import METHODS, ZeroShotClassifier, trust
from captum_clip_surgery._utils.profiling import Passes, count_passes
from captum_clip_surgery.attr import _registry
from captum_clip_surgery.diagnostics import TrustReport, _trust
from captum_clip_surgery.metrics import Specificity
from captum_clip_surgery.metrics._alone import describe_specificity
from tests._helpers.cases import each
from tests._helpers.model_snapshot import snapshot
from tests._helpers.tiny import random_images, tiny_model
from tests.metrics.test_metrics_dependence import PLANTED, blind_to_image

TEXTS = ["a dog", "a cat", "a tree"]
ABSENT = [["a car", "a road"]] * 3


@pytest.fixture(scope="module")
def clip() -> ZeroShotClassifier:
    return ZeroShotClassifier(tiny_model("vit"), ["a thing"], templates=["{}"])


@pytest.fixture(scope="module")
def images(clip: ZeroShotClassifier) -> Tensor:
    return random_images(clip, 3)


def test_planted_methods_are_found_out(clip: ZeroShotClassifier, images: Tensor) -> None:
    expected = {
        # Its noise is another for every image that differs in the least.
        "blind to text": "these maps hardly depend on the text: 1.00, hardly depend on the weights "
        "from block 2 on: 1.00, and change by",
        "blind to image": "hardly depend on the image: 1.00, and hardly depend on the weights",
        "perfect": "and change by",
    }
    for name, phrase in expected.items():
        report = trust(clip, PLANTED[name], images, TEXTS, ABSENT)
        assert phrase in report.verdict, name
        assert ("hardly depend on the text" in report.verdict) == (name == "blind to text")
        assert ("hardly depend on the image" in report.verdict) == (name == "blind to image")


def test_what_is_reported_is_what_was_measured(clip: ZeroShotClassifier, images: Tensor) -> None:
    before = snapshot(clip.model)
    report = trust(clip, "GradECLIP", images, TEXTS, ABSENT)
    assert snapshot(clip.model) == before
    assert report.specificity.absent.shape == (3,)
    assert list(report.randomization) == ["head", "block 2"]
    assert 0 < report.stability < 1
    assert report.convergence_delta is None
    figures = [
        *report.specificity.means().values(),
        *report.randomization.values(),
        report.stability,
    ]
    table, printed = report.to_markdown(), str(report)
    for value in figures:
        assert f" {value:.2f}" in table
        assert f" {value:.2f}" in printed
    assert report.verdict in printed
    assert str(report.passes) in table
    assert str(report.passes) in printed
    assert repr(report) == printed
    assert json.loads(json.dumps(report.to_dict()))["absent"] == report.specificity.absent.tolist()
    same = trust(clip, "GradECLIP", images, TEXTS, ABSENT)
    assert same.rows() == report.rows()


def test_passes_are_those_that_the_docstring_promises(
    clip: ZeroShotClassifier, images: Tensor
) -> None:
    with count_passes() as verified:  # of the copy that is shuffled
        _trust.randomization(clip, {"": blind_to_image}, images[:2], 0, 0, 2)
    one = [["a car", "a road", "a sky", "a sea"]]
    alone = trust(clip, "GradECLIP", images[:1], "a dog", one).passes
    assert alone.forward - verified.forward == alone.backward == 17
    dense = trust(clip, "CLIPSurgery", images[:1], "a dog", one).passes
    assert dense.forward - verified.forward == 10
    assert dense.backward == 0
    saliency = trust(clip, "Saliency", images[:1], "a dog", one).passes
    assert saliency.forward - verified.forward == saliency.backward == 17
    drawn = trust(clip, "CLIPSurgery", images[:1], "a dog").passes
    assert drawn.forward - dense.forward == 1


def test_counts_are_of_images_and_of_the_innermost_block_and_those_around(
    clip: ZeroShotClassifier, images: Tensor
) -> None:
    with count_passes() as outer:
        METHODS["GradECLIP"](clip).attribute_all(images)
        with count_passes() as inner, torch.no_grad():
            clip(images[:2])
    clip(images)
    assert (outer, inner) == (Passes(5, 3), Passes(2, 0))
    assert str(inner) == "2 forward and 0 backward passes"


def test_completeness_is_reported_where_a_method_promises_it(
    clip: ZeroShotClassifier, images: Tensor
) -> None:
    def few_steps(local: ZeroShotClassifier) -> _registry.CaptumMethod:
        return _registry.CaptumMethod(local, IntegratedGradients, n_steps=3)

    report = trust(clip, few_steps, images[:1], "a dog", ABSENT[:1])
    local = clip.with_texts(["a dog"])
    _, delta = IntegratedGradients(local).attribute(
        images[:1], target=0, n_steps=3, return_convergence_delta=True
    )
    assert report.convergence_delta == pytest.approx(abs(float(delta)), rel=1e-3)
    assert "distance from completeness" in report.to_markdown()
    assert not METHODS["Saliency"](clip).has_convergence_delta()


def test_captums_own_attributions_are_offered(clip: ZeroShotClassifier, images: Tensor) -> None:
    method = METHODS["Saliency"](clip)
    attributions = method.attribute(images[:1], target=0)
    assert attributions.shape == images[:1].shape
    torch.testing.assert_close(attributions.sum(1), method.attribute_all(images[:1])[:, 0])


@each(
    ("name", "title"),
    [
        ("CLIPSurgery", "CLIP Surgery with test-time augmentation"),
        ("Saliency", "Saliency with test-time augmentation"),
    ],
)
def test_a_report_of_finer_maps_names_their_method(
    clip: ZeroShotClassifier, images: Tensor, name: str, title: str
) -> None:
    report = trust(clip, _registry.fine(METHODS[name]), images[:1], "a dog", ABSENT[:1])
    assert report.method == title


def test_the_figure_shows_text_absent_text_and_nonsense(
    clip: ZeroShotClassifier, images: Tensor
) -> None:
    figure = trust(clip, METHODS["CLIP"], images, TEXTS, ABSENT).figure()
    assert len(figure.axes) == 3 * 4 + 1
    titles = [axis.get_title() for axis in (*figure.axes[:3], figure.axes[9])]
    assert titles == ["its text", "an absent text", "nonsense", "image"]
    assert [axis.get_xlabel() for axis in figure.axes[3:6]] == ["a cat", "a car", "xqzv kwpf"]
    assert figure.axes[0].get_ylabel() == "CLIP"
    limits = {axis.get_images()[1].get_clim() for axis in figure.axes[:9]}
    assert len(limits) == 1  # the map of an absent text looks as weak as it is


# --- words ---------------------------------------------------------------------------------------


@each(
    ("value", "words"),
    [
        (-0.2, "depends on the text: -0.20"),
        (0.49, "depends on the text: 0.49"),
        (0.5, "depends little on the text: 0.50"),
        (0.7, "hardly depends on the text: 0.70"),
        (1.0, "hardly depends on the text: 1.00"),
    ],
)
def test_limits_of_words(value: float, words: str) -> None:
    assert describe_specificity(value) == words


def test_the_verdict_names_what_fails() -> None:
    def values(absent: float, nonsense: float, image: float) -> Specificity:
        return Specificity(*(torch.tensor([value]) for value in (absent, nonsense, image)))

    good = TrustReport(
        "Mine", ("dog",), values(0.1, 0.2, torch.nan), 0.1, {"head": 0.9, "block 7": 0.2}, None,
        Passes(), 0.0, [], [],
    )  # fmt: skip
    assert good.verdict == "this map depends on the text: 0.10"
    cases = {
        "this map depends on the text: 0.10, and resembles that of nonsense: 0.60": replace(
            good, specificity=values(0.1, 0.6, 0.0)
        ),
        "this map hardly depends on the text: 0.80, and hardly depends on the image: 0.90": replace(
            good, specificity=values(0.8, 0.8, 0.9)
        ),
        "this map depends on the text: 0.10, hardly depends on the weights from block 7 on: 0.95, "
        "and changes by 60% under small noise": replace(
            good, randomization={"head": 1.0, "block 7": 0.95}, stability=0.6
        ),
    }
    for verdict, report in cases.items():
        assert report.verdict == verdict


def test_unknown_methods_and_too_few_texts_are_refused(
    clip: ZeroShotClassifier, images: Tensor
) -> None:
    with pytest.raises(ValueError, match="unknown method 'Surgeon'; known: CLIP, "):
        trust(clip, "Surgeon", images, TEXTS)
    with pytest.raises(ValueError, match="texts has 1 entries for 3 images"):
        trust(clip, "CLIP", images, ["a dog"], ABSENT)
    release = partial(METHODS["CLIPSurgery"], feature_surgery="release")
    with pytest.raises(ValueError, match="contrasts texts, and there is only one"):
        trust(clip, release, images, TEXTS, ABSENT)
    with pytest.raises(ValueError, match="num_stages must be at least 1"):
        _trust.randomization(clip, {}, images, 0, num_stages=0)
