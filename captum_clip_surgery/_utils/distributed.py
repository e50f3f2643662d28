"""The processes of a run as `torchrun` starts them; a single process without it."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

#: Default number of seconds to wait for processes that make no progress.
TIMEOUT_S = 1800.0
#: Seconds between looks at whether the others have arrived.
INTERVAL_S = 0.05

Item = TypeVar("Item")


def shard(items: Sequence[Item], rank: int, world_size: int) -> Sequence[Item]:
    """Return the items of one process; sizes of shards differ by one at most.

    Example::

        >>> [shard("abcdefg", rank, 3) for rank in range(3)]
        ['adg', 'be', 'cf']
    """
    return items[rank::world_size]


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from one of them.

    The collectives are those of `torch.distributed`, behind a barrier of its own kind: it waits for
    a slow process as long as that makes progress, and names the one that hangs, where those of
    `torch.distributed` have one fixed timeout.

    Attributes:
        rank: Number of this process in the run.
        world_size: Number of processes in the run.
        local_rank: Number of this process on its machine.
        timeout: Seconds to wait for processes that make no progress.
        parent: Id of the process that started this one, whose end ends the run; None otherwise.
        restarted: Whether torchrun restarted the run after a failure.
        store: Key-value store in which processes publish their progress.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    timeout: float = TIMEOUT_S
    parent: int | None = None
    restarted: bool = False
    store: Any = field(default=None, repr=False)
    _barriers: Iterator[int] = field(default_factory=itertools.count, repr=False, compare=False)

    def __str__(self) -> str:
        return f"process {self.rank} of {self.world_size}"

    @property
    def is_main_process(self) -> bool:
        """Whether this process reports, and writes what is written once."""
        return self.rank == 0

    @property
    def device(self) -> str:
        """Device of this process: a GPU of its own, or the CPU where there are none.

        Raises:
            ValueError: If the machine has more processes than GPUs.
        """
        if not torch.cuda.is_available():
            return "cpu"
        if self.local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"{self} is number {self.local_rank + 1} on its machine, which has "
                f"{torch.cuda.device_count()} GPUs; start as many processes (--nproc-per-node)"
            )
        return f"cuda:{self.local_rank}"

    def shard(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return the items of this process; every process must pass the same items."""
        return shard(items, self.rank, self.world_size)

    def heartbeat(self) -> None:
        """Publish that this process makes progress; call it for every batch.

        Raises:
            ConnectionError: If the process that started this one has ended. This process must end
                too, because the run may be resumed by others.
        """
        self._check_parent()
        if self.store is not None:
            self._ask("add", f"batches of {self.rank}", 1)

    def barrier(self, work: str) -> None:
        """Wait until all processes arrive, as long as the missing ones make progress.

        Args:
            work: What the processes were to finish, for the error message.

        Raises:
            TimeoutError: If a process neither arrives nor makes progress for `timeout` seconds.
            ConnectionError: If other processes of the run have ended.
        """
        if self.world_size == 1:
            return
        barrier = f"barrier {next(self._barriers)}"
        self._ask("set", f"{barrier}, {self.rank}", "here")
        start = moved = time.monotonic()
        batches: dict[int, int] = {}
        missing = list(range(self.world_size))
        while missing := [rank for rank in missing if not self._arrived(barrier, rank)]:
            counts = {rank: self._ask("add", f"batches of {rank}", 0) for rank in missing}
            now = time.monotonic()
            if any(batches.get(rank) != count for rank, count in counts.items()):
                moved = now
            batches = counts
            if now - moved > self.timeout:
                ranks = ", ".join(map(str, missing))
                raise TimeoutError(
                    f"{self} waited {now - start:.0f} s for others to finish {work}: process "
                    f"{ranks} did not come, and finished no batch for {self.timeout:g} s"
                )
            time.sleep(INTERVAL_S)
        dist.barrier()  # no process leaves, and maybe ends, while another one still looks

    def broadcast_object(self, item: Any, work: str) -> Any:
        """Return the main process's item in all processes, after a `barrier`; others pass None."""
        if self.world_size == 1:
            return item
        self.barrier(work)
        items = [item]
        dist.broadcast_object_list(items, src=0)
        return items[0]

    def all_gather_object(self, item: Any, work: str) -> list[Any]:
        """Return the items of all processes by rank, after a `barrier`."""
        if self.world_size == 1:
            return [item]
        self.barrier(work)
        items: list[Any] = [None] * self.world_size
        dist.all_gather_object(items, item)
        return items

    def all_gather(self, rows: Tensor, work: str) -> Tensor:
        """Concatenate the one-dimensional tensors of all processes, after a `barrier`.

        Lengths may differ, so tensors are gathered as objects.
        """
        return torch.cat(self.all_gather_object(rows, work))

    def _check_parent(self) -> None:
        if self.parent is not None and os.getppid() != self.parent:
            raise ConnectionError(
                f"torchrun, which started {self}, has ended; so does this process"
            )

    def _ask(self, operation: str, *arguments: Any) -> Any:
        """Call the store, which ends with torchrun or with the main process."""
        try:
            return getattr(self.store, operation)(*arguments)
        except dist.DistError as error:
            time.sleep(INTERVAL_S)  # the store's connection ends a moment before torchrun does
            self._check_parent()
            raise ConnectionError(f"the others do not answer {self} any more: {error}") from error

    def _arrived(self, barrier: str, rank: int) -> bool:
        arrived: bool = self._ask("check", [f"{barrier}, {rank}"])
        return arrived


SINGLE_PROCESS = Processes()


def refuse_several(work: str) -> None:
    """Check that `torchrun` did not start several processes for work that cannot be shared.

    Raises:
        ValueError: If it did: each would do all of the work and write the same files.
    """
    world_size = os.environ.get("WORLD_SIZE", "1")
    if world_size != "1":
        raise ValueError(
            f"{work} is not shared among processes, and WORLD_SIZE is {world_size}: each would do "
            "all of it and write the same files. Start it once, without torchrun; evaluate of a "
            "data set on disk and export are shared"
        )


@contextmanager
def processes(timeout: float = TIMEOUT_S) -> Iterator[Processes]:
    """Join the processes that `torchrun` describes in the environment, until the end of the block.

    An error in one of several processes gets a note that names the process.

    Args:
        timeout: Seconds to wait for processes that make no progress.

    Yields:
        The processes.

    Raises:
        ValueError: If `timeout` is not a positive number, or torchrun restarts a run on several
            machines.
    """
    if not 0 < timeout < float("inf"):
        raise ValueError(f"timeout {timeout!r} must be a number of seconds above 0")
    rank, world_size, local_rank = (
        int(os.environ.get(name, default))
        for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
    )
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if world_size == 1:
        yield Processes(timeout=timeout, restarted=restarts > 0)
        return
    if restarts and int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1:
        # Each machine's torchrun counts its own failures, so processes could not find each other
        # by that count.
        raise ValueError(
            "torchrun's own restarts (--max-restarts) work on a single machine only; start the run "
            "again on all machines, with --resume"
        )
    # torchrun keeps its store over restarts: without a prefix for each attempt, processes would
    # find the addresses of those that ended.
    wait = timedelta(seconds=timeout)
    store = next(iter(dist.rendezvous("env://", timeout=wait)))[0]  # type: ignore[attr-defined]
    prefixed = dist.PrefixStore(f"attempt {restarts}", store)  # type: ignore[attr-defined]
    # Little is exchanged, all of it on the CPU.
    dist.init_process_group("gloo", store=prefixed, rank=rank, world_size=world_size, timeout=wait)
    run = Processes(rank, world_size, local_rank, timeout, os.getppid(), restarts > 0, prefixed)
    try:
        yield run
    except Exception as error:
        error.add_note(f"in {run}")
        raise
    finally:
        dist.destroy_process_group()
