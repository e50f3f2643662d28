"""A lock on a folder that ends with the process which holds it, however that ends."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows: runs there are not kept apart
    fcntl = None  # type: ignore[assignment]

LOCK = "lock"
#: Seconds that processes of a run which was just killed are given to end.
PATIENCE = 10.0
#: By process and folder: the locked file, and how many hold it here. The system gives a lock to
#: a process as a whole, and takes it back once that closes the file anywhere. Forks have none.
_HELD: dict[tuple[int, Path], tuple[IO[bytes], int]] = {}


class Lock:
    """The lock on a folder, shared with others that share it, or `alone` until `share`.

    Args:
        folder: what is locked; it gets a file `lock`.
        alone: whether no other process may hold it.

    Raises:
        FileExistsError: others hold it, and do not end within `PATIENCE`.
    """

    def __init__(self, folder: Path, alone: bool) -> None:
        self._key = (os.getpid(), folder.resolve())
        file, count = _HELD.get(self._key, (None, 0))
        self._file = (folder / LOCK).open("a+b") if file is None else file
        until = time.monotonic() + PATIENCE
        while not _locked(self._file, alone):
            if time.monotonic() > until:
                if not count:
                    self._file.close()
                raise FileExistsError(
                    f"a run in {folder} is still going on; wait for its processes to end, or end "
                    "them"
                )
            time.sleep(0.1)
        _HELD[self._key] = (self._file, count + 1)

    def share(self) -> None:
        """From here on others may hold it, too."""
        _locked(self._file, alone=False)

    def close(self) -> None:
        """Give it back; the last one in this process unlocks it."""
        file, count = _HELD.pop(self._key, (None, 0))
        if count > 1:
            _HELD[self._key] = (self._file, count - 1)
            self.share()  # had this one wanted it alone in vain
        elif file is not None:
            file.close()


def _locked(file: IO[bytes], alone: bool) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.lockf(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # what it raises differs by system
        return False
    return True
