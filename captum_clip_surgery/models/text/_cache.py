"""Text features kept on disk between processes, in one SQLite file.

SQLite is used directly, because caching packages such as diskcache pickle what they store, so that
a file could run code. Here a feature is the bytes of its numbers.
"""

from __future__ import annotations

import hashlib
import math
import os
import sqlite3
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from captum_clip_surgery._utils.errors import error_message

FILE = "text-features-1.sqlite"  # the number is the version of the format
MAX_BYTES = 2**30  # about 250,000 features of ViT-B/16, one per text
KEPT = 0.9  # share of the bound that is left after deleting, so that not every write deletes
TIMEOUT_S = 10.0  # how long to wait for another process's lock
BATCH_SIZE = 500  # keys per query; SQLite allows at least 999
DTYPES = {"float32": np.float32, "float64": np.float64}
COLUMNS = "features (key BLOB PRIMARY KEY, dtype TEXT, data BLOB, checksum BLOB)"

Row = tuple[bytes, str, bytes, bytes]
T = TypeVar("T")


class TextCache:
    """Text features by key, in a folder that threads and processes may share.

    The cache never raises. If its file cannot be read or written (damage, another program's file, a
    lock held for longer than `TIMEOUT_S`, a full disk, a read-only folder), it warns once, finds
    nothing and keeps nothing; it is used again as soon as that works. A file that was deleted is
    started anew. A feature whose checksum does not match is not returned.

    Args:
        folder: Folder of the cache, created if needed. The cache is one file in it, which may be
            deleted at any time.
        max_bytes: Size of the features in bytes above which the oldest are deleted (default:
            1 GiB).
    """

    def __init__(self, folder: str | os.PathLike[str], max_bytes: int = MAX_BYTES) -> None:
        self.path = Path(folder).absolute() / FILE
        self.max_bytes = max_bytes
        self._timeout = TIMEOUT_S
        self._warned = False
        self._transact(lambda database: None)

    def get(self, keys: Iterable[bytes]) -> dict[bytes, Tensor]:
        """Return the features (C,), on the CPU, of the keys that are stored and intact."""
        wanted = list(keys)
        rows = self._transact(lambda database: _select(database, wanted)) or []
        intact = [row for row in rows if _is_intact(*row)]
        if len(intact) < len(rows):
            warnings.warn(
                f"a text feature in {self.path} is damaged and computed anew", stacklevel=2
            )
        return {
            key: torch.from_numpy(np.frombuffer(data, DTYPES[dtype]).copy())
            for key, dtype, data, _ in intact
        }

    def put(self, features: Mapping[bytes, Tensor]) -> None:
        """Store features (C,) by key, replacing those already stored."""
        rows = []
        for key, feature in features.items():
            array = feature.cpu().numpy()
            dtype, data = array.dtype.name, array.tobytes()
            rows.append((key, dtype, data, _checksum(key, dtype, data)))
        self._transact(lambda database: _insert(database, rows, self.max_bytes))

    def _transact(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """Run `work` in one transaction, or warn and return None if the file cannot be used.

        Each transaction has its own connection, because threads and forks must not share one.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=self._timeout)) as database, database:
                _check_schema(database)
                result = work(database)
        # SQLite reports some damage as wrong Unicode or as a lack of memory.
        except (sqlite3.Error, OSError, ValueError, MemoryError) as error:
            self._timeout = 0.0  # a lock that outlasted the timeout is not waited for again
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"the text-feature cache {self.path} cannot be used "
                    f"({error_message(error):.300}); text features are computed instead. Delete "
                    "the file if it is damaged or not a cache; otherwise check the folder's "
                    "permissions, free space and locks, or pass another folder or None as `cache`",
                    stacklevel=3,
                )
            return None
        self._timeout = TIMEOUT_S
        return result


def _check_schema(database: sqlite3.Connection) -> None:
    """Create the table in an empty file; refuse files of other programs."""
    schema = database.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    if not schema:
        database.execute(f"CREATE TABLE IF NOT EXISTS {COLUMNS}")
    elif schema != [(f"CREATE TABLE {COLUMNS}",)]:
        raise sqlite3.DatabaseError("it is a database of another program")


def _select(database: sqlite3.Connection, keys: list[bytes]) -> list[Row]:
    rows: list[Row] = []
    for start in range(0, len(keys), BATCH_SIZE):
        batch = keys[start : start + BATCH_SIZE]
        marks = ", ".join("?" * len(batch))
        query = f"SELECT key, dtype, data, checksum FROM features WHERE key IN ({marks})"
        rows += database.execute(query, batch)
    return rows


def _insert(database: sqlite3.Connection, rows: list[Row], max_bytes: int) -> None:
    database.execute("BEGIN IMMEDIATE")  # waits for other writers, which an upgraded read may not
    database.executemany("INSERT OR REPLACE INTO features VALUES (?, ?, ?, ?)", rows)
    while (used := _used_bytes(database)) > max_bytes:
        (count,) = database.execute("SELECT count(*) FROM features").fetchone()
        if not count:
            return
        surplus = math.ceil(count * (1 - KEPT * max_bytes / used))
        oldest = "SELECT rowid FROM features ORDER BY rowid LIMIT ?"
        database.execute(f"DELETE FROM features WHERE rowid IN ({oldest})", (surplus,))


def _used_bytes(database: sqlite3.Connection) -> int:
    """Return the size of the pages in use; deleting frees pages, which later writes fill."""
    names = ("page_count", "freelist_count", "page_size")
    pages, free, size = (database.execute(f"PRAGMA {name}").fetchone()[0] for name in names)
    return int((pages - free) * size)


def _is_intact(key: object, dtype: object, data: object, checksum: object) -> bool:
    """Check a row against its checksum, types first, because damage can change them too."""
    if not isinstance(key, bytes) or not isinstance(data, bytes) or dtype not in DTYPES:
        return False
    if len(data) % np.dtype(DTYPES[str(dtype)]).itemsize:
        return False
    return checksum == _checksum(key, str(dtype), data)


def _checksum(key: bytes, dtype: str, data: bytes) -> bytes:
    """Return a digest of a row, its key included, so that no row answers for another text."""
    return hashlib.sha256(key + dtype.encode() + data).digest()
