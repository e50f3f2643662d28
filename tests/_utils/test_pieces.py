"""Tests of results in pieces: complete or absent, checked when read, shared by any driver."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import platform
import random
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pyarrow
import pytest

from captum_clip_surgery._utils.drivers import Torchrun, array_numbers, run_on_ray
from captum_clip_surgery._utils.pieces import Pieces, start_run

TABLE = pyarrow.table(
    {"name": [f"image {n}" for n in range(50)], "score": [n / 7 for n in range(50)]}
)


def test_a_piece_is_done_where_its_file_lies(tmp_path: Path) -> None:
    pieces = pickle.loads(pickle.dumps(Pieces(tmp_path / "data", 3)))
    assert pieces.left() == [0, 1, 2]
    pieces.write(1, TABLE)
    assert pieces.left() == [0, 2]
    assert pieces.read(1) == TABLE
    assert pieces.read(1, ["score"]) == TABLE.select(["score"])
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["000001.parquet"]
    with pytest.raises(FileNotFoundError, match=r"000000\.parquet"):
        pieces.read(0)


def test_nothing_remains_of_a_piece_that_fails(tmp_path: Path) -> None:
    pieces = Pieces(tmp_path, 1)
    with pytest.raises(KeyError), pieces.writer(0, TABLE.schema) as write:  # noqa: PT012
        write(TABLE)
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_cut_file_is_not_done_and_is_replaced(tmp_path: Path) -> None:
    pieces = Pieces(tmp_path, 4)
    for number in range(4):
        pieces.write(number, TABLE)
    for number, size in enumerate((0, 3, 400)):  # as an interrupted copy leaves it
        os.truncate(pieces.path(number), size)
    assert pieces.left() == [0, 1, 2]
    pieces.write(2, TABLE)
    assert pieces.left() == [0, 1]
    assert pieces.read(2) == TABLE


def test_damage_is_found_on_reading_and_by_verify(tmp_path: Path) -> None:
    pieces = Pieces(tmp_path, 3)
    for number in range(3):
        pieces.write(number, TABLE)
    content = bytearray(pieces.path(1).read_bytes())
    content[len(content) // 4] ^= 4
    pieces.path(1).write_bytes(content)
    with pytest.raises(ValueError, match=r"000001\.parquet is damaged \(.*run the same command"):
        pieces.read(1)
    other = pieces.read(2).append_column("more", pyarrow.array(range(50)))
    pieces.write(2, other)
    damaged = pieces.verify(TABLE.schema)
    assert list(damaged) == [1, 2]
    assert "other columns" in damaged[2]
    assert pieces.left() == [1, 2]
    assert pieces.read(0) == TABLE


def test_no_flipped_bit_changes_a_value_unnoticed(tmp_path: Path) -> None:
    pieces = Pieces(tmp_path, 1)
    pieces.write(0, TABLE)
    content, found = pieces.path(0).read_bytes(), 0
    flips = random.Random(0).sample(range(8 * len(content)), 300)
    for bit in flips:
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        pieces.path(0).write_bytes(flipped)
        try:
            assert pieces.read(0, TABLE.column_names).equals(TABLE)
        except ValueError:
            found += 1
    assert found > len(flips) / 2


def test_another_runs_folder_is_refused_by_what_differs(tmp_path: Path) -> None:
    start_run(tmp_path, {"model": {"name": "a", "size": [1, 2]}, "top": 5})
    start_run(tmp_path, {"model": {"name": "a", "size": (1, 2)}, "top": 5})
    with pytest.raises(ValueError, match=r"holds another run: model\.name was \"a\", is \"b\"; t"):
        start_run(tmp_path, {"model": {"name": "b", "size": [1, 2]}, "top": 6})
    (tmp_path / "run.json").write_text('{"model"')
    with pytest.raises(ValueError, match="damaged"):
        start_run(tmp_path, {"top": 5})


def _start(folder: Path, top: int) -> bool:
    try:
        start_run(folder, {"top": top})
    except ValueError:
        return False
    return True


@pytest.mark.slow
def test_of_runs_that_start_at_once_one_wins(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(8) as pool:
        for trial in range(10):
            won = pool.starmap(_start, [(tmp_path / str(trial), top) for top in range(8)])
            assert sum(won) == 1
            assert json.loads((tmp_path / str(trial) / "run.json").read_text())["top"] == won.index(
                True
            )


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    pieces = Pieces(tmp_path, 2)
    pieces.write(0, TABLE)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
    try:
        with pytest.raises(OSError, match=r"no space left to write .*000001\.parquet; .*again"):
            pieces.write(1, TABLE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.iterdir()] == ["000000.parquet"]


def test_temporary_files(tmp_path: Path) -> None:
    host = platform.node().replace(" ", "-")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    names = {
        "ended": f".000000~{host}~{ended.pid}~0.part",
        "alive": f".000001~{host}~{os.getppid()}~0.part",
        "elsewhere": ".000002~elsewhere~7~0.part",
        "old": ".000003~elsewhere~7~0.part",
    }
    for name in names.values():
        (tmp_path / name).touch()
    os.utime(tmp_path / names["old"], (0, time.time() - 2 * 86400))
    with pytest.warns(UserWarning, match="another run seems to write"):
        Pieces(tmp_path, 4).clean()
    assert {path.name for path in tmp_path.iterdir()} == {names["alive"], names["elsewhere"]}
    assert Pieces(tmp_path, 4).left() == [0, 1, 2, 3]


def test_a_job_array_takes_every_number_once() -> None:
    left = [0, 1, 2, 5, 7, 8, 11]
    tasks = [array_numbers(left, f"{task}/3") for task in range(3)]
    assert sorted(number for numbers in tasks for number in numbers) == left
    # A task that starts later, when others have finished some, gets no number of theirs.
    assert array_numbers(left[2:], "0/3") == [number for number in tasks[0] if number > 1]
    for task in ("3/3", "1", "a/b", "-1/2", "1/0"):
        with pytest.raises(ValueError, match="must be i/n"):
            array_numbers(left, task)


def test_one_process_needs_no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    run = Torchrun.join(1.0)
    assert run.is_main_process
    assert run.broadcast("plan", lambda: 7) == 7
    assert list(run.numbers("left", [4, 2])) == [4, 2]


WORKER = """
import json, os, sys, time
from captum_clip_surgery._utils.drivers import Torchrun
run = Torchrun.join(60)
plan = run.broadcast("plan", lambda: list(range(100, 112)))
taken = []
for number in run.numbers("left", plan):
    taken.append(number)
    time.sleep(0.2 if run.rank else 0.02)
print(json.dumps([run.rank, taken]), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_of_torchrun_take_numbers_when_they_are_free(
    tmp_path: Path, world_size: int
) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={world_size}", f"--log-dir={tmp_path}/log", "--redirects=1"]
    subprocess.run([*command, str(script)], check=True, timeout=300, capture_output=True)
    outputs = [json.loads(path.read_text()) for path in tmp_path.glob("log/**/stdout.log")]
    taken = dict(outputs)
    assert len(taken) == world_size
    assert sorted(n for numbers in taken.values() for n in numbers) == list(range(100, 112))
    assert len(taken[0]) > max(len(taken[rank]) for rank in range(1, world_size))


def _write(pieces: Pieces, deadly: list[int], bad: int, run: Torchrun) -> None:
    """Work that kills its process once for every number in `deadly`, or raises at `bad`."""
    for number in run.numbers("numbers", pieces.left()):
        flag = pieces.folder / f"killed-{number}"
        if number in deadly and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if number == bad:
            raise ValueError(f"piece {number} cannot be computed")
        pieces.write(number, pyarrow.table({"number": [number]}))


@pytest.mark.ray
@pytest.mark.slow
def test_ray_goes_on_without_killed_actors_and_raises_what_work_raises(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray")
    pieces = Pieces(tmp_path, 12)
    run_on_ray(partial(_write, pieces, [3, 8], -1), actors=2)
    assert pieces.left() == []
    assert len(list(tmp_path.glob("killed-*"))) == 2
    assert [pieces.read(n)["number"].to_pylist() for n in range(12)] == [[n] for n in range(12)]
    assert "numbers: 12 of 12 pieces, " in capsys.readouterr().err

    for number in (1, 5, 6):
        pieces.path(number).unlink()
    with pytest.raises(ValueError, match="piece 5 cannot be computed"):
        run_on_ray(partial(_write, pieces, [], 5))
    assert pieces.left() == [5, 6]
    with pytest.raises(RuntimeError, match="1 Ray actors were lost"):
        run_on_ray(partial(_write, pieces, [5], -1), retries=0)
