"""Methods by name: each is described for figures and the page."""

from __future__ import annotations

from captum_clip_surgery.attr import METHODS
from captum_clip_surgery.attr._descriptions import DESCRIPTIONS


def test_every_method_has_a_title_of_its_own_and_a_sentence() -> None:
    assert list(DESCRIPTIONS) == list(METHODS)
    assert len({title for title, _ in DESCRIPTIONS.values()}) == len(DESCRIPTIONS)
    assert all(sentence.endswith(".") for _, sentence in DESCRIPTIONS.values())
