"""Rows of an export as Parquet stores them, written in the background."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Self

from captum_clip_surgery._utils.pieces import Pieces, arrow
from captum_clip_surgery.export._explaining import BatchResult
from captum_clip_surgery.export._reading import Batch

#: Rows of a row group, of which a reader of one map reads all, and their bytes at most.
GROUP_ROWS, GROUP_BYTES = 64, 2**25
#: Batches that wait to be written at most.
WAITING = 4
#: Maps and embeddings hardly compress; only names are searched by their least and greatest value.
WRITER_OPTIONS: dict[str, Any] = {
    "compression": {"name": "zstd", "top_texts.list.element": "zstd", "reason": "zstd"},
    "use_dictionary": ["top_texts.list.element", "reason", "maps_shape.list.element"],
    "write_statistics": ["name"],
}


def schema(texts: Sequence[str]) -> Any:
    """Return the schema of an export's files, whose metadata holds the texts of the maps."""
    pa = arrow()
    columns = {
        "name": pa.string(),
        "height": pa.int32(),
        "width": pa.int32(),
        "embedding": pa.list_(pa.float32()),
        "top_texts": pa.list_(pa.string()),
        "top_scores": pa.list_(pa.float32()),
        "maps": pa.binary(),  # Spark cannot read half precision
        "maps_shape": pa.list_(pa.int32()),
        "reason": pa.string(),
    }
    return pa.schema(columns, {"texts": json.dumps(list(texts))})


def plain_name(name: str) -> str:
    r"""Return a file's name as text, with bytes that are not UTF-8 as `\xff`.

    Example::

        >>> print(plain_name("caf\udce9.jpg"))
        caf\xe9.jpg
    """
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def rows_of(
    batch: Batch, found: BatchResult | None, texts: Sequence[str], maps: bool
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a batch, readable images first.

    Args:
        batch: The batch.
        found: Results for its readable images; None if there are none.
        texts: Texts of the maps.
        maps: Whether to store maps.
    """
    for index, (name, (height, width)) in enumerate(zip(batch.names, batch.sizes, strict=True)):
        assert found is not None
        yield {
            "name": plain_name(name),
            "height": height,
            "width": width,
            "embedding": found.embeddings[index],
            "top_texts": [texts[text] for text in found.top_indices[index]],
            "top_scores": found.top_scores[index],
            "maps": found.maps[index].astype("<f2", copy=False).tobytes() if maps else None,
            "maps_shape": list(found.maps.shape[1:]) if maps else None,
        }
    for name, reason in batch.unreadable:
        yield {"name": plain_name(name), "reason": plain_name(reason)}


class _PieceFile:
    """A piece that is being written; after an error nothing of it remains."""

    def __init__(self, pieces: Pieces, number: int, columns: Any) -> None:
        self._columns = columns
        self._writer = pieces.writer(number, columns, **WRITER_OPTIONS)
        self._write = self._writer.__enter__()
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        self._bytes += len(row.get("maps") or b"")
        if len(self._rows) == GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._write(arrow().Table.from_pylist(self._rows, schema=self._columns))
        self._rows, self._bytes = [], 0

    def finish(self) -> None:
        self._flush()
        self._writer.__exit__(None, None, None)

    def abandon(self, error: BaseException) -> None:
        """Remove what was written; raise an error of the disk as one that says how to resume."""
        self._writer.__exit__(type(error), error, error.__traceback__)


class RowWriter:
    """Writer of batches in a thread; `waited` counts the seconds it held others up.

    Leaving its `with` block waits for the rest to be written. After an exception nothing more is
    written, and unfinished pieces are removed.

    Args:
        pieces: The pieces to write.
        texts: Texts of the maps.
        maps: Whether to store maps.
    """

    def __init__(self, pieces: Pieces, texts: Sequence[str], maps: bool) -> None:
        self.waited = 0.0
        self._pieces, self._texts, self._maps = pieces, texts, maps
        self._schema = schema(texts)
        self._open: dict[int, _PieceFile] = {}
        self._thread = ThreadPoolExecutor(1, "piece-writer")
        self._pending: list[Future[None]] = []

    def put(self, batch: Batch, found: BatchResult | None) -> None:
        """Hand over a batch, with None if all its images are unreadable.

        Raises:
            OSError: If an earlier batch could not be written.
        """
        start = time.perf_counter()
        self._pending.append(self._thread.submit(self._add, batch, found))
        while self._pending and (self._pending[0].done() or len(self._pending) > WAITING):
            self._pending.pop(0).result()
        self.waited += time.perf_counter() - start

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, _: object) -> None:
        try:
            for future in self._pending if kind is None else ():
                future.result()
        finally:
            self._thread.shutdown(cancel_futures=True)
            for file in self._open.values():
                with suppress(Exception):  # what ended the block is what counts
                    file.abandon(error or sys.exception() or InterruptedError())

    def _add(self, batch: Batch, found: BatchResult | None) -> None:
        number = batch.piece
        if number not in self._open:
            self._open[number] = _PieceFile(self._pieces, number, self._schema)
        file = self._open[number]
        try:
            for row in rows_of(batch, found, self._texts, self._maps):
                file.add(row)
        except BaseException as error:
            del self._open[number]
            file.abandon(error)
            raise
        if batch.last:
            del self._open[number]
            file.finish()
