"""The processes of one run, as `torchrun` starts them; one process without it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

#: Seconds that processes wait for each other at most where nobody says.
TIMEOUT = 1800.0


@dataclass(frozen=True)
class Processes:
    """This process, `rank`, among `world`; `local` is its number on this machine."""

    rank: int = 0
    world: int = 1
    local: int = 0
    timeout: float = TIMEOUT

    @property
    def first(self) -> bool:
        """Whether this is the one that reports and writes what there is once."""
        return self.rank == 0

    @property
    def device(self) -> str:
        """Where this process computes: a GPU of its own where there are any."""
        return f"cuda:{self.local}" if torch.cuda.is_available() else "cpu"

    def meet(self, what: str) -> None:
        """Wait until all processes are here.

        Raises:
            TimeoutError: some did not come in time; says which, and what they were to finish.
        """
        if self.world == 1:
            return
        try:
            dist.monitored_barrier(timeout=timedelta(seconds=self.timeout), wait_all_ranks=True)
        except RuntimeError as error:
            raise TimeoutError(
                f"process {self.rank} of {self.world} waited {self.timeout:.0f} s for others to "
                f"finish {what}: {error}"
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
    if world == 1:
        yield Processes(timeout=timeout)
        return
    # What is exchanged is little and on the CPU.
    dist.init_process_group("gloo", timeout=timedelta(seconds=timeout))
    try:
        yield Processes(rank, world, local, timeout)
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
