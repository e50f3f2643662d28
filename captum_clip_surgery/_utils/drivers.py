"""Ways to map a function over the pieces of a run: a loop, torchrun, job arrays, Ray.

A driver only decides who takes which number. Processes that `torchrun` starts and Ray's actors take
the next number when they are free, so none waits for a slow one. A number that is lost with its
process stays undone, and another actor or the next run takes it.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from importlib import import_module
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from captum_clip_surgery._utils import progress

Item = TypeVar("Item")
#: Seconds between two looks at what other processes have finished.
INTERVAL_S = 0.1


@dataclass(frozen=True)
class Torchrun:
    """This process among those that `torchrun` started; one process alone without it.

    Attributes:
        rank: Number of this process.
        world_size: Number of processes.
        local_rank: Number of this process on its machine.
        restarts: How often torchrun has restarted the processes.
        store: Key-value store of the processes; None for one process.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    restarts: int = 0
    store: Any = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"process {self.rank} of {self.world_size}"

    @classmethod
    def join(cls, timeout: float) -> Torchrun:
        """Join the processes that the environment describes.

        Args:
            timeout: Seconds to wait for others.
        """
        rank, world_size, local_rank, restarts = (
            int(os.environ.get(name, default))
            for name, default in (
                ("RANK", "0"),
                ("WORLD_SIZE", "1"),
                ("LOCAL_RANK", "0"),
                ("TORCHELASTIC_RESTART_COUNT", "0"),
            )
        )
        if world_size == 1:
            return cls(restarts=restarts)
        wait = timedelta(seconds=timeout)
        store = next(iter(dist.rendezvous("env://", timeout=wait)))[0]  # type: ignore[attr-defined]
        store.set_timeout(wait)
        # torchrun keeps its store over restarts, and with it the numbers taken before.
        prefixed = dist.PrefixStore(f"attempt {restarts}", store)  # type: ignore[attr-defined]
        return cls(rank, world_size, local_rank, restarts, prefixed)

    @property
    def is_main_process(self) -> bool:
        """Whether this process plans and reports."""
        return self.rank == 0

    @property
    def device(self) -> str:
        """Device of this process: a GPU of its own, or the CPU if there are none.

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

    def broadcast(self, name: str, make: Callable[[], Item]) -> Item:
        """Return the result of `make`, which only the main process calls.

        Args:
            name: Name of the item, unique in the run.
            make: Function that makes the item, which must be small and picklable.

        Raises:
            ConnectionError: If the main process fails or does not answer in time.
        """
        if self.store is None:
            return make()
        if self.is_main_process:
            item = make()
            self.store.set(name, pickle.dumps(item))
            return item
        with _lost_store(self):
            return pickle.loads(self.store.get(name))

    def numbers(self, name: str, left: Sequence[int]) -> Iterator[int]:
        """Yield numbers that no other process takes, one whenever this process is free.

        Args:
            name: Name of the work, unique in the run.
            left: Numbers to share out, the same in all processes.

        Raises:
            ConnectionError: If torchrun has ended.
        """
        if self.store is None:
            yield from left
            return
        while True:
            with _lost_store(self):
                taken = self.store.add(name, 1) - 1
            if taken >= len(left):
                return
            yield left[taken]

    def finish_one(self, name: str) -> None:
        """Count one more finished number of the work."""
        if self.store is not None:
            with _lost_store(self):
                self.store.add(f"{name}, finished", 1)

    def wait_for_all(self, name: str, count: int, timeout: float) -> None:
        """Wait until the processes together have finished so many numbers.

        Args:
            name: Name of the work.
            count: Number of numbers that were shared out.
            timeout: Seconds to wait while none is finished.

        Raises:
            TimeoutError: If none is finished for `timeout` seconds.
            ConnectionError: If torchrun has ended.
        """
        if self.store is None:
            return
        self._wait(f"{name}, finished", count, name, timeout)
        with _lost_store(self):
            self.store.add(f"{name}, seen", 1)
        if self.is_main_process:  # it may hold the store, so it leaves last
            self._wait(f"{name}, seen", self.world_size, name, timeout)

    def _wait(self, key: str, goal: int, name: str, timeout: float) -> None:
        """Wait until a count in the store reaches a number."""
        finished, since = -1, time.monotonic()
        while finished < goal:
            with _lost_store(self):
                now = self.store.add(key, 0)
            if now > finished:
                finished, since = now, time.monotonic()
            elif time.monotonic() - since > timeout:
                raise TimeoutError(
                    f"{self} waited {timeout:g} s for others, which have finished {finished} "
                    f"of {goal} parts of {name}. Run the same command again"
                )
            time.sleep(INTERVAL_S)


def refuse_several(work: str) -> None:
    """Check that `torchrun` did not start several processes for work that cannot be shared.

    Raises:
        ValueError: If it did: each would do all of the work and write the same files.
    """
    world_size = os.environ.get("WORLD_SIZE", "1")
    if world_size != "1":
        raise ValueError(
            f"{work} runs in a single process, but WORLD_SIZE is {world_size}: all of them "
            "would write the same files. Start it once, without torchrun; only export, and "
            "evaluate on a data set on disk, run in several processes"
        )


def check_ray_alone(array: str | None) -> None:
    """Check that only Ray distributes the work.

    Raises:
        ValueError: If a job array or `torchrun` would do so too.
    """
    if array is not None:
        raise ValueError("--array and --engine ray both distribute the work; pass only one")
    refuse_several("--engine ray")


@contextmanager
def _lost_store(run: Torchrun) -> Iterator[None]:
    """Turn errors of the store, which ends with torchrun, into a ConnectionError."""
    try:
        yield
    except dist.DistError as error:
        raise ConnectionError(
            f"{run} cannot reach the others any more: {error}. Run the same command again"
        ) from error


def array_numbers(left: Iterable[int], task: str) -> list[int]:
    """Return the numbers of one task of a job array.

    Args:
        left: Numbers to share out. Tasks may see different ones, as some end before others start:
            the share of a task depends on the numbers themselves, not on their positions.
        task: "i/n": task i of n, counted from 0.

    Raises:
        ValueError: If `task` is not "i/n" with 0 <= i < n.

    Example::

        >>> array_numbers([0, 3, 4, 5, 6], "0/3")
        [0, 3, 6]
    """
    index, _, count = task.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ValueError(
            f"array task {task!r} must be i/n with i from 0 to n - 1, as 0/4 for the first of four"
        )
    return [number for number in left if number % int(count) == int(index)]


def run_on_ray(
    work: Callable[[Torchrun], Item],
    actors: int = 1,
    num_gpus: float = 0.0,
    address: str | None = None,
    retries: int = 3,
) -> list[Item]:
    """Run work on Ray actors that share its numbers, and print what they have taken so far.

    Args:
        work: Function that loads the model and computes the numbers of the run it is given;
            picklable. It must pass over numbers that are done: those of a lost actor are handed out
            again.
        actors: Number of actors, of one CPU core each.
        num_gpus: GPUs of an actor.
        address: Address of a cluster ("auto" finds a running one); None starts Ray here.
        retries: How many actors may be lost, killed or out of memory, before the run ends.

    Returns:
        What `work` returned in each actor that was not lost, in no particular order.

    Raises:
        ImportError: If Ray is not installed.
        RuntimeError: If more than `retries` actors are lost.
        Exception: If work fails in an actor; its exception.
    """
    ray, results, lost, start = _ray(), list[Item](), 0, time.monotonic()
    here = not ray.is_initialized()
    if here:
        ray.init(address=address, log_to_driver=False, include_dashboard=False)
    try:
        queue = ray.remote(num_cpus=0)(_Queue).remote()
        actor_class = ray.remote(num_cpus=1, num_gpus=num_gpus)(_Actor)

        def launch(rank: int) -> tuple[Any, Any]:
            actor = actor_class.remote()
            run = _RayRun(rank, actors, queue=queue)
            return actor.run.remote(work, run), (rank, actor)  # Ray ends actors without a reference

        running = dict(launch(rank) for rank in range(1, actors + 1))
        shown: dict[str, tuple[int, int]] = {}
        while running:
            done, _ = ray.wait(list(running), timeout=progress.INTERVAL_S)
            counts = ray.get(queue.counts.remote())
            for name, (taken, total) in counts.items() if counts != shown else ():
                seconds = time.monotonic() - start
                line = progress.progress_line(name, taken, total, seconds, "piece")
                print(line, file=sys.stderr, flush=True)
            shown = counts
            for result in done:
                rank, _ = running.pop(result)
                try:
                    results.append(ray.get(result))
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from error
                except ray.exceptions.RayError as error:  # the actor was killed or lost
                    lost += 1
                    if lost > retries:
                        raise RuntimeError(
                            f"{lost} Ray actors were lost, the last one because: {error}. Finished "
                            "pieces are complete: run the same command again to resume"
                        ) from error
                    ray.get(queue.give_back.remote(rank))
                    running.update([launch(rank)])
    finally:
        if here:
            ray.shutdown()
    return results


@dataclass(frozen=True)
class _RayRun(Torchrun):
    """An actor of Ray, which is never the main process: the driver plans and reports."""

    queue: Any = None

    def numbers(self, name: str, left: Sequence[int]) -> Iterator[int]:
        get = _ray().get
        get(self.queue.offer.remote(name, left))
        while (number := get(self.queue.take.remote(name, self.rank))) is not None:
            yield number


class _Queue:
    """Ray actor that distributes numbers."""

    def __init__(self) -> None:
        self.left: dict[str, list[int]] = {}
        self.totals: dict[str, int] = {}
        self.taken: dict[int, list[tuple[str, int]]] = {}

    def offer(self, name: str, numbers: Sequence[int]) -> None:
        if name not in self.left:
            self.left[name], self.totals[name] = list(reversed(numbers)), len(numbers)

    def take(self, name: str, rank: int) -> int | None:
        if not self.left[name]:
            return None
        number = self.left[name].pop()
        self.taken.setdefault(rank, []).append((name, number))
        return number

    def give_back(self, rank: int) -> None:
        """Hand out again what a lost actor had taken."""
        for name, number in self.taken.pop(rank, ()):
            self.left[name].append(number)

    def counts(self) -> dict[str, tuple[int, int]]:
        """Return how many numbers of each name were taken, and how many there are."""
        return {name: (n - len(self.left[name]), n) for name, n in self.totals.items()}


class _Actor:
    """Ray actor that works in a process of its own."""

    def run(self, work: Callable[[Torchrun], Item], run: Torchrun) -> Item:
        return work(run)


def _ray() -> Any:
    with suppress(ImportError):
        return import_module("ray")
    raise ImportError("this needs Ray; install the extra: pip install 'captum_clip_surgery[ray]'")
