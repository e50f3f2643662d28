"""Finished pieces of a long run, kept as they come, so that it can be gone on with after any end.

A journal is a folder: `run.json` says what the run is of, and each process writes its pieces to an
SQLite file of its own, whose transactions survive a kill at any moment. A piece carries a checksum;
one that fails it, and a file that cannot be read, count as not done and are said so. While a
process has a journal open it holds a lock, so that a run whose processes outlive a kill is not gone
on with under their hands.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from captum_clip_surgery._utils.errors import error_message
from captum_clip_surgery._utils.locks import Lock

ABOUT = "run.json"
TABLE = "CREATE TABLE pieces (key TEXT PRIMARY KEY, content BLOB NOT NULL, checksum BLOB NOT NULL)"
ALL = "SELECT * FROM pieces"
#: What damage looks like: SQLite takes absurd sizes for a lack of memory.
DAMAGE = (sqlite3.Error, ValueError, OverflowError, MemoryError)


class Journal:
    """The journal of one run in a folder; make it on one process, `join` it on others.

    Args:
        folder: where it is kept.
        about: what the run is of, all that changes its results; JSON.
        resume: go on with the run that lies there.

    Raises:
        FileExistsError: a run lies there and is not to be gone on with, or is still going on; or
            pieces of a run of which nothing says what it was.
        ValueError: the run that lies there is of something else; says what differs.

    Example::

        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "journal"
        >>> with Journal(folder, {"images": 2}) as journal:
        ...     journal.add("0", b"done")
        >>> with Journal(folder, {"images": 2}, resume=True) as journal:
        ...     journal.finished()
        {'0': b'done'}
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], resume: bool = False) -> None:
        self.folder = folder
        self._connection: sqlite3.Connection | None = None
        self._places: dict[str, Path] = {}  # of pieces that were read, the file each lies in
        folder.mkdir(parents=True, exist_ok=True)
        self._lock: Lock | None = Lock(folder, alone=True)
        try:
            self._begin(json.loads(json.dumps(about)), resume)
        except BaseException:
            self.close()
            raise
        self._lock.share()

    def _begin(self, about: Any, resume: bool) -> None:
        if (self.folder / ABOUT).exists():
            if not resume:
                raise FileExistsError(
                    f"{self.folder} holds a run already; --resume goes on with it, or choose "
                    "another folder"
                )
            _check_same(self.folder, about)
        elif any(self.folder.glob("*.sqlite")):
            raise FileExistsError(
                f"{self.folder} holds pieces of a run, but no {ABOUT}, which says what they are "
                "of; choose another folder"
            )
        else:
            if resume:
                warnings.warn(
                    f"{self.folder} holds no run to go on with: it begins anew", stacklevel=3
                )
            _write_whole(self.folder / ABOUT, json.dumps(about, indent=2) + "\n")

    @classmethod
    def join(cls, folder: Path) -> Self:
        """A journal that another process has made.

        Raises:
            FileNotFoundError: there is none, as where machines do not share the folder.
        """
        if not (folder / ABOUT).exists():
            raise FileNotFoundError(
                f"{folder / ABOUT}, which the first process made, is not to be seen from here: all "
                "processes need to share the folder"
            )
        journal = cls.__new__(cls)
        journal.folder, journal._connection, journal._places = folder, None, {}
        journal._lock = Lock(folder, alone=False)
        return journal

    def finished(self) -> dict[str, bytes]:
        """All pieces of all processes, by key; warns of those that are damaged."""
        return dict(self.read())

    def read(self) -> Iterator[tuple[str, bytes]]:
        """All pieces of all processes, one after the other; warns of those that are damaged."""
        for path in sorted(self.folder.glob("*.sqlite")):
            try:
                for key, content in _pieces(path, ALL):
                    self._places[key] = path
                    yield key, content
            except DAMAGE as error:
                warnings.warn(
                    f"{path} is damaged ({error_message(error):.200}); what it held is done again",
                    stacklevel=2,
                )

    def again(self, key: str) -> bytes:
        """A piece that `read` has given before, without keeping it in between.

        Raises:
            ValueError: it is no longer there, or has been damaged since.
        """
        path = self._places[key]
        # One after the other, as `read` does, finds what a damaged index of keys does not.
        for query, values in (("SELECT * FROM pieces WHERE key = ?", [key]), (ALL, [])):
            with suppress(*DAMAGE):
                for found, content in _pieces(path, query, *values):
                    if found == key:
                        return content
        raise ValueError(f"piece {key!r} has gone from {path} since it was read")

    def add(self, key: str, content: bytes) -> None:
        """Keep a piece; it is on the disk when this returns.

        Raises:
            OSError: it could not be written, as on a full disk.
        """
        try:
            self._write(key, content)
        except sqlite3.Error as error:
            raise OSError(
                f"piece {key!r} could not be kept in {self.folder}: {error}. Is the disk full? "
                "What was kept before is safe: make room, and --resume goes on with it"
            ) from error

    def _write(self, key: str, content: bytes) -> None:
        if self._connection is None:
            name = self.folder / f"{uuid.uuid4().hex}.sqlite"
            self._connection = sqlite3.connect(name)
            self._connection.execute("PRAGMA synchronous = FULL")
            with self._connection:
                self._connection.execute(TABLE)
        with self._connection:
            self._connection.execute(
                "INSERT OR REPLACE INTO pieces VALUES (?, ?, ?)",
                (key, content, _checksum(key, content)),
            )

    def close(self) -> None:
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
    connection = sqlite3.connect(path)
    try:
        if not connection.execute("SELECT name FROM sqlite_master").fetchall():
            return  # killed before it wrote anything
        for key, content, checksum in connection.execute(query, values):
            # A flipped bit can change what kind of thing they are, too.
            sound = isinstance(key, str) and isinstance(content, bytes)
            if sound and _checksum(key, content) == checksum:
                yield key, content
            else:
                warnings.warn(
                    f"piece {key!r:.80} in {path} fails its checksum and is done again",
                    stacklevel=3,
                )
    finally:
        connection.close()


def _write_whole(path: Path, text: str) -> None:
    """A file whole or not at all: a kill between leaves no half of it."""
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _checksum(key: str, content: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b"\0" + content).digest()


def _check_same(folder: Path, about: Any) -> None:
    """Whether a run is the one that lies in a folder."""
    try:
        before = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{folder / ABOUT} is damaged ({error}): nobody can tell what the run was of; begin "
            "anew in another folder"
        ) from None
    changed = list(_differences("", before, about))
    if changed:
        raise ValueError(
            f"the run in {folder} was of something else, so that it cannot be gone on with: "
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
