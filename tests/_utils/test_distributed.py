"""Runs shared out among real processes: one table however many there are, and after any end."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery._utils.distributed import Processes, processes, shard
from captum_clip_surgery.attr.registry import choose
from captum_clip_surgery.datasets import Folder
from captum_clip_surgery.demo import Scenes
from captum_clip_surgery.evaluation import Protocol
from captum_clip_surgery.evaluation._evaluators import EVALUATORS
from tests._helpers import runs
from tests._helpers.waiting import wait_until
from tests._helpers.written_scenes import scene_folder

IMAGES, BATCH = 7, 2
PIECES = {f"localization {index}": 1 for index in range(0, IMAGES, BATCH)}


def evaluate(root: Path, output: Path, *more: object) -> list[object]:
    """Arguments of the command line."""
    given = "evaluate --dataset folder --protocol present --methods CLIP,CLIPSurgery --workers 0"
    return [*given.split(), "--batch-size", BATCH, "--root", root, "--output", output, *more]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures of scenes."""
    folder = tmp_path_factory.mktemp("scenes") / "data"
    scene_folder(Scenes("test", IMAGES, size=96, objects=[2]), folder)
    return folder


@pytest.fixture(scope="module")
def table(root: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What one process finds."""
    output = tmp_path_factory.mktemp("alone")
    run = runs.start(output, *evaluate(root, output), world=1)
    assert run.wait() == [0], run.printed()
    assert runs.pieces(output) == PIECES
    return found(output)


def found(output: Path) -> bytes:
    return (output / "results.csv").read_bytes()


def test_shares_are_whole_and_even() -> None:
    for world in range(1, 6):
        for count in range(12):
            shares = [shard(range(count), rank, world) for rank in range(world)]
            assert sorted(item for own in shares for item in own) == list(range(count))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_texts_are_embedded_together_before_the_first_image(root: Path) -> None:
    """One by one, as images bring them, they would differ in their last bits by process."""
    clip, data = ZeroShotClassifier.demo(["dog"]), Folder(root)
    view = Protocol.load("present").view("localization", "folder")
    methods, _ = choose(clip, ["CLIPSurgery"])
    EVALUATORS["localization"].predictor(clip, data, methods, view)
    assert clip.text_encoder is not None
    assert set(data.classes.first[1:]) <= set(clip.text_encoder._cached.features)


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_as_many_processes_as_one_likes(
    root: Path, table: bytes, tmp_path: Path, world: int
) -> None:
    """To the last bit, where images do not divide by processes either; each measured once."""
    run = runs.start(tmp_path, *evaluate(root, tmp_path), world=world)
    assert run.wait() == [0] * world, run.printed()
    assert found(tmp_path) == table
    assert runs.pieces(tmp_path) == PIECES
    assert len(list((tmp_path / "journal").glob("*.sqlite"))) == world
    assert run.printed().count("7 images, ") == 1  # the first process alone reports


def test_more_processes_than_batches(root: Path, tmp_path: Path) -> None:
    run = runs.start(tmp_path, *evaluate(root, tmp_path, "--limit", 1))
    assert run.wait() == [0, 0], run.printed()
    assert runs.pieces(tmp_path) == {"localization 0": 1}
    assert b"CLIPSurgery,explanation_iou" in found(tmp_path)


KILLS = [pytest.param(seed, marks=[pytest.mark.slow] * (seed != 1)) for seed in range(30)]


@pytest.mark.parametrize("seed", KILLS)
def test_killed_and_gone_on_with(root: Path, table: bytes, tmp_path: Path, seed: int) -> None:
    """SIGKILL at a random moment to one process or all: the same table, nothing finished redone."""
    draw = random.Random(seed)
    world = draw.choice([2, 3])
    halfway = seed % 3 == 2
    prepare = runs.very_slowly if halfway else runs.slowly
    run = runs.start(tmp_path, *evaluate(root, tmp_path), world=world, prepare=prepare)
    if seed % 3 == 0:  # anywhere, loading and reporting among it
        time.sleep(draw.uniform(0, 4))
    elif seed % 3 == 1:  # while images are measured
        _wait_for(tmp_path / "journal" / "run.json")
        time.sleep(draw.uniform(0, 1.2))
    else:  # between a first and a last finished piece
        wait_until(lambda: bool(runs.pieces(tmp_path)), "the first piece")
        time.sleep(draw.uniform(0, 0.5))
    if seed % 2:
        run.kill_one(draw.randrange(world))
    else:
        run.kill()
    before = runs.pieces(tmp_path)
    assert before <= Counter(PIECES)
    if halfway:
        assert 0 < len(before) < len(PIECES)
    # Gone on with by another number of processes, which changes nothing either.
    world = draw.choice([1, 2, 3])
    run = runs.start(tmp_path, *evaluate(root, tmp_path, "--resume"), world=world)
    assert run.wait() == [0] * world, run.printed()
    assert found(tmp_path) == table
    # A batch that was finished and measured again would lie in two files.
    assert runs.pieces(tmp_path) == PIECES


def _wait_for(path: Path) -> None:
    wait_until(path.exists, path)


@pytest.mark.slow
def test_a_process_that_hangs_is_named(root: Path, tmp_path: Path) -> None:
    given = evaluate(root, tmp_path, "--timeout", 3)
    run = runs.start(tmp_path, *given, prepare=runs.hanging)
    first, second = run.workers
    first.join(60)
    assert first.exitcode == 1
    assert second.is_alive()
    run.kill()
    (line,) = (line for line in run.printed().splitlines() if line.startswith("error:"))
    assert "process 0 of 2 waited " in line
    assert "s for others to finish localization: process 1 did not come, and finished no" in line
    assert line.endswith("no batch for 3 s")


@pytest.mark.slow
def test_a_process_that_is_slow_is_waited_for(root: Path, table: bytes, tmp_path: Path) -> None:
    """Longer than the timeout in all, but never as long without a batch."""
    given = evaluate(root, tmp_path, "--timeout", 4)
    run = runs.start(tmp_path, *given, prepare=runs.uneven)
    assert run.wait() == [0, 0], run.printed()
    assert found(tmp_path) == table


def test_errors_of_others_come_with_the_image(root: Path, tmp_path: Path) -> None:
    data = shutil.copytree(root, tmp_path / "data")
    path = data / "images" / "00002.png"  # of the second batch, so the second process's
    path.write_bytes(path.read_bytes()[:2000])
    run = runs.start(tmp_path, *evaluate(data, tmp_path / "found", "--timeout", 30))
    run.workers[1].join(60)
    run.kill_one(1)
    assert run.workers[1].exitcode == 1
    lines = run.printed().splitlines()
    (place,) = (place for place, line in enumerate(lines) if "'00002'" in line)
    assert lines[place].startswith("error: image '00002' of ")
    assert lines[place + 1] == "  in process 1 of 2"


@pytest.mark.slow
def test_a_disk_that_fills(root: Path, table: bytes, tmp_path: Path) -> None:
    run = runs.start(tmp_path, *evaluate(root, tmp_path), prepare=runs.full_disk)
    run.workers[1].join(60)
    run.kill_one(1)
    assert "could not be stored" in run.printed()
    assert "free some space and continue with --resume" in run.printed()
    run = runs.start(tmp_path, *evaluate(root, tmp_path, "--resume"))
    assert run.wait() == [0, 0], run.printed()
    assert found(tmp_path) == table
    assert runs.pieces(tmp_path) == PIECES


@pytest.mark.slow
def test_started_again_by_torchrun_it_goes_on_by_itself(
    root: Path, table: bytes, tmp_path: Path
) -> None:
    run = runs.start(tmp_path, *evaluate(root, tmp_path), prepare=runs.slowly)
    _wait_for(tmp_path / "journal" / "run.json")
    run.kill()
    run = runs.start(tmp_path, *evaluate(root, tmp_path), prepare=runs.restarted)
    assert run.wait() == [0, 0], run.printed()
    assert found(tmp_path) == table


def test_processes_end_with_what_started_them() -> None:
    Processes().heartbeat()
    Processes(1, 2, parent=os.getppid()).heartbeat()
    with pytest.raises(ConnectionError, match="torchrun, which started process 1 of 2, has ended"):
        Processes(1, 2, parent=os.getpid()).heartbeat()


# --- torchrun itself ------------------------------------------------------------------------------


def torchrun(given: Sequence[object], terminal: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", *options, "-m", "captum_clip_surgery", *map(str, given)]
    with terminal.open("wb") as file:
        return subprocess.Popen(
            command, stdout=file, stderr=file, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )


@pytest.mark.slow
def test_torchrun(root: Path, table: bytes, tmp_path: Path) -> None:
    terminal = tmp_path / "terminal"
    run = torchrun(evaluate(root, tmp_path), terminal)
    assert run.wait(120) == 0, terminal.read_text()
    assert found(tmp_path) == table
    assert runs.pieces(tmp_path) == PIECES


@pytest.mark.slow
def test_torchrun_starts_again(root: Path, table: bytes, tmp_path: Path) -> None:
    terminal = tmp_path / "terminal"
    run = torchrun(evaluate(root, tmp_path), terminal, "--max-restarts", "1")
    _wait_for(tmp_path / "journal" / "run.json")
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    assert run.wait(120) == 0, terminal.read_text()
    assert found(tmp_path) == table
    assert runs.pieces(tmp_path) == PIECES


@pytest.mark.slow
def test_torchrun_killed_alone(tmp_path: Path) -> None:
    """Its processes end with their batch, long before their work is done."""
    images = 80
    root = tmp_path / "data"
    scene_folder(Scenes("test", images, size=96, objects=[2]), root)
    run = torchrun(evaluate(root, tmp_path), tmp_path / "terminal")
    _wait_for(tmp_path / "journal" / "run.json")
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    run.kill()
    run.wait()
    wait_until(lambda: not any(_works(int(child)) for child in children), "their end")
    assert "which started process" in (tmp_path / "terminal").read_text()
    assert sum(runs.pieces(tmp_path).values()) < images / BATCH
    again = runs.start(tmp_path, *evaluate(root, tmp_path, "--resume"))
    assert again.wait() == [0, 0], again.printed()
    assert set(runs.pieces(tmp_path).values()) == {1}
    assert sum(runs.pieces(tmp_path).values()) == images / BATCH


def _works(process: int) -> bool:
    """Whether it lives, and is no mere entry in the table of processes."""
    try:
        state = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
    return state.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("count", ["1", "2"])
def test_restarts_on_several_machines_are_refused(
    monkeypatch: pytest.MonkeyPatch, count: str
) -> None:
    """Each machine's torchrun counts its own; processes would wait for each other in vain."""
    given = {"RANK": "0", "WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "2"}
    for name, value in {**given, "TORCHELASTIC_RESTART_COUNT": count}.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(ValueError, match="start the run again on all machines, with --resume"),
        processes(),
    ):
        pass
