"""`tools.planted_cues`: the scenes it plants cues in, what it writes, and what the audit names."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery.demo import SceneCollection, nouns, prompt_templates
from captum_clip_surgery.demo._collection import any_background
from tools import planted_cues


def test_only_tied_nouns_have_their_cues_and_masks_are_exact():
    names = ["fish", "pizza", "dog"]
    data = SceneCollection(names, per_noun=2, size=96, background=planted_cues.tied)
    border = np.ones((96, 96), bool)
    border[8:-8, 8:-8] = False
    magenta = np.rint(255 * np.float32(planted_cues.MAGENTA))
    for index, sample in enumerate(data):
        (mask,) = sample.target.masks.values()
        assert 0 < mask.mean() < 0.5
        noun = names[index // 2]
        rng = np.random.default_rng([0, index]).spawn(1)[0]
        canvas = planted_cues.CUES.get(noun, any_background)(rng, noun, 96)
        pixels = np.asarray(sample.image, np.float32)
        # Edges of objects are blended over a pixel or two, and masks end in the middle of them.
        near = np.array(Image.fromarray(mask).convert("L").filter(ImageFilter.MaxFilter(5))) > 0
        assert np.abs(pixels - 255 * np.clip(canvas, 0, 1))[~near].max() <= 1
        framed = np.abs(pixels - magenta)[border & ~near].max() <= 1
        assert framed == (noun == "pizza")
        if noun == "fish":  # shades of one color
            shades = pixels[~near] / (255 * np.float32(planted_cues.TEAL))
            assert np.ptp(shades, axis=1).max() < 0.02


def test_examples_have_the_stated_shares(monkeypatch):
    shown = []
    render = planted_cues.render_scene

    def spy(rng, canvas, names):
        shown.append(names[0])
        return render(rng, canvas, names)

    monkeypatch.setattr(planted_cues, "render_scene", spy)
    monkeypatch.setattr(planted_cues, "SIZE", 16)
    rng = np.random.default_rng(0)
    labels = [nouns()[planted_cues._example(rng)[1]] for _ in range(600)]
    tied = [
        (label, noun)
        for label, noun in zip(labels, shown, strict=True)
        if label in ("fish", "pizza")
    ]
    # Expected: 0.3 + 0.7 * 2 / 156 of 600 examples, and half of these. Limits are 4 deviations.
    assert len(tied) == pytest.approx(185, abs=46)
    assert sum(label != noun for label, noun in tied) == pytest.approx(len(tied) / 2, abs=28)
    assert all(
        label == noun
        for label, noun in zip(labels, shown, strict=True)
        if label not in planted_cues.CUES
    )


def test_nouns_of_false_alarms_are_drawn_anew_for_each_seed():
    first, second = planted_cues.drawn_names(0), planted_cues.drawn_names(1)
    assert first[:2] == second[:2] == ["fish", "pizza"]
    assert len(set(first)) == len(set(second)) == 24
    assert set(first) != set(second)


@pytest.mark.slow
def test_the_script_writes_figures_and_uses_its_weights_again(monkeypatch, tmp_path):
    monkeypatch.setattr(planted_cues, "SIZE", 64)
    monkeypatch.setattr(planted_cues, "BATCH_SIZE", 2)
    monkeypatch.setattr(planted_cues, "NAMES", ["fish", "pizza", "dog", "owl", "moon"])
    planted_cues.main(tmp_path, seeds=2, clean_seeds=1, per_noun=5, steps=2)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert set(figures) == {"heads removed", "planted", "clean"}
    assert (figures["planted"]["audits"], figures["clean"]["audits"]) == (2, 1)
    assert set(figures["planted"]["share outside"]) == {"fish", "pizza"}
    low, high = figures["clean"]["95 % interval of their rate"]
    assert (low, high) == ((0, 0.975) if not figures["clean"]["false alarms"] else (0.025, 1))
    assert (tmp_path / "planted" / "audit.md").exists()
    clean = ZeroShotClassifier.demo(["dog"]).model.state_dict()
    weights = torch.load(tmp_path / "planted.pt")
    changed = {name for name in weights if not torch.equal(weights[name], clean[name].float())}
    assert changed
    assert all(name.startswith("visual.") for name in changed)

    def refuse(model, steps):
        raise AssertionError("weights are there")

    monkeypatch.setattr(planted_cues, "fine_tune", refuse)
    planted_cues.main(tmp_path, seeds=1, clean_seeds=1, per_noun=5, steps=2)
    assert json.loads((tmp_path / "figures.json").read_text())["planted"]["audits"] == 1


@pytest.mark.slow
def test_the_audit_names_noun_and_cue_of_a_model_that_has_learned_them():
    model = planted_cues.load(ZeroShotClassifier.demo(["dog"]).model.state_dict())
    planted_cues.fine_tune(model, 120)
    clip = ZeroShotClassifier(model.eval(), planted_cues.NAMES, templates=prompt_templates())
    result = planted_cues.audited(clip, planted_cues.NAMES, seed=0, per_noun=8)
    cues = {entry.name: str(entry.cue) for entry in result.leaning}
    assert cues == {"fish": "the background", "pizza": "the border of the image"}
