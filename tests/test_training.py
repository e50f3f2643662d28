"""Training the embedded model: it learns, and an interruption changes nothing."""

from __future__ import annotations

import json
import math
from operator import itemgetter
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file

from captum_clip_surgery.demo import train


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps on small pictures, with a change of size in the middle."""
    for name, value in {
        "STAGES": (train.Stage(32, 4, 1e-3, 5e-4), train.Stage(48, 3, 4e-4, 0.0, (1, 1, 2))),
        "FINAL_SIZES": (48, 64),
        "BATCH": 8,
        "WARM_UP": 2,
        "EVALUATE_EVERY": 4,
        "SAVE_EVERY": 2,
        "HELD_OUT": 16,
        "ONE_OBJECT": 4,
    }.items():
        monkeypatch.setattr(train, name, value)


class Killed(Exception):
    pass


@pytest.mark.parametrize("killed_at", [1, 5])
def test_resuming_equals_never_having_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    train.main(tmp_path / "whole")

    learn = train.Training.learn

    def dies(self: train.Training, *batch: torch.Tensor) -> float:
        if self.step == killed_at:
            raise Killed
        return learn(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(train.Training, "learn", dies)
        with pytest.raises(Killed):
            train.main(tmp_path / "resumed")
    train.main(tmp_path / "resumed", workers=1)

    whole, resumed = (
        load_file(tmp_path / run / "model" / "open_clip_model.safetensors")
        for run in ("whole", "resumed")
    )
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    steps = [json.loads(line)["step"] for line in (tmp_path / "resumed" / "log.jsonl").open()]
    assert steps == [4, 7, 7]


def test_what_is_exported(tmp_path: Path) -> None:
    train.main(tmp_path)
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'model'}")
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    best = max(records, key=itemgetter("contrastive_accuracy", "step", "size"))
    assert model.visual.image_size == (best["size"], best["size"])
    # Words that no caption holds say nothing; those of every caption do.
    table = model.token_embedding.weight
    unseen, start = open_clip.tokenize("photosynthesis")[0, 1], open_clip.tokenize("")[0, 0]
    assert not table[unseen].any()
    assert table[start].any()


def test_learning_rate_warms_up_and_falls_within_each_stage() -> None:
    rates = [train.learning_rate(step) for step in range(7)]
    first = [5e-4 + 5e-4 * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    assert rates[0] == pytest.approx(first[0] / 2)  # one of two steps of warm-up
    assert rates[1:4] == pytest.approx(first[1:])
    assert rates[4:] == pytest.approx([4e-4, 3e-4, 1e-4])
    with pytest.raises(ValueError, match="past the end of training, 7"):
        train.stage_at(7)
