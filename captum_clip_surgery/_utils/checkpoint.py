"""Results of a long run, stored as they come, so that the run can be resumed after any end.

A store is a folder: `run.json` describes the run, and each process writes its pieces to an SQLite
file of its own, whose transactions survive a kill at any moment. Every piece carries a checksum;
a damaged piece or file counts as not done, with a warning. A process that has a store open holds a
lock, so that a run cannot be resumed while processes of it are still alive.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Self

from captum_clip_surgery._utils.errors import error_message
from captum_clip_surgery._utils.locks import RunLock

ABOUT = "run.json"
TABLE = "CREATE TABLE pieces (key TEXT PRIMARY KEY, content BLOB NOT NULL, checksum BLOB NOT NULL)"
ALL = "SELECT * FROM pieces"
#: What reading a damaged file raises: SQLite reports absurd sizes as a lack of memory.
DAMAGE = (sqlite3.Error, ValueError, OverflowError, MemoryError)


class CheckpointStore:
    """The stored results of one run: created by one process, opened by the others.

    Args:
        folder: Folder of the store.
        settings: Everything that determines the run's results, as JSON; None opens a store that
            another process has created.
        resume: Whether to continue the run in the folder.

    Raises:
        FileExistsError: If the folder holds a run and `resume` is False, the run is still active,
            or there are pieces but no description of their run.
        FileNotFoundError: If `settings` is None and there is no store.
        ValueError: If the run in the folder has other settings; the message lists them.

    Example::

        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "journal"
        >>> with CheckpointStore(folder, {"images": 2}) as store:
        ...     store.add("0", b"done")
        >>> with CheckpointStore(folder, {"images": 2}, resume=True) as store:
        ...     store.completed()
        {'0': b'done'}
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any] | None, resume: bool = False
    ) -> None:
        self.folder = folder
        self._connection: sqlite3.Connection | None = None
        self._files: dict[str, Path] = {}  # file of every piece that was read
        if settings is None and not (folder / ABOUT).exists():
            raise FileNotFoundError(
                f"{folder / ABOUT}, which the first process made, is not to be seen from here: all "
                "processes need to share the folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        self._lock: RunLock | None = RunLock(folder, exclusive=settings is not None)
        if settings is not None:
            try:
                self._create(json.loads(json.dumps(settings)), resume)
            except BaseException:
                self.close()
                raise

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a store that another process of the run has created.

        Raises:
            FileNotFoundError: If there is none, as where machines do not share the folder.
        """
        return cls(folder, None)

    def _create(self, settings: Any, resume: bool) -> None:
        if (self.folder / ABOUT).exists():
            if not resume:
                raise FileExistsError(
                    f"{self.folder} holds a run already; use --resume to continue it, or choose "
                    "another folder"
                )
            _check_same(self.folder, settings)
        elif any(self.folder.glob("*.sqlite")):
            raise FileExistsError(
                f"{self.folder} holds pieces of a run, but no {ABOUT}, which describes the run; "
                "choose another folder"
            )
        else:
            if resume:
                warnings.warn(
                    f"{self.folder} holds no run to resume: starting a new one", stacklevel=4
                )
            _write_whole(self.folder / ABOUT, json.dumps(settings, indent=2) + "\n")

    def completed(self) -> dict[str, bytes]:
        """Return the pieces of all processes by key, with a warning for damaged ones."""
        return dict(self.read())

    def read(self) -> Iterator[tuple[str, bytes]]:
        """Yield the keys and pieces of all processes, with a warning for damaged ones."""
        for path in sorted(self.folder.glob("*.sqlite")):
            try:
                for key, content in _pieces(path, ALL):
                    self._files[key] = path
                    yield key, content
            except DAMAGE as error:
                warnings.warn(
                    f"{path} is damaged ({error_message(error):.200}); its pieces are computed "
                    "again",
                    stacklevel=2,
                )

    def reload(self, key: str) -> bytes:
        """Return a piece that `read` has yielded before.

        Raises:
            ValueError: If it has been removed or damaged since.
        """
        path = self._files[key]
        # A scan, as in `read`, finds what a damaged index of keys does not.
        for query, values in (("SELECT * FROM pieces WHERE key = ?", [key]), (ALL, [])):
            with suppress(*DAMAGE):
                for stored, content in _pieces(path, query, *values):
                    if stored == key:
                        return content
        raise ValueError(f"piece {key!r} was removed from {path} after it was read")

    def add(self, key: str, content: bytes) -> None:
        """Store a piece; it is on the disk when this returns.

        Raises:
            OSError: If it could not be written, as on a full disk.
        """
        try:
            self._write(key, content)
        except sqlite3.Error as error:
            raise OSError(
                f"piece {key!r} could not be stored in {self.folder}: {error}. Is the disk full? "
                "Earlier pieces are safe: free some space and continue with --resume"
            ) from error

    def _write(self, key: str, content: bytes) -> None:
        if self._connection is None:
            self._connection = sqlite3.connect(self.folder / f"{uuid.uuid4().hex}.sqlite")
            self._connection.execute("PRAGMA synchronous = FULL")
            with self._connection:
                self._connection.execute(TABLE)
        with self._connection:
            self._connection.execute(
                "INSERT OR REPLACE INTO pieces VALUES (?, ?, ?)",
                (key, content, _checksum(key, content)),
            )

    def close(self) -> None:
        """Close the process's file and release its lock."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _pieces(path: Path, query: str, *values: str) -> Iterator[tuple[str, bytes]]:
    with closing(sqlite3.connect(path)) as connection:
        if not connection.execute("SELECT name FROM sqlite_master").fetchall():
            return  # the process was killed before it wrote anything
        for key, content, checksum in connection.execute(query, values):
            # A flipped bit can change their types, too.
            sound = isinstance(key, str) and isinstance(content, bytes)
            if sound and _checksum(key, content) == checksum:
                yield key, content
            else:
                warnings.warn(
                    f"piece {key!r:.80} in {path} fails its checksum and is computed again",
                    stacklevel=3,
                )


def _write_whole(path: Path, text: str) -> None:
    """Write a file completely or, if killed meanwhile, not at all."""
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _checksum(key: str, content: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b"\0" + content).digest()


def _check_same(folder: Path, settings: Any) -> None:
    """Check that the run in a folder has the same settings."""
    try:
        before = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{folder / ABOUT} is damaged ({error}), so the settings of the run are unknown; start "
            "a new run in another folder"
        ) from None
    changed = list(_differences("", before, settings))
    if changed:
        raise ValueError(
            f"the run in {folder} cannot be resumed, because its settings differ: "
            f"{'; '.join(changed[:5])}"
            + (f"; and {len(changed) - 5} more" if len(changed) > 5 else "")
        )


def _differences(where: str, before: Any, now: Any) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            name = f"{where}.{key}" if where else key
            yield from _differences(name, before.get(key), now.get(key))
    elif before != now:
        yield f"{where} was {_short(before)}, is {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
