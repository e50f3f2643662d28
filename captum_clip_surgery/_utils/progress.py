"""Progress of a long run: a bar in a terminal, a line now and then in a log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

#: Seconds between two lines of a log. tqdm alone would write a bar per update into it.
INTERVAL_S = 30.0

Batch = TypeVar("Batch")


class Process(Protocol):
    """A process of a run."""

    @property
    def is_main_process(self) -> bool:
        """Whether this process reports."""

    @property
    def world_size(self) -> int:
        """Number of processes."""


def track_progress(
    batches: Iterable[Batch],
    description: str,
    total: int,
    dist: Process,
    show: bool = True,
    unit: str = "image",
    count: Callable[[Any], int] = len,
) -> Iterator[Batch]:
    """Yield batches while the main process reports images per second and the time left.

    The main process counts its own images only and assumes that the others are as fast.

    Args:
        batches: Batches of this process.
        description: Name of the work.
        total: Number of units in all processes together.
        dist: The processes of the run.
        show: Whether to report.
        unit: Name of what is counted, in the singular.
        count: Function that returns the number of units in a batch.

    Yields:
        The batches.
    """
    if not (show and dist.is_main_process):
        yield from batches
        return
    terminal = sys.stderr.isatty()
    start = reported = time.perf_counter()
    done = 0
    with tqdm(total=total, desc=description, unit=unit, disable=not terminal) as bar:
        for batch in batches:
            yield batch
            # The caller asks for the next batch, so this one is done.
            step = min(count(batch) * dist.world_size, total - done)
            done += step
            bar.update(step)
            now = time.perf_counter()
            if not terminal and now - reported >= INTERVAL_S:
                reported = now
                line = progress_line(description, done, total, now - start, unit)
                print(line, file=sys.stderr, flush=True)


def report_step(step: str) -> None:
    """Print to standard error what a command is about to do, once for all processes of torchrun."""
    if os.environ.get("RANK", "0") == "0":
        print(f"{step} ...", file=sys.stderr, flush=True)


def progress_line(
    description: str, done: int, total: int, seconds: float, unit: str = "image"
) -> str:
    """Format the units done, the speed and the time left.

    Example::

        >>> progress_line("segmentation", 50, 200, 25.0)
        'segmentation: 50 of 200 images, 2.0 a second, 0:01:15 left'
    """
    left = timedelta(seconds=round((total - done) * seconds / done)) if done else "unknown time"
    speed = done / seconds
    return f"{description}: {done} of {total} {unit}s, {speed:.1f} a second, {left} left"
