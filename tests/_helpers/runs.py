"""Runs of the command line by real processes, forked from one that has the imports behind it.

`torchrun` starts an interpreter for each process, which takes seconds; only the way in differs.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "captum_clip_surgery.cli._evaluate",
        "captum_clip_surgery.cli._export",
        "torchmetrics",
        "torchvision",
    ]
)

#: What a process does before it begins, given its rank.
Prepare = Callable[[int], None]


@dataclass
class Run:
    """Processes of one run by rank, and the file that stands for their terminal."""

    workers: Sequence[BaseProcess]
    terminal: Path

    def wait(self, seconds: float = 120) -> list[int | None]:
        """Exit codes by rank, below 0 for signals; what does not end in time is killed."""
        until = time.monotonic() + seconds
        for worker in self.workers:
            worker.join(max(0, until - time.monotonic()))
        if any(worker.is_alive() for worker in self.workers):
            self.kill()
            raise AssertionError(f"some do not end: {self.printed()}")
        return [worker.exitcode for worker in self.workers]

    def kill(self) -> None:
        """SIGKILL to all."""
        for worker in self.workers:
            worker.kill()
        for worker in self.workers:
            worker.join()

    def kill_one(self, rank: int) -> None:
        """SIGKILL to one of them, and SIGTERM to the others, as torchrun does once it sees it."""
        self.workers[rank].kill()
        self.workers[rank].join()
        for worker in self.workers:
            worker.terminate()
            worker.join()

    def printed(self) -> str:
        return self.terminal.read_text()


def start(folder: Path, *arguments: object, world: int = 2, prepare: Prepare | None = None) -> Run:
    """`clip-surgery` with these arguments, its terminal a new file in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    terminal = folder / f"terminal-{len(list(folder.glob('terminal-*')))}.txt"
    terminal.touch()
    port = _free_port()
    given = [str(argument) for argument in arguments]
    workers = [
        FORKS.Process(target=_work, args=(rank, world, port, given, terminal, prepare))
        for rank in range(world)
    ]
    for worker in workers:
        worker.start()
    return Run(workers, terminal)


def _free_port() -> int:
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _work(
    rank: int, world: int, port: int, given: list[str], terminal: Path, prepare: Prepare | None
) -> None:
    with terminal.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    if prepare is not None:
        prepare(rank)
    from captum_clip_surgery import cli

    sys.argv = ["clip-surgery", *given]
    cli.main()


# --- what a process does before it begins ---------------------------------------------------------


def small_pieces(rank: int) -> None:
    """Pieces of two images."""
    from captum_clip_surgery.evaluation import _running

    runner: Any = _running
    runner.PIECE = 2


def slowly(rank: int) -> None:
    """A while for each image, so that there is a time to be killed in."""
    small_pieces(rank)
    _before_measuring(lambda: time.sleep(0.3))


def hanging(rank: int) -> None:
    """The second process never ends its first image; the first one leaves it some."""
    small_pieces(rank)
    _before_measuring(lambda: time.sleep(3600 if rank == 1 else 1))


def uneven(rank: int) -> None:
    """The second process takes its time, and gets on."""
    small_pieces(rank)  # the same in both, or they would share different pieces
    if rank == 1:
        _before_measuring(lambda: time.sleep(1.5))


def hanging_export(rank: int) -> None:
    """The second process never ends its first batch."""
    if rank == 1:
        _before_explaining(lambda: time.sleep(3600))


def slow_export(rank: int) -> None:
    """The second process takes its time for each batch."""
    if rank == 1:
        _before_explaining(lambda: time.sleep(0.4))


def failing_export(rank: int) -> None:
    """The second process meets an error of the model's."""
    if rank == 1:
        _before_explaining(_fail)


def _fail() -> None:
    raise ValueError("images hold NaN")


def full_disk(rank: int) -> None:
    """No file of the second process grows past a few kilobytes."""
    if rank == 0:
        slowly(rank)
    else:
        import resource

        small_pieces(rank)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))


def restarted(rank: int) -> None:
    """As torchrun says it after a failure."""
    os.environ["TORCHELASTIC_RESTART_COUNT"] = "1"


def _before_measuring(call: Callable[[], None]) -> None:
    from captum_clip_surgery.evaluation import _running

    runner: Any = _running
    plain = runner.measure_image

    def measuring(*arguments: Any) -> Any:
        call()
        return plain(*arguments)

    runner.measure_image = measuring


def _before_explaining(call: Callable[[], None]) -> None:
    from captum_clip_surgery import export

    runner: Any = export._plan
    plain = runner.explain_batch

    def explaining(*arguments: Any) -> Any:
        call()
        return plain(*arguments)

    runner.explain_batch = explaining
