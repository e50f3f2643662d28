"""The processes of one run, as `torchrun` starts them; one process without it."""

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

#: Seconds that processes wait at most for others that do not go forward, where nobody says.
TIMEOUT = 1800.0
#: Seconds between looks at whether others have come.
EVERY = 0.05

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

    `parent` is the process that started it where its end is the end of the run, `restarted` says
    whether torchrun has started the run again after a failure, and `store` is where processes tell
    each other how far they are.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    timeout: float = TIMEOUT
    parent: int | None = None
    restarted: bool = False
    store: Any = field(default=None, repr=False)
    _meetings: Iterator[int] = field(default_factory=itertools.count, repr=False, compare=False)

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

    def advance(self) -> None:
        """Tell the others that this process goes forward; call it for each batch.

        Raises:
            ConnectionError: what started this process has ended. So does the process: a run that
                was killed and is gone on with must not have two heads.
        """
        self._check_parent()
        if self.store is not None:
            self._ask("add", f"batches of {self.rank}", 1)

    def _check_parent(self) -> None:
        if self.parent is not None and os.getppid() != self.parent:
            raise ConnectionError(
                f"torchrun, which started {self}, has ended; so does this process"
            )

    def _ask(self, what: str, *arguments: Any) -> Any:
        """An operation of the store, which ends with torchrun, or with the first process."""
        try:
            return getattr(self.store, what)(*arguments)
        except dist.DistError as error:
            self._check_parent()
            raise ConnectionError(f"the others do not answer {self} any more: {error}") from error

    def meet(self, what: str) -> None:
        """Wait until all processes are here, as long as those that are missing go forward.

        Raises:
            TimeoutError: some neither came nor went forward for `timeout` seconds; says which, and
                what they were to finish.
        """
        if self.world == 1:
            return
        meeting = f"meeting {next(self._meetings)}"
        self._ask("set", f"{meeting}, {self.rank}", "here")
        start = moved = time.monotonic()
        batches: dict[int, int] = {}
        missing = list(range(self.world))
        while missing := [rank for rank in missing if not self._came(meeting, rank)]:
            seen = {rank: self._ask("add", f"batches of {rank}", 0) for rank in missing}
            now = time.monotonic()
            if any(batches.get(rank) != count for rank, count in seen.items()):
                moved = now
            batches = seen
            if now - moved > self.timeout:
                ranks = ", ".join(map(str, missing))
                raise TimeoutError(
                    f"{self} waited {now - start:.0f} s for others to finish {what}: process "
                    f"{ranks} did not come, and finished no batch for {self.timeout:g} s"
                )
            time.sleep(EVERY)
        dist.barrier()  # nobody goes, and maybe ends, while another still looks

    def _came(self, meeting: str, rank: int) -> bool:
        there: bool = self._ask("check", [f"{meeting}, {rank}"])
        return there

    def tell(self, item: Any, what: str) -> Any:
        """What the first process has, for all, once all are here; others give None."""
        if self.world == 1:
            return item
        self.meet(what)
        told = [item]
        dist.broadcast_object_list(told, src=0)
        return told[0]

    def collect(self, item: Any, what: str) -> list[Any]:
        """What each process has, by rank, once all are here."""
        if self.world == 1:
            return [item]
        self.meet(what)
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, item)
        return found

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


def refuse_several(work: str) -> None:
    """Refuse work that no processes share, where `torchrun` started several.

    Raises:
        ValueError: each would do all of it, and all would write the same files.
    """
    world = os.environ.get("WORLD_SIZE", "1")
    if world != "1":
        raise ValueError(
            f"{work} is not shared among processes, and WORLD_SIZE is {world}: each would do all "
            "of it and write the same files. Start it once, without torchrun; evaluate of a data "
            "set on disk and export are shared"
        )


@contextmanager
def processes(timeout: float = TIMEOUT) -> Iterator[Processes]:
    """The processes that `torchrun` has told of by the environment, joined until the end.

    An error of one of several gets a note of which it was.

    Args:
        timeout: seconds that they wait at most for others that do not go forward.

    Raises:
        ValueError: a timeout that is no time; a restart by torchrun on several machines.
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
    if restarts and int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1:
        # Each machine's torchrun counts its own failures, so that processes could not find each
        # other by that count.
        raise ValueError(
            "torchrun's own restarts (--max-restarts) work on one machine alone; start the run "
            "again on all machines, with --resume"
        )
    # torchrun keeps its store over restarts: without a name for each, processes would find the
    # addresses of those that ended.
    patience = timedelta(seconds=timeout)
    store = next(iter(dist.rendezvous("env://", timeout=patience)))[0]  # type: ignore[attr-defined]
    named = dist.PrefixStore(f"attempt {restarts}", store)  # type: ignore[attr-defined]
    # What is exchanged is little and on the CPU.
    dist.init_process_group("gloo", store=named, rank=rank, world_size=world, timeout=patience)
    among = Processes(rank, world, local, timeout, os.getppid(), restarts > 0, named)
    try:
        yield among
    except Exception as error:
        error.add_note(f"in {among}")
        raise
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
