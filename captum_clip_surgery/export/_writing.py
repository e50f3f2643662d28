"""Background writing of shards by a thread of its own."""

from __future__ import annotations

import json
import queue
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from captum_clip_surgery._utils.checkpoint import CheckpointStore
from captum_clip_surgery.export._explaining import BatchResult
from captum_clip_surgery.export._reading import Batch
from captum_clip_surgery.export._shards import ImageRecord, ShardWriter

#: Batches that wait to be written at most.
WAITING = 4
PATIENCE = 0.05  # seconds between looks at whether the writer lives


@dataclass(frozen=True)
class ShardRecord:
    """A finished shard in the journal.

    Attributes:
        number: Number of the input shard.
        file: File of the output shard; None if no image was readable.
        sha256: Checksum of the file.
        size: Size of the file in bytes.
        images: Number of images in it.
        unreadable: Names of unreadable images, each with the reason.
    """

    number: int
    file: str | None
    sha256: str
    size: int
    images: int
    unreadable: list[tuple[str, str]]

    @property
    def key(self) -> str:
        # With the checksum: a piece made twice is two entries, one of which its file matches.
        return f"{self.number:06d} {self.sha256}"

    def packed(self, rows: Sequence[ImageRecord]) -> bytes:
        """Serialize as a line of JSON, then the compressed image records, which are rarely read."""
        described = json.dumps([asdict(row) for row in rows]).encode()
        return json.dumps(asdict(self)).encode() + b"\n" + zlib.compress(described)

    @classmethod
    def unpacked(cls, content: bytes) -> Self:
        """Deserialize what `packed` wrote; anything else raises ValueError."""
        try:
            said: dict[str, Any] = json.loads(content.partition(b"\n")[0])
            said["unreadable"] = [(name, reason) for name, reason in said["unreadable"]]
            entry = cls(**said)
            _check_kinds(int, entry.number, entry.size, entry.images)
            texts = [text for pair in entry.unreadable for text in pair]
            _check_kinds(str, "" if entry.file is None else entry.file, entry.sha256, *texts)
            return entry
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise _none_of_an_export(error) from error


def rows_of(content: bytes) -> list[ImageRecord]:
    """Return the image records of a packed shard record; anything else raises ValueError."""
    try:
        described = json.loads(zlib.decompress(content.partition(b"\n")[2]))
        rows = [ImageRecord(**row | {"size": tuple(row["size"])}) for row in described]
        _check_kinds(str, *(row.name for row in rows))
        return rows
    except (zlib.error, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _none_of_an_export(error) from error


def _check_kinds(kind: type, *values: Any) -> None:
    """Check the exact type of values; raise TypeError otherwise."""
    for value in values:
        if type(value) is not kind:
            raise TypeError(f"{value!r:.80} is no {kind.__name__}")


def _none_of_an_export(error: Exception) -> ValueError:
    return ValueError(f"a piece of the journal is none of an export: {error!r:.200}")


@dataclass
class _Open:
    """A shard that is being written."""

    shard: ShardWriter | None
    unreadable: list[tuple[str, str]]


class AsyncShardWriter:
    """Writer of batches in a thread; `waited` counts the seconds it held others up.

    Leaving its `with` block waits for the rest to be written. After an exception nothing more is
    written, and unfinished shards are removed.

    Args:
        journal: Folder of a journal that exists.
        make: Function that returns a writer for the number of a shard.
    """

    def __init__(self, journal: Path, make: Callable[[int], ShardWriter]) -> None:
        self.waited = 0.0
        self._journal = journal
        self._make = make
        self._queue: queue.Queue[tuple[Batch, BatchResult | None] | None] = queue.Queue(WAITING)
        self._error: BaseException | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shard-writer", daemon=True)

    def put(self, batch: Batch, found: BatchResult | None) -> None:
        """Hand over a batch, with None if all its images are unreadable.

        Raises:
            Exception: If the writer failed; its exception, as soon as it is known.
        """
        start = time.perf_counter()
        self._put((batch, found))
        self.waited += time.perf_counter() - start

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._put(None)
        finally:
            # Where all went well the thread ends by the None and drops nothing.
            if kind is not None or self._error is not None:
                self._stopped.set()
            self._thread.join()
        if kind is None:
            self._check()

    def _put(self, item: tuple[Batch, BatchResult | None] | None) -> None:
        while True:
            self._check()
            try:
                self._queue.put(item, timeout=PATIENCE)
            except queue.Full:
                continue
            return

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    # --- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        opened: dict[int, _Open] = {}
        try:
            # SQLite's connections belong to the thread that made them.
            with CheckpointStore.open(self._journal) as journal:
                while (item := self._next()) is not None:
                    self._write(*item, opened, journal)
        except BaseException as error:
            self._error = error
        finally:
            for piece in opened.values():
                if piece.shard is not None:
                    _abandon(piece.shard)

    def _next(self) -> tuple[Batch, BatchResult | None] | None:
        while not self._stopped.is_set():
            try:
                return self._queue.get(timeout=PATIENCE)
            except queue.Empty:
                continue
        return None

    def _write(
        self,
        batch: Batch,
        found: BatchResult | None,
        opened: dict[int, _Open],
        journal: CheckpointStore,
    ) -> None:
        piece = opened.setdefault(batch.piece, _Open(None, []))
        piece.unreadable += batch.unreadable
        if found is not None:
            if piece.shard is None:
                piece.shard = self._make(batch.piece)
            piece.shard.add(batch.names, batch.sizes, found)
        if not batch.last:
            return
        file, sha256, size = None, "", 0
        rows: list[ImageRecord] = []
        if piece.shard is not None:
            sha256, size = piece.shard.finish()
            file, rows = piece.shard.file, piece.shard.rows
        entry = ShardRecord(batch.piece, file, sha256, size, len(rows), piece.unreadable)
        journal.add(entry.key, entry.packed(rows))
        del opened[batch.piece]


def _abandon(shard: ShardWriter) -> None:
    # What made it end is what counts; the next run removes what stays.
    with suppress(OSError):
        shard.abandon()


def entries(journal: CheckpointStore) -> dict[int, list[ShardRecord]]:
    """Return the entries of a journal by the number of their shard."""
    found: dict[int, list[ShardRecord]] = {}
    for _, content in journal.read():
        entry = ShardRecord.unpacked(content)
        found.setdefault(entry.number, []).append(entry)
    return found
