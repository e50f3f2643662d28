"""The command `export`, and its processes: two give what one gives."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from captum_clip_surgery.attr.clip_surgery import LayerCLIPSurgery
from captum_clip_surgery.demo import nouns
from captum_clip_surgery.export import explain_batch, load_maps
from tests._helpers import command_line, runs
from tests._helpers.written_export import (
    IMAGES,
    TEXTS,
    assert_same,
    close,
    export,
    finished,
    scene,
    states,
    surgery,
    write_broken_folder,
    write_folder,
)

OPTIONS = ["--size", "64", "--shard-size", "4", "--batch-size", "2", "--top", "2", "--workers", "0"]
FOR_TEXTS = [option for text in TEXTS for option in ("--text", text)]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int | str:
    """Run `clip-surgery export`, and return its exit code or its error message."""
    return command_line.run(monkeypatch, "export", *arguments)


def torchrun(folder: Path, output: Path, *options: str) -> subprocess.Popen[str]:
    """Two processes of one thread, in a group that may be killed together."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = ["export", folder, "--output", output, *FOR_TEXTS, *OPTIONS, *options]
    return subprocess.Popen(
        [*command, "-m", "captum_clip_surgery", *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_broken_folder(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "out"
    export(folder, output)
    return output


def test_the_command(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    whole: Path,
    tmp_path: Path,
) -> None:
    arguments = [folder, "--output", tmp_path / "out", *FOR_TEXTS, *OPTIONS]
    assert run(monkeypatch, *arguments) == 0
    printed = capsys.readouterr()
    assert f"{IMAGES - 1} images explained" in printed.out
    assert "% of the time waiting" in printed.out
    assert "warning: 1 unreadable" in printed.err
    assert_same(tmp_path / "out", whole)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["environment_info"]["command"].startswith("clip-surgery export")
    assert len(manifest["settings"]["code"]) == 64

    assert "--resume" in str(run(monkeypatch, *arguments))
    assert run(monkeypatch, *arguments, "--resume") == 0
    assert "0 images explained" in capsys.readouterr().out
    ended = run(monkeypatch, *arguments, "--resume", "--text", "duck")
    assert "texts was" in str(ended)


def test_options_of_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_folder(tmp_path / "in", 2)
    (tmp_path / "texts.txt").write_text("dog\n\nduck\n")
    (tmp_path / "distractors.txt").write_text("pizza\n")
    texts = ["--texts", tmp_path / "texts.txt", "--distractors", tmp_path / "distractors.txt"]
    options = ["--format", "zarr", "--num-blocks", 1, "--size", 96, *texts]
    assert run(monkeypatch, tmp_path / "in", "--output", tmp_path / "out", *options) == 0
    maps = load_maps(tmp_path / "out")
    clip = surgery().forward_func.with_texts(["dog", "duck"], ["pizza"])
    method = LayerCLIPSurgery(clip, num_blocks=1)
    pixels = clip.preprocess([tmp_path / "in" / name for name in maps], 96)
    with torch.no_grad():
        wanted = method.attribute_all(pixels).half().numpy()
    assert maps.texts == ("dog", "duck")
    assert all(close(maps[name], row) for name, row in zip(maps, wanted, strict=True))
    # Without texts those of the embedded model.
    assert run(monkeypatch, tmp_path / "in", "--output", tmp_path / "all") == 0
    assert load_maps(tmp_path / "all").texts == nouns()
    (tmp_path / "none").mkdir()
    ended = run(monkeypatch, tmp_path / "none", "--output", tmp_path / "x", "--text", "dog")
    assert "no pictures in the folder" in str(ended)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(folder: Path, whole: Path, tmp_path: Path) -> None:
    process = torchrun(folder, tmp_path / "out")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "images explained by process 0 of 2" in said
    assert_same(tmp_path / "out", whole)
    # Both wrote.
    assert len(list((tmp_path / "out/journal").glob("*.sqlite"))) == 2


def arguments(folder: Path, output: Path, *more: object) -> list[object]:
    return ["export", folder, "--output", output, *FOR_TEXTS, *OPTIONS, *more]


def test_three_processes(folder: Path, whole: Path, tmp_path: Path) -> None:
    run = runs.start(tmp_path, *arguments(folder, tmp_path / "out"), world=3)
    assert run.wait() == [0, 0, 0], run.printed()
    assert_same(tmp_path / "out", whole)


@pytest.mark.slow
def test_a_process_that_hangs_is_named_and_costs_its_shard_alone(
    folder: Path, whole: Path, tmp_path: Path
) -> None:
    given = arguments(folder, tmp_path / "out", "--timeout", 3)
    run = runs.start(tmp_path, *given, prepare=runs.hanging_export)
    run.workers[0].join(60)
    assert run.workers[0].exitcode == 1
    run.kill()
    assert "to finish their shards: process 1 did not come, and finished no" in run.printed()
    assert len(finished(tmp_path / "out")) == 5  # all of the first's
    # torchrun, starting it again, says so by the environment.
    again = runs.start(tmp_path, *arguments(folder, tmp_path / "out"), prepare=runs.restarted)
    assert again.wait() == [0, 0], again.printed()
    assert_same(tmp_path / "out", whole)


def test_errors_of_others_come_with_the_images(folder: Path, tmp_path: Path) -> None:
    given = arguments(folder, tmp_path / "out", "--timeout", 20)
    run = runs.start(tmp_path, *given, prepare=runs.failing_export)
    run.workers[1].join(60)
    run.kill_one(1)
    assert run.workers[1].exitcode == 1
    lines = run.printed().splitlines()
    place = lines.index("error: images hold NaN")
    assert lines[place + 1] == "  images a/s008.png"
    assert lines[place + 2] == "  in process 1 of 2"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_two_processes_killed_at_random_moments(
    folder: Path, whole: Path, tmp_path: Path, seed: int
) -> None:
    choice, output = random.Random(seed), tmp_path / "out"
    before: dict[str, tuple[int, int]] = {}
    for _ in range(3):
        process = torchrun(folder, output, "--resume")
        while len(finished(output)) <= len(before) and process.poll() is None:
            time.sleep(0.02)  # until they begin; what follows is left to chance
        time.sleep(choice.uniform(0, 0.3))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        done = finished(output)
        assert before.keys() <= done
        assert states(output, list(before)) == before
        before = states(output, sorted(done))
    process = torchrun(folder, output, "--resume")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert states(output, list(before)) == before
    assert_same(output, whole)


def test_the_loop_of_the_docs() -> None:
    """A data loader of the user's, the model's preprocessing in its workers, no files."""
    clip = surgery().forward_func
    pictures = [scene(index) for index in range(5)]
    loader = torch.utils.data.DataLoader(
        pictures,  # type: ignore[arg-type]
        batch_size=2,
        num_workers=1,
        collate_fn=clip.preprocessing,
    )
    found = [explain_batch(surgery(), images.to(clip.device)) for images in loader]
    assert [len(batch) for batch in found] == [2, 2, 1]
    with torch.no_grad():
        wanted = surgery().attribute_all(clip.preprocess(pictures)).half().numpy()
    maps = [row for batch in found for row in batch.maps]
    assert all(close(row, right) for row, right in zip(maps, wanted, strict=True))


def test_what_the_docs_show() -> None:
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    *_, loop = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    seen: dict[str, Any] = {}
    exec(loop, seen)
    assert seen["batch"].maps.shape == (2, 3, 14, 14)
    assert seen["batch"].top_indices.shape == (2, 2)
