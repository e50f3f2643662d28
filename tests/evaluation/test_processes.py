"""Evaluations shared out among real processes: one table however many there are, after any end."""

from __future__ import annotations

import io
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pandas
import pytest

from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery._utils.drivers import Torchrun
from captum_clip_surgery.attr import METHODS
from captum_clip_surgery.cli import _datasets
from captum_clip_surgery.cli._options import Evaluate
from captum_clip_surgery.datasets import Folder
from captum_clip_surgery.demo import Scenes
from captum_clip_surgery.evaluation import Protocol, StatisticsStore, _running, evaluate
from captum_clip_surgery.evaluation._tasks import EVALUATORS
from tests._helpers import command_line, runs
from tests._helpers.waiting import wait_until
from tests._helpers.written_scenes import names_of, scene_folder

IMAGES = 7
PIECES = 4  # of two images each
METHODS_MEASURED = ("CLIP", "CLIPSurgery")


def arguments(root: Path, output: Path, *more: object) -> list[object]:
    given = "evaluate --dataset folder --protocol present --methods CLIP,CLIPSurgery --workers 0"
    return [*given.split(), "--batch-size", 2, "--root", root, "--output", output, *more]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures of scenes."""
    folder = tmp_path_factory.mktemp("scenes") / "data"
    scenes = Scenes("test", IMAGES, size=96, objects=[2])
    scene_folder(scenes, folder, names=names_of(scenes))
    return folder


@pytest.fixture(scope="module")
def table(root: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What one process finds."""
    output = tmp_path_factory.mktemp("alone")
    run = runs.start(output, *arguments(root, output), world=1, prepare=runs.small_pieces)
    assert run.wait() == [0], run.printed()
    assert len(files(output)) == PIECES * len(METHODS_MEASURED)
    return (output / "results.csv").read_bytes()


def files(output: Path) -> dict[Path, int]:
    """When each piece was written."""
    return {path: path.stat().st_mtime_ns for path in (output / "statistics").rglob("*.parquet")}


def check(output: Path, table: bytes) -> None:
    found, expected = (
        pandas.read_csv(io.BytesIO(content))
        for content in ((output / "results.csv").read_bytes(), table)
    )
    pandas.testing.assert_frame_equal(found, expected, rtol=1e-6)
    rows = pandas.concat(map(pandas.read_parquet, files(output)))
    assert not rows.duplicated(["image", "class", "msc"]).any()
    assert rows["image"].nunique() == IMAGES


def test_texts_are_embedded_together_before_the_first_image(root: Path) -> None:
    """One by one, as images bring them, they would differ in their last bits by process."""
    clip, data = ZeroShotClassifier.demo(["dog"]), Folder(root)
    view = Protocol.load("present").view("localization", "folder")
    methods = {"CLIPSurgery": METHODS["CLIPSurgery"]}
    EVALUATORS["localization"].predictor(clip, data, methods, view)
    assert clip.text_encoder is not None
    assert set(data.classes.first[1:]) <= set(clip.text_encoder._cached.features)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_as_many_processes_as_one_likes(
    root: Path, table: bytes, tmp_path: Path, world: int
) -> None:
    run = runs.start(tmp_path, *arguments(root, tmp_path), world=world, prepare=runs.small_pieces)
    assert run.wait() == [0] * world, run.printed()
    check(tmp_path, table)
    assert len(files(tmp_path)) == PIECES * len(METHODS_MEASURED)
    assert run.printed().count("7 images, ") == 1  # the first process alone reports


KILLS = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(12)]


@pytest.mark.parametrize("seed", KILLS)
def test_killed_and_gone_on_with(root: Path, table: bytes, tmp_path: Path, seed: int) -> None:
    """SIGKILL at a random moment to one process or all: the same table, nothing finished redone."""
    draw = random.Random(seed)
    world = draw.choice([2, 3])
    run = runs.start(tmp_path, *arguments(root, tmp_path), world=world, prepare=runs.slowly)
    if seed % 3 == 0:  # anywhere, loading and reporting among it
        time.sleep(draw.uniform(0, 4))
    else:  # after a first finished piece
        wait_until(lambda: bool(files(tmp_path)), "the first piece")
        time.sleep(draw.uniform(0, 0.5))
    if seed % 2:
        run.kill_one(draw.randrange(world))
    else:
        run.kill()
    before = files(tmp_path)
    world = draw.choice([1, 2, 3])
    run = runs.start(tmp_path, *arguments(root, tmp_path), world=world, prepare=runs.small_pieces)
    assert run.wait() == [0] * world, run.printed()
    check(tmp_path, table)
    after = files(tmp_path)
    # A piece of which one method's file was written stays; at most the rest is done again.
    assert all(after[path] == written for path, written in before.items())


@pytest.mark.slow
def test_a_process_that_hangs_is_waited_for_no_longer_than_said(root: Path, tmp_path: Path) -> None:
    run = runs.start(tmp_path, *arguments(root, tmp_path, "--timeout", 4), prepare=runs.hanging)
    run.workers[0].join(90)
    assert run.workers[0].exitcode == 1
    run.kill()
    lines = [line for line in run.printed().splitlines() if line.startswith("error:")]
    first = [line for line in lines if line.startswith("error: process 0 of 2 ")]
    assert len(first) == 1
    assert "waited 4 s for others, which have finished" in first[0]
    # A second process that was late has lost the first one's store.
    assert all(
        line.startswith("error: process 1 of 2 cannot reach the others any more")
        for line in set(lines) - set(first)
    )


@pytest.mark.slow
def test_a_process_that_is_slow_is_waited_for(root: Path, table: bytes, tmp_path: Path) -> None:
    run = runs.start(tmp_path, *arguments(root, tmp_path, "--timeout", 20), prepare=runs.uneven)
    assert run.wait() == [0, 0], run.printed()
    check(tmp_path, table)


@pytest.mark.slow
def test_a_disk_that_fills(root: Path, table: bytes, tmp_path: Path) -> None:
    run = runs.start(tmp_path, *arguments(root, tmp_path), prepare=runs.full_disk)
    run.workers[1].join(60)
    run.kill_one(1)
    assert "no space left to write " in run.printed()
    run = runs.start(tmp_path, *arguments(root, tmp_path), prepare=runs.small_pieces)
    assert run.wait() == [0, 0], run.printed()
    check(tmp_path, table)


@pytest.mark.slow
def test_torchrun_starts_again_by_itself(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts", "1"]
    command += ["--nproc-per-node", "2", "-m", "captum_clip_surgery"]
    terminal = tmp_path / "terminal"
    with terminal.open("wb") as file:
        run = subprocess.Popen(
            [*command, *map(str, arguments(root, tmp_path))],
            stdout=file,
            stderr=file,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    wait_until((tmp_path / "statistics").exists, "the statistics")
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    assert run.wait(180) == 0, terminal.read_text()
    alone = evaluate(
        ZeroShotClassifier.demo(["dog"]),
        Folder(root),
        {name: METHODS[name] for name in METHODS_MEASURED},
        Protocol.load("present"),
        progress=False,
        confidence=False,
    )
    found = pandas.read_csv(tmp_path / "results.csv").set_index(["method", "measure"])["value"]
    for name in METHODS_MEASURED:
        measures = dict(alone.results[name].measures)
        assert found[name].to_dict() == pytest.approx(measures, rel=1e-5)


@pytest.mark.slow
def test_a_task_of_an_array_may_have_nothing_to_do(
    root: Path,
    table: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = arguments(root, tmp_path, "--array", "1/2")  # 7 images are one piece, that of task 0
    assert command_line.run(monkeypatch, *given) == 0
    assert "7 images are left to other tasks of the array" in capsys.readouterr().out
    assert command_line.run(monkeypatch, *given[:-1], "0/2") == 0
    check(tmp_path, table)


# --- Ray ------------------------------------------------------------------------------------------


def work_or_die(
    flag: Path,
    options: Evaluate,
    root: Path,
    protocol: Protocol,
    store: StatisticsStore,
    run: Torchrun,
) -> object:
    """What an actor does, one of which is killed at its third image."""
    runs.small_pieces(run.rank)
    plain, count = _running.measure_image, itertools.count(1)

    def measuring(*arguments: Any) -> Any:
        if next(count) == 3 and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*arguments)

    runner: Any = _running
    runner.measure_image = measuring
    return WORK(options, root, protocol, store, run)


WORK = _datasets._work


@pytest.mark.ray
@pytest.mark.slow
def test_ray_two_actors_one_of_which_is_killed(
    root: Path,
    table: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(_datasets, "_work", partial(work_or_die, tmp_path / "killed"))
    monkeypatch.setattr(_running, "PIECE", 2)
    given = arguments(root, tmp_path, "--engine", "ray", "--actors", 2)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        assert command_line.run(monkeypatch, *given) == 0
    finally:
        ray.shutdown()
    assert (tmp_path / "killed").exists()
    assert len(files(tmp_path)) == PIECES * len(METHODS_MEASURED)
    check(tmp_path, table)
    printed = capsys.readouterr()
    assert printed.out.count("7 images, ") == 1
    assert "4 of 4 pieces, " in printed.err
    before = files(tmp_path)
    assert command_line.run(monkeypatch, *given[:-4]) == 0
    assert files(tmp_path) == before  # the driver and further runs reuse what the actors measured
    assert "pass only one" in str(command_line.run(monkeypatch, *given, "--array", "0/2"))
