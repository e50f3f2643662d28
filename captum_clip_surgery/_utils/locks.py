"""A lock that keeps a second run out of a run's folder."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

from filelock import FileLock, Timeout

#: Seconds to wait for the processes of a run that was just killed.
TIMEOUT_S = 10.0


class RunLock:
    """Lock of this process on a run's folder, released by `close` or when the process ends.

    Every process of a run locks a file of its own, because the run lasts as long as any of them.

    Args:
        folder: Folder of the run.
        exclusive: Whether to start a run, for which no other process may hold the folder.

    Raises:
        FileExistsError: If `exclusive`, and another process holds the folder for `TIMEOUT_S`.
    """

    def __init__(self, folder: Path, exclusive: bool) -> None:
        path = folder / f"process-{platform.node()}-{os.getpid()}.lock"
        # One reentrant lock for all threads of the process.
        self._lock = FileLock(path, thread_local=False, is_singleton=True)
        if not exclusive:
            self._lock.acquire()
            return
        deadline = time.monotonic() + TIMEOUT_S
        try:
            # Of two runs that start at once, one waits until it sees the other's lock.
            with FileLock(folder / "start.lock", timeout=TIMEOUT_S):
                for other in sorted({*folder.glob("process-*.lock")} - {path}):
                    with FileLock(other, timeout=max(deadline - time.monotonic(), 0.0)):
                        pass
                self._lock.acquire()
        except Timeout:
            raise FileExistsError(
                f"a run in {folder} is still active; wait for its processes to end, or end them"
            ) from None

    def close(self) -> None:
        """Release this hold; the folder is free once every hold on it is released."""
        self._lock.release()
