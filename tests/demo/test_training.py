"""Training the embedded model: it learns, and an interruption changes nothing."""

from __future__ import annotations

import dataclasses
import json
import math
from operator import itemgetter
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import typer
from safetensors.torch import load_file

from captum_clip_surgery.demo._scenes import BACKGROUNDS
from tools.embedded_model import plans, report, train
from tools.embedded_model.backgrounds import MORE_BACKGROUNDS


def shorter(plan: plans.Plan) -> plans.Plan:
    stage = plans.Stage(128, 5, 1e-3, 0.0)
    if plan.start == "all":
        stage = plans.Stage(224, 5, 1e-3, 0.0, other_sizes=(256,), dropped=0.5)
    return dataclasses.replace(plan, stages=(stage,))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps on small pictures, with a change of size in the middle."""
    stages = (plans.Stage(32, 4, 1e-3, 5e-4), plans.Stage(48, 3, 4e-4, 0.0, (1, 1, 2)))
    for name, value in {
        "PLANS": {"embedded": plans.Plan(plans.MODEL, stages, final_sizes=(48, 64))}
        | {name: shorter(plan) for name, plan in train.PLANS.items() if name != "embedded"},
        "BATCH_SIZE": 8,
        "EVALUATE_EVERY": 4,
        "SAVE_EVERY": 2,
        "NUM_VALIDATION": 16,
        "NUM_VALIDATION_TOP1": 4,
    }.items():
        monkeypatch.setattr(train, name, value)
    monkeypatch.setattr(plans, "WARM_UP_STEPS", 2)


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("plan", "killed_at"),
    [
        pytest.param("embedded", 1, marks=pytest.mark.slow),
        pytest.param("embedded", 5, marks=pytest.mark.slow),
        pytest.param("further", 1, marks=pytest.mark.slow),
        pytest.param("further", 3, marks=pytest.mark.slow),
        pytest.param("map", 3, marks=pytest.mark.slow),
        pytest.param("average", 3, marks=pytest.mark.slow),
    ],
)
def test_resuming_equals_never_having_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: str, killed_at: int
) -> None:
    train.main(tmp_path / "whole", plan)

    learn = train.Training.learn

    def dies(self: train.Training, *batch: torch.Tensor) -> float:
        if self.step == killed_at:
            raise Killed
        return learn(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(train.Training, "learn", dies)
        with pytest.raises(Killed):
            train.main(tmp_path / "resumed", plan)
    train.main(tmp_path / "resumed", plan, workers=1)

    whole, resumed = (
        load_file(tmp_path / run / "model" / "open_clip_model.safetensors")
        for run in ("whole", "resumed")
    )
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    steps = [json.loads(line)["step"] for line in (tmp_path / "resumed" / "log.jsonl").open()]
    assert steps == {"embedded": [4, 7, 7], "further": [0, 4, 5]}.get(plan, [4, 5])


@pytest.mark.slow
def test_positions_of_other_sizes_are_those_that_open_clip_resizes(tmp_path: Path) -> None:
    training = train.Training(train.PLANS["further"], tmp_path)
    images, tokens = train.Batches(training.plan, 1)[0]
    assert images.shape == (6, 3, 256, 256)  # as many pixels as 8 images of 224
    resized = train.build(plans.MODEL, 256, training.model.state_dict()).eval()
    training.model.eval()
    for found, expected in zip(
        training.encode(images, tokens), resized(images, tokens), strict=True
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("size", [192, 224])
def test_training_further_starts_with_the_model_of_a_folder(tmp_path: Path, size: int) -> None:
    torch.manual_seed(1)
    state = train.build(plans.MODEL, size).state_dict()
    seen = torch.arange(len(state["token_embedding.weight"])) < 100
    train.export(plans.MODEL, state, seen, size, tmp_path / "start")
    training = train.Training(train.PLANS["further"], tmp_path / "run", tmp_path / "start")
    written = load_file(tmp_path / "start" / "open_clip_model.safetensors")
    single = {name: value.float() for name, value in written.items()}
    expected = train.build(plans.MODEL, 224, single).state_dict()
    for name, value in training.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], msg=name)
    assert torch.equal(training.seen, seen)


def test_a_plan_of_random_weights_has_no_start(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match="plan embedded starts with random weights"):
        train.main(tmp_path / "run", "embedded", tmp_path)


def test_bfloat16_is_close_to_float32_and_keeps_weights_in_float32(tmp_path: Path) -> None:
    assert train.PLANS["further"].bfloat16
    plan = dataclasses.replace(train.PLANS["further"], start="random")  # whose loss is large
    half, single = (
        train.Training(dataclasses.replace(plan, bfloat16=bfloat16), tmp_path / str(bfloat16))
        for bfloat16 in (True, False)
    )
    batch = train.Batches(plan, 0)[0]
    losses = half.learn(*batch), single.learn(*batch)
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert {value.dtype for value in half.model.state_dict().values()} == {torch.float32}


def test_sizes_take_turns_with_scenes_that_follow_each_other() -> None:
    stage = plans.Stage(224, 9, 1e-3, 0.0, other_sizes=(320, 224, 448))
    batches = [stage.batch(step, 128) for step in range(9)]
    assert [size for size, _, _ in batches] == [224, 320, 224, 448, 224, 320, 224, 448, 224]
    before = 0
    for size, count, first in batches:
        assert (first, count) == (before, {224: 128, 320: 63, 448: 32}[size])
        before += count


def test_more_backgrounds_fill_any_square() -> None:
    assert set(MORE_BACKGROUNDS) > set(BACKGROUNDS["train"])
    for background in MORE_BACKGROUNDS:
        for seed in range(10):
            canvas = background(np.random.default_rng(seed), 47)
            assert canvas.shape == (47, 47, 3), background
            assert 0 <= canvas.min() <= canvas.max() <= 1, background


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(("plan", "pooling"), [("map", "attention"), ("average", "average")])
def test_variants_start_with_the_known_text_and_are_measured_like_the_embedded_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: str, pooling: str
) -> None:
    start = train.Training(train.PLANS[plan], tmp_path / "start").model
    known = load_file(train.MODEL_FOLDER / "open_clip_model.safetensors")
    own = start.state_dict()
    text = [name for name in own if not name.startswith(("visual.", "logit_"))]
    assert len(text) > 20
    assert all(torch.equal(own[name], known[name].float()) for name in text)

    train.main(tmp_path / "run", plan)
    clip = report.load_trained(tmp_path / "run" / "model")
    assert clip.tower.pooling == pooling
    assert clip.texts == train.nouns()
    # The sigmoid loss has a bias to learn, the contrastive one has none.
    assert (clip.model.logit_bias is not None) == (plan == "map")
    found = tmp_path / "figures.json"
    report.main(scenes=3, size=64, model=tmp_path / "run" / "model", output=found)
    assert "top-1, test" in json.loads(found.read_text())


def test_an_unknown_plan(tmp_path: Path) -> None:
    with pytest.raises(
        typer.BadParameter, match="must be one of embedded, further, map, average, got 'max'"
    ):
        train.main(tmp_path, "max")


def test_learning_rate_warms_up_and_falls_within_each_stage() -> None:
    plan = train.PLANS["embedded"]
    rates = [plan.learning_rate(step) for step in range(7)]
    first = [5e-4 + 5e-4 * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    assert rates[0] == pytest.approx(first[0] / 2)  # one of two steps of warm-up
    assert rates[1:4] == pytest.approx(first[1:])
    assert rates[4:] == pytest.approx([4e-4, 3e-4, 1e-4])
    with pytest.raises(ValueError, match="past the end of training, 7"):
        plan.stage_at(7)
