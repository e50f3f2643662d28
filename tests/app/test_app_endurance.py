"""A short form of `benchmarks/app_endurance.py`: many users at once get their own pictures, and
nothing that they leave behind adds up."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery.app import _tabs as tabs
from captum_clip_surgery.app._explaining import Explainer
from captum_clip_surgery.app._images import example_image
from captum_clip_surgery.app._settings import Settings

pytest.importorskip("gradio")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc"),
]


@pytest.fixture
def endurance(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    yield __import__("app_endurance")
    del sys.modules["app_endurance"], sys.modules["endurance"]


def test_users_at_once_get_their_own_images_and_nothing_adds_up(endurance: Any) -> None:
    ended = endurance.run(seconds=20, acts=1)
    assert ended.wrong == []
    assert ended.done.total() == ended.found.samples[-1].attributions > 0
    warm = ended.found.warm
    assert {sample.files for sample in warm} == {warm[0].files}
    assert {sample.hooks for sample in ended.found.samples} == {0}


def test_what_goes_wrong_shows(endurance: Any) -> None:
    """Another's picture, a text that was not asked for, an answer without maps."""
    clip = ZeroShotClassifier.demo(["star", "zebra"])
    asked = Settings(clip.texts, methods=("CLIPSurgery",))
    html = tabs.complete(Explainer(clip), example_image(0), asked).html
    answer, refused = (
        "data: " + json.dumps({"output": {"data": [{"__type__": "update"}, shown]}})
        for shown in (html, "No text given; write what to look for, one text per line.")
    )
    own, another = (example_image(number).pixels for number in (0, 1))
    endurance.check(answer, clip, own)
    with pytest.raises(AssertionError, match="another map of 'star'"):
        endurance.check(answer, clip, another)
    with pytest.raises(AssertionError, match="no map of 'kiwi'"):
        endurance.check(answer, clip.with_texts(["kiwi"]), own)
    with pytest.raises(AssertionError, match=r"no maps came: .*No text"):
        endurance.check(refused, clip, own)
