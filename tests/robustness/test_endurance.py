"""A short form of `benchmarks/endurance.py`: nothing that one attribution leaves behind adds up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery.attr._engine import Explain

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc"),
]

ROOT = Path(__file__).parents[2]
HERE = os.environ | {"PYTHONPATH": str(ROOT)}
#: MiB for a thousand attributions. One image kept of each is 100 and more.
FLAT = 30.0


@pytest.fixture
def endurance(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield __import__("endurance")
    del sys.modules["endurance"]


@pytest.fixture
def clip() -> ZeroShotClassifier:
    return ZeroShotClassifier.demo(["dog"])


def test_nothing_adds_up(endurance: Any, tmp_path: Path) -> None:
    """In a process of its own: what tests before it held would be given back meanwhile."""
    given = ["--attributions", "400", "--changes", "40", "--output", str(tmp_path)]
    subprocess.run([sys.executable, endurance.__file__, *given], cwd=ROOT, env=HERE, check=True)
    samples = json.loads((tmp_path / "endurance.json").read_text())["samples"]
    found = endurance.Found([endurance.Sample(**sample) for sample in samples])
    warm = found.warm
    assert {sample.hooks for sample in found.samples} == {0}
    assert {sample.files for sample in warm} == {warm[0].files}
    assert {sample.threads for sample in warm} == {warm[0].threads}
    assert abs(found.mib_per_thousand) < FLAT


def test_what_adds_up_shows(endurance: Any, clip: ZeroShotClassifier, tmp_path: Path) -> None:
    """A method that keeps a copy of its images, a file, and a hook on the model."""
    kept: list[Any] = []

    def careless(clip: ZeroShotClassifier) -> Explain:
        def explain(images: Tensor, targets: Any = None) -> Tensor:
            kept.append(images.clone())
            kept.append((tmp_path / "file").open("w"))
            kept.append(clip.model.visual.register_forward_hook(lambda *_: None))
            return torch.zeros(1, 1, 1, 1)

        return explain

    found = endurance.endure(clip, {"careless": careless}, attributions=400, changes=4)
    for item in kept:
        getattr(item, "close", getattr(item, "remove", lambda: None))()
    first, last = found.warm[0], found.warm[-1]
    assert found.mib_per_thousand > 3 * FLAT
    assert last.files - first.files == last.hooks - first.hooks == 400 - first.attributions
    assert "hooks on the model" in endurance.report(found)


@pytest.mark.parametrize(("attributions", "changes"), [(19, 1), (20, 0), (20, 21)])
def test_counts_out_of_range(endurance: Any, attributions: int, changes: int) -> None:
    with pytest.raises(ValueError, match=f"got {attributions} and {changes}"):
        endurance.endure(None, {}, attributions, changes)
