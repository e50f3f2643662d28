"""The model card's figures come from a command that runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery.attr import METHODS
from captum_clip_surgery.attr._engine import Explain
from captum_clip_surgery.demo import Scenes, nouns
from captum_clip_surgery.evaluation import evaluate_scenes
from tools.embedded_model import report


@pytest.mark.slow
def test_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report.main(scenes=2, size=128, output=tmp_path / "figures.json")
    printed = capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    tables = [value for key, value in figures.items() if "scenes of" in key]
    assert len(tables) == 3
    for table in tables:
        assert list(table) == list(report.surgery_variants())
        for name, measured in table.items():
            assert f"| {name}" in printed
            assert f"{measured['measures']['explanation_iou']:.1f}" in printed
    assert "top-1 among 156 nouns, 2 test scenes" in printed


def test_all_nouns_compete_but_a_scene_s_own_are_not_their_own_distractors() -> None:
    clip = ZeroShotClassifier.demo(["dog"])
    seen = []

    def spy(local: ZeroShotClassifier) -> Explain:
        seen.append((local.texts, local.distractors))
        return METHODS["CLIP"](local)

    scenes = Scenes("test", 2, objects=[2])
    evaluate_scenes(clip, scenes, {"spy": spy}, nouns(), progress=False)
    assert [texts for texts, _ in seen] == [scene.nouns for scene in scenes]
    assert all(sorted(texts + distractors) == sorted(nouns()) for texts, distractors in seen)


def test_integrated_gradients_add_up_to_the_logit() -> None:
    clip = ZeroShotClassifier.demo(["dog", "pizza"])
    image = clip.preprocess(Scenes("test", 1)[0].image, 64)
    maps = METHODS["IntegratedGradients"](clip).attribute_all(image)[0]
    with torch.no_grad():
        change = (clip(image) - clip(torch.zeros_like(image)))[0]
    torch.testing.assert_close(maps.sum((1, 2)), change, rtol=0.1, atol=0.3)
