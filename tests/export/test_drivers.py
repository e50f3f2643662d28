"""Exports by real processes: whoever computes which shard, and whatever ends them, files are equal
to the last bit."""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from captum_clip_surgery._utils.drivers import Torchrun, run_on_ray
from captum_clip_surgery.cli import _export
from captum_clip_surgery.export import Plan
from tests._helpers import runs
from tests._helpers.waiting import wait_until
from tests._helpers.written_export import (
    IMAGES,
    TEXTS,
    assert_same,
    export,
    files,
    forked,
    planned,
    states,
    surgery,
    write_broken_folder,
)

pytestmark = pytest.mark.slow

OPTIONS = ["--size", "64", "--shard-size", "4", "--batch-size", "2", "--top", "2"]
FOR_TEXTS = [option for text in TEXTS for option in ("--text", text)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_broken_folder(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a loop makes."""
    output = tmp_path_factory.mktemp("whole") / "out"
    export(folder, output)
    return output


def arguments(folder: Path, output: Path, *more: object) -> list[object]:
    return ["export", folder, "--output", output, *FOR_TEXTS, *OPTIONS, "--workers", 0, *more]


def torchrun(folder: Path, output: Path, world: int = 2, *options: str) -> subprocess.Popen[str]:
    """Processes of one thread, in a group that may be killed together."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(world), *options, "-m", "captum_clip_surgery"]
    return subprocess.Popen(
        [*command, *map(str, arguments(folder, output))],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def assert_kept(before: dict[str, tuple[int, int]], output: Path, whole: Path) -> None:
    """What has its name is whole, and what was finished was not made again."""
    wanted = files(whole)
    for name, content in files(output).items():
        assert content == wanted[name]
    now = states(output)
    assert {name: now.get(name) for name in before} == before


@pytest.mark.parametrize("world", [2, 3])
def test_torchrun(folder: Path, whole: Path, tmp_path: Path, world: int) -> None:
    process = torchrun(folder, tmp_path / "out", world)
    printed, _ = process.communicate(timeout=200)
    assert process.returncode == 0, printed
    counts = [int(n) for n in re.findall(r"(\d+) images explained by process", printed)]
    assert len(counts) == world
    assert sum(counts) == IMAGES - 1
    assert printed.count(f"{IMAGES - 1} images in 9 files are in") == 1
    assert "warning: 1 images are unreadable" in printed
    assert_same(tmp_path / "out", whole)


def test_torchrun_starts_killed_processes_again(folder: Path, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    process = torchrun(folder, output, 2, "--max-restarts", "1")
    wait_until(lambda: len(states(output)) > 0, "the first file")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    printed, _ = process.communicate(timeout=200)
    assert process.returncode == 0, printed
    assert_same(output, whole)


@pytest.mark.parametrize("seed", range(3))
def test_torchrun_killed_with_all_processes(
    folder: Path, whole: Path, tmp_path: Path, seed: int
) -> None:
    choice, output = random.Random(seed), tmp_path / "out"
    before: dict[str, tuple[int, int]] = {}
    for _ in range(2):
        process = torchrun(folder, output)
        wait_until(
            partial(_more_than, output, len(before), process), "another file, or the end", 200
        )
        time.sleep(choice.uniform(0, 0.3))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert_kept(before, output, whole)
        before = states(output)
    process = torchrun(folder, output, choice.choice([1, 3]))
    printed, _ = process.communicate(timeout=200)
    assert process.returncode == 0, printed
    assert_kept(before, output, whole)
    assert_same(output, whole)


def _more_than(output: Path, count: int, process: subprocess.Popen[str]) -> bool:
    return len(states(output)) > count or process.poll() is not None


@pytest.mark.parametrize("seed", range(6))
def test_a_loop_killed_at_random_moments(
    folder: Path, whole: Path, tmp_path: Path, seed: int
) -> None:
    """Again and again, with and without readers; two of them at once for every fourth seed."""
    choice, output = random.Random(seed), tmp_path / "out"
    before: dict[str, tuple[int, int]] = {}

    def go_on(workers: int) -> None:
        export(folder, output, workers)
        os._exit(0)

    for _ in range(4):
        calls = [partial(go_on, choice.choice([0, 2])) for _ in range(2 if seed % 4 == 3 else 1)]
        processes = [forked(call) for call in calls]
        processes[0].join(choice.uniform(0.0, 0.6))
        for process in processes:
            process.kill()
            process.join()
            assert process.exitcode in (0, -signal.SIGKILL)
        if output.exists():
            if seed % 4 != 3:  # two at once may both write a file, which comes out the same
                assert_kept(before, output, whole)
            before = states(output)
    made = planned(folder, output)
    made.pieces.clean()
    export(folder, output)
    assert_kept(before, output, whole)
    assert_same(output, whole)


def test_a_straggler_takes_fewer_shards(folder: Path, whole: Path, tmp_path: Path) -> None:
    run = runs.start(tmp_path, *arguments(folder, tmp_path / "out"), prepare=runs.slow_export)
    assert run.wait() == [0, 0], run.printed()
    counts = {
        rank: int(count)
        for count, rank in re.findall(r"(\d+) images explained by process (\d)", run.printed())
    }
    assert counts["0"] > counts["1"] > 0
    assert_same(tmp_path / "out", whole)


def test_a_process_that_hangs_is_reported_and_costs_its_shard_alone(
    folder: Path, whole: Path, tmp_path: Path
) -> None:
    given = arguments(folder, tmp_path / "out", "--timeout", 5)
    run = runs.start(tmp_path, *given, prepare=runs.hanging_export)
    run.workers[0].join(100)
    assert run.workers[0].exitcode == 1
    run.kill()
    assert "waited 5 s for others, which have finished 1 of 2 parts of export" in run.printed()
    assert len(states(tmp_path / "out")) == 8
    again = runs.start(tmp_path, *arguments(folder, tmp_path / "out"), prepare=runs.restarted)
    assert again.wait() == [0, 0], again.printed()
    assert_same(tmp_path / "out", whole)


def test_errors_of_others_come_with_the_images(folder: Path, tmp_path: Path) -> None:
    given = arguments(folder, tmp_path / "out", "--timeout", 20)
    run = runs.start(tmp_path, *given, prepare=runs.failing_export)
    run.workers[1].join(100)
    run.kill_one(1)
    assert run.workers[1].exitcode == 1
    lines = run.printed().splitlines()
    place = lines.index("error: images hold NaN")
    assert re.fullmatch(r"  images \w/s\d+\.png(, \w/s\d+\.png)?", lines[place + 1])
    assert lines[place + 2] == "  in process 1 of 2"


def test_a_full_disk(folder: Path, whole: Path, tmp_path: Path) -> None:
    """The system itself refuses at the size of most files."""
    output = tmp_path / "out"
    sizes = sorted(len(content) for content in files(whole).values())

    def limited() -> None:
        made = planned(folder, output)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (sizes[1] - 1, sizes[1] - 1))
        try:
            made.explain(surgery(), made.left(), workers=0)
        except OSError as error:
            (tmp_path / "message").touch()
            os._exit(7 if re.search(r"no space left to write .*\d\.parquet; ", str(error)) else 8)

    process = forked(limited)
    process.join()
    assert process.exitcode == 7
    before = states(output)
    assert len(before) < 9
    assert not list((output / "data").glob(".*"))
    export(folder, output)
    assert_kept(before, output, whole)
    assert_same(output, whole)


def test_a_pool_of_ones_own(folder: Path, whole: Path, tmp_path: Path) -> None:
    """As Spark's `foreachPartition` or Dask's `map` would call it."""
    made = planned(folder, tmp_path / "out")
    parts = [made.left()[start::3] for start in range(3)]
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        assert sum(pool.map(explain_part, [made] * 3, parts)) == IMAGES - 1
    assert made.finish()
    assert_same(tmp_path / "out", whole)


def explain_part(made: Plan, numbers: Sequence[int]) -> int:
    """What a user writes for a cluster of another kind."""
    return made.explain(surgery(), numbers, workers=0).images


# --- Ray ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A cluster of two cores on this machine."""
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


def explain_or_die(made: Plan, killed: Path, run: Torchrun) -> int:
    """What an actor does, one of which is killed."""
    numbers = run.numbers("export", made.left())
    return made.explain(surgery(), _dying(numbers, killed), workers=0).images


def _dying(numbers: Iterator[int], killed: Path) -> Iterator[int]:
    """The actor is killed with the third number in its hands, unless another one was."""
    for count, number in enumerate(numbers):
        if count == 2 and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield number


@pytest.mark.ray
def test_ray_two_actors_one_of_which_is_killed(
    ray: Any, folder: Path, whole: Path, tmp_path: Path
) -> None:
    made = planned(folder, tmp_path / "out")
    done = run_on_ray(partial(explain_or_die, made, tmp_path / "killed"), actors=2)
    assert (tmp_path / "killed").exists()
    assert sum(done) <= IMAGES - 1  # those of the killed one do not return
    assert made.finish()
    made.pieces.clean()
    assert_same(tmp_path / "out", whole)


@pytest.mark.ray
def test_ray_driver_killed(folder: Path, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = [sys.executable, "-m", "captum_clip_surgery", *map(str, arguments(folder, output))]
    on_ray = [*command, "--engine", "ray", "--actors", "2"]
    process = subprocess.Popen(on_ray, start_new_session=True)
    wait_until(lambda: len(states(output)) > 1 or process.poll() is not None, "two files", 200)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = states(output)
    assert len(before) > 1
    time.sleep(2)  # actors end with their driver
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert f"{IMAGES - 1} images explained" not in printed
    assert_kept(before, output, whole)
    assert_same(output, whole)


@pytest.mark.ray
def test_ray_by_the_command(
    ray: Any, folder: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from captum_clip_surgery.cli import _options
    from captum_clip_surgery.cli._groups import ModelOptions, QueryOptions, TextOptions

    _export.export(
        _options.Export(
            export=_options.ExportOptions(
                source=str(folder),
                output=tmp_path / "out",
                size=64,
                shard_size=4,
                batch_size=2,
                top=2,
            ),
            texts=TextOptions(text=TEXTS),
            queries=QueryOptions(),
            clip=ModelOptions(),
            engine="ray",
            ray=_options.RayOptions(actors=2),
            workers=0,
        )
    )
    assert f"{IMAGES - 1} images explained by Ray's actors" in capsys.readouterr().out
    assert_same(tmp_path / "out", whole)
