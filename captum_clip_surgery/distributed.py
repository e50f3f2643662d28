"""The processes of one run, as `torchrun` starts them; one process without it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

#: Seconds that processes wait for each other at most where nobody says.
TIMEOUT = 1800.0

Item = TypeVar("Item")


def share(items: Sequence[Item], rank: int, world: int) -> Sequence[Item]:
    """What of `items` falls to one process: each to one of them, shares that differ by one at most.

    Example::

        >>> [share("abcdefg", rank, 3) for rank in range(3)]
        ['adg', 'be', 'cf']
    """
    return items[rank::world]


@dataclass(frozen=True)
class Processes:
    """This process, `rank`, among `world`; `local` is its number on this machine.

    `parent` is the process that started it where its end is the end of the run, and `restarted`
    says whether torchrun has started the run again after a failure.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    timeout: float = TIMEOUT
    parent: int | None = None
    restarted: bool = False

    def __str__(self) -> str:
        return f"process {self.rank} of {self.world}"

    @property
    def first(self) -> bool:
        """Whether this is the one that reports and writes what there is once."""
        return self.rank == 0

    @property
    def device(self) -> str:
        """Where this process computes: a GPU of its own where there are any.

        Raises:
            ValueError: more processes on this machine than it has GPUs.
        """
        if not torch.cuda.is_available():
            return "cpu"
        if self.local >= torch.cuda.device_count():
            raise ValueError(
                f"{self} is number {self.local + 1} on its machine, which has "
                f"{torch.cuda.device_count()} GPUs; start as many processes (--nproc-per-node)"
            )
        return f"cuda:{self.local}"

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """What of `items` falls to this process; all processes need to have the same."""
        return share(items, self.rank, self.world)

    def check_parent(self) -> None:
        """End with torchrun: a run that was killed and is gone on with must not have two heads.

        Raises:
            ConnectionError: what started this process has ended.
        """
        if self.parent is not None and os.getppid() != self.parent:
            raise ConnectionError(
                f"torchrun, which started {self}, has ended; so does this process"
            )

    def meet(self, what: str) -> None:
        """Wait until all processes are here.

        Raises:
            TimeoutError: some did not come in time, or ended; says which, and what they were to
                finish.
        """
        if self.world == 1:
            return
        start = time.perf_counter()
        try:
            dist.monitored_barrier(timeout=timedelta(seconds=self.timeout), wait_all_ranks=True)
        except RuntimeError as error:
            waited = time.perf_counter() - start
            why = str(error).strip().splitlines()[0]
            raise TimeoutError(
                f"{self} waited {waited:.0f} s, of {self.timeout:.0f} at most, for others to "
                f"finish {what}: {why}"
            ) from None

    def gather(self, rows: Tensor, what: str) -> Tensor:
        """One-dimensional tensors of all processes, one behind the other, through torchmetrics."""
        if self.world == 1:
            return rows
        self.meet(what)
        gathered = _gathering()
        gathered.update(rows)
        found: Tensor = gathered.compute()
        return found


ALONE = Processes()


@contextmanager
def processes(timeout: float = TIMEOUT) -> Iterator[Processes]:
    """The processes that `torchrun` has told of by the environment, joined until the end.

    Args:
        timeout: seconds that they wait for each other at most.

    Raises:
        ValueError: a timeout that is no time.
    """
    if not 0 < timeout < float("inf"):
        raise ValueError(f"timeout {timeout!r} must be a number of seconds above 0")
    rank, world, local = (
        int(os.environ.get(name, default))
        for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
    )
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if world == 1:
        yield Processes(timeout=timeout, restarted=restarts > 0)
        return
    parent = os.getppid()
    patience = timedelta(seconds=timeout)
    # torchrun keeps its store over restarts: without a name for each, processes would find the
    # addresses of those that ended.
    store = next(iter(dist.rendezvous("env://", timeout=patience)))[0]  # type: ignore[attr-defined]
    named = dist.PrefixStore(f"attempt {restarts}", store)  # type: ignore[attr-defined]
    # What is exchanged is little and on the CPU.
    dist.init_process_group("gloo", store=named, rank=rank, world_size=world, timeout=patience)
    try:
        yield Processes(rank, world, local, timeout, parent, restarts > 0)
    finally:
        dist.destroy_process_group()


def _gathering() -> Any:
    try:
        from torchmetrics import Metric
    except ImportError as error:
        raise ImportError(
            "several processes need torchmetrics to put their measures together; install the "
            "extra: pip install 'captum_clip_surgery[metrics]'"
        ) from error

    class Gathered(Metric):
        """Rows of all processes."""

        full_state_update = False

        def __init__(self) -> None:
            super().__init__()
            self.add_state("rows", [], dist_reduce_fx="cat")

        rows: Any  # a list, and one tensor once they are put together

        def update(self, rows: Tensor) -> None:
            self.rows.append(rows)

        def compute(self) -> Any:
            return torch.cat(self.rows) if isinstance(self.rows, list) else self.rows

    return Gathered()
