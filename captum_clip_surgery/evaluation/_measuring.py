"""Measuring in threads: while they measure a batch, the model explains the next one."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import BoundedSemaphore
from typing import Any, Self, TypeVar

Value = TypeVar("Value")
#: Largest number of threads of a process.
MAX_THREADS = 8


class Measurers:
    """Threads that measure; what waits for them is bounded, because predictions can be large.

    Sorting and the other work on pixels happen in torch, which lets threads run at once.

    Args:
        processes: Number of processes that share the machine's cores.
    """

    def __init__(self, processes: int = 1) -> None:
        threads = max(1, min(MAX_THREADS, (os.cpu_count() or 1) // processes))
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="measure")
        self._free = BoundedSemaphore(2 * threads)

    def submit(self, measure: Callable[..., Value], *arguments: Any) -> Future[Value]:
        """Call a function in a thread; wait here if too many calls are waiting already."""
        self._free.acquire()
        future = self._pool.submit(measure, *arguments)
        future.add_done_callback(lambda _: self._free.release())
        return future

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
