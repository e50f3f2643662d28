"""How a long run goes on: a bar in a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

from tqdm import tqdm

from captum_clip_surgery._utils.distributed import Processes

#: Seconds between two lines where nobody sees a bar.
EVERY = 30.0

Batch = TypeVar("Batch")


def follow(
    batches: Iterable[Batch],
    what: str,
    total: int,
    among: Processes,
    show: bool = True,
    unit: str = "image",
    count: Callable[[Any], int] = len,
) -> Iterator[Batch]:
    """Batches as they come, while the first process tells images a second and the time left.

    It knows its own images alone, and counts the others' as many.

    Args:
        batches: those of this process.
        what: they are done for.
        total: images of all processes together, or of what is counted instead.
        among: the processes.
        show: whether to tell.
        unit: what is counted.
        count: how many of them a batch is.
    """
    if not (show and among.first):
        yield from batches
        return
    terminal = sys.stderr.isatty()
    start = told = time.perf_counter()
    done = 0
    with tqdm(total=total, desc=what, unit=unit, disable=not terminal) as bar:
        for batch in batches:
            yield batch
            # Here this batch is done.
            step = min(count(batch) * among.world, total - done)
            done += step
            bar.update(step)
            now = time.perf_counter()
            if not terminal and now - told >= EVERY:
                told = now
                line = progress_line(what, done, total, now - start, unit)
                print(line, file=sys.stderr, flush=True)


def progress_line(what: str, done: int, total: int, seconds: float, unit: str = "image") -> str:
    """How far it is, how fast it goes, and how long it will still take.

    Example::

        >>> progress_line("segmentation", 50, 200, 25.0)
        'segmentation: 50 of 200 images, 2.0 a second, 0:01:15 left'
    """
    left = timedelta(seconds=round((total - done) * seconds / done)) if done else "unknown time"
    return f"{what}: {done} of {total} {unit}s, {done / seconds:.1f} a second, {left} left"
