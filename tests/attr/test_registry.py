"""Methods by name: each is described for figures and the page."""

from __future__ import annotations

from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery.attr import METHODS
from captum_clip_surgery.attr._descriptions import DESCRIPTIONS
from captum_clip_surgery.attr._registry import choose
from tests._helpers.tiny import tiny_model


def test_every_method_has_a_title_of_its_own_and_a_sentence() -> None:
    assert list(DESCRIPTIONS) == list(METHODS)
    assert len({title for title, _ in DESCRIPTIONS.values()}) == len(DESCRIPTIONS)
    assert all(sentence.endswith(".") for _, sentence in DESCRIPTIONS.values())


def test_methods_left_out_have_the_reason_that_they_give_themselves() -> None:
    clip = ZeroShotClassifier(tiny_model("resnet"), ["a dog"], templates=["{}"])
    chosen, left_out = choose(clip, ["all"])
    assert {*chosen, *left_out} == {*METHODS}
    assert left_out["SCCLIP"].startswith("SC-CLIP is not defined on ")
    assert left_out["ResCLIP"].startswith("ResCLIP is not defined on ")
