"""Text features kept on disk between processes, in a database of sqlite's."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from captum_clip_surgery.errors import told

FILE = "text-features-1.sqlite"  # the number is the format's
PATIENCE = 60.0  # seconds for which a process waits until others have written
AT_ONCE = 500  # keys of one question; sqlite takes 999 or more
DTYPES = {"float32": np.float32, "float64": np.float64}


class TextCache:
    """Features by key, in a folder that several processes may share.

    Args:
        folder: made where it is not there; the cache is one file in it, which may be deleted.

    Raises:
        OSError: a folder that cannot be made or written.
        ValueError: a file in the cache's place that is none, or is damaged.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = Path(folder) / FILE
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._not_writable(error) from error
        with self._open() as database:
            database.execute(
                "CREATE TABLE IF NOT EXISTS features"
                " (key BLOB PRIMARY KEY, dtype TEXT, data BLOB, checksum BLOB)"
            )
            database.execute("SELECT key, dtype, data, checksum FROM features LIMIT 1").fetchall()

    def get(self, keys: Iterable[bytes]) -> dict[bytes, Tensor]:
        """The features (C,) of those keys that are there and whole; on the CPU."""
        found: dict[bytes, Tensor] = {}
        wanted = list(keys)
        with self._open() as database:
            for start in range(0, len(wanted), AT_ONCE):
                part = wanted[start : start + AT_ONCE]
                marks = ", ".join("?" * len(part))
                rows = database.execute(
                    f"SELECT key, dtype, data, checksum FROM features WHERE key IN ({marks})", part
                )
                for key, dtype, data, checksum in rows:
                    if not _is_feature(key, dtype, data) or checksum != _checksum(key, dtype, data):
                        warnings.warn(
                            f"a text feature in {self.path} is damaged and computed anew",
                            stacklevel=2,
                        )
                        continue
                    found[key] = torch.from_numpy(np.frombuffer(data, DTYPES[dtype]).copy())
        return found

    def put(self, features: Mapping[bytes, Tensor]) -> None:
        """Write features (C,), in place of what is under their keys."""
        rows = []
        for key, feature in features.items():
            array = feature.cpu().numpy()
            dtype, data = array.dtype.name, array.tobytes()
            rows.append((key, dtype, data, _checksum(key, dtype, data)))
        with self._open() as database:
            database.executemany("INSERT OR REPLACE INTO features VALUES (?, ?, ?, ?)", rows)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A transaction in a connection of its own, so that threads and forks share none."""
        try:
            with closing(sqlite3.connect(self.path, timeout=PATIENCE)) as database, database:
                yield database
        except sqlite3.OperationalError as error:
            if "no such column" in str(error):
                raise self._foreign(error) from error
            raise self._not_writable(error) from error
        except (sqlite3.DatabaseError, UnicodeError, MemoryError) as error:
            # SQLite takes absurd sizes for a lack of memory.
            raise self._foreign(error) from error

    def _not_writable(self, error: Exception) -> OSError:
        return OSError(
            f"text features cannot be kept in {self.path.parent}: {error}; name a folder that can "
            "be written, or cache=None"
        )

    def _foreign(self, error: Exception) -> ValueError:
        return ValueError(
            f"{self.path} is damaged or no cache of text features "
            f"({told(error)}); delete it, it is written anew"
        )


def _is_feature(key: object, dtype: object, data: object) -> bool:
    """Damage can change what kind of thing they are, too."""
    if not isinstance(key, bytes) or not isinstance(data, bytes) or dtype not in DTYPES:
        return False
    return len(data) % np.dtype(DTYPES[str(dtype)]).itemsize == 0


def _checksum(key: bytes, dtype: str, data: bytes) -> bytes:
    """Of a row's key as well, so that no feature answers for another text."""
    return hashlib.sha256(key + dtype.encode() + data).digest()
