"""Writers of shards. A shard has a temporary name until it is complete."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from captum_clip_surgery.export._explaining import BatchResult
from captum_clip_surgery.export._extras import webdataset, zarr

FOLDER = "shards"
PART = ".part"
#: Images in one file of a Zarr array; also how many are held until they are written.
BLOCK = 64


@dataclass(frozen=True)
class ImageRecord:
    """An image in a shard.

    Attributes:
        name: Name of the image.
        place: Position of its maps and their CRC-32: (offset, bytes, CRC) in a tar, (row, CRC) in
            Zarr.
        size: Height and width of the original image.
        top: Indices of the best texts, best first.
        scores: Scores of these texts.
    """

    name: str
    place: Sequence[int]
    size: tuple[int, int]
    top: Sequence[int]
    scores: Sequence[float]


class ShardWriter(ABC):
    """A shard that is being written; it gets its name in `finish`.

    Args:
        folder: Folder of the export.
        number: Number of the input shard.
        texts: Texts of the maps.
    """

    suffix = ""

    def __init__(self, folder: Path, number: int, texts: Sequence[str]) -> None:
        self.file = f"{FOLDER}/{number:06d}{self.suffix}"
        self.path = folder / self.file
        self.part = self.path.with_name(self.path.name + PART)
        self.texts = texts
        self.rows: list[ImageRecord] = []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        remove(self.part)

    @abstractmethod
    def add(
        self, names: Sequence[str], sizes: Sequence[tuple[int, int]], found: BatchResult
    ) -> None:
        """Write the maps of a batch."""

    @abstractmethod
    def _close(self) -> None:
        """Write the rest and close the file."""

    def finish(self) -> tuple[str, int]:
        """Complete the shard on the disk, name it, and return its SHA-256 and size in bytes."""
        self._close()
        for path in files_of(self.part):
            sync(path)
        found = checksum(self.part)
        if self.path.is_dir():  # a damaged one; a file is replaced
            remove(self.path)
        self.part.replace(self.path)
        sync(self.path.parent)
        return found

    def abandon(self) -> None:
        """Remove what was written."""
        remove(self.part)


class TarShardWriter(ShardWriter):
    """Writer of a WebDataset tar with KEY.maps.npy (K, h, w) and KEY.json for each image."""

    suffix = ".tar"

    def __init__(self, folder: Path, number: int, texts: Sequence[str]) -> None:
        super().__init__(folder, number, texts)
        self._stream = self.part.open("wb")
        # The time is fixed: the same maps are the same bytes. Long names need pax.
        self._writer = webdataset().TarWriter(self._stream, mtime=0, format="PAX_FORMAT")
        self._used: dict[str, int] = {}

    def add(
        self, names: Sequence[str], sizes: Sequence[tuple[int, int]], found: BatchResult
    ) -> None:
        for index, (name, size) in enumerate(zip(names, sizes, strict=True)):
            top, scores = found.top_indices[index].tolist(), found.top_scores[index].tolist()
            best = [[self.texts[text], score] for text, score in zip(top, scores, strict=True)]
            maps = npy(found.maps[index])
            about = {"name": name, "size": list(size), "top": best}
            self._writer.write(
                {
                    "__key__": self._key(name),
                    "json": json.dumps(about).encode(),
                    "maps.npy": maps,
                }
            )
            self.rows.append(ImageRecord(name, (len(maps), zlib.crc32(maps)), size, top, scores))

    def _key(self, name: str) -> str:
        """Return a unique key, even if two images have the same name."""
        key = key_of(name)
        self._used[key] = count = self._used.get(key, 0) + 1
        return key if count == 1 else f"{key}%7E{count}"

    def _close(self) -> None:
        self._writer.close()
        self._stream.flush()
        self._stream.close()
        places = (place for name, place in _places(self.part) if name.endswith(".maps.npy"))
        self.rows = [
            ImageRecord(row.name, (offset, *row.place), row.size, row.top, row.scores)
            for row, offset in zip(self.rows, places, strict=True)
        ]

    def abandon(self) -> None:
        with suppress(OSError, ValueError):  # it would write its end, later still otherwise
            self._writer.close()
        with suppress(OSError):
            self._stream.close()
        super().abandon()


class ZarrShardWriter(ShardWriter):
    """Writer of a Zarr group: `maps` (N, K, h, w), `top` and `scores` (N, T), `sizes` (N, 2).

    The maps of an image are one chunk with a checksum; 64 chunks are one file. Names are an
    attribute.
    """

    suffix = ".zarr"

    def __init__(self, folder: Path, number: int, texts: Sequence[str]) -> None:
        super().__init__(folder, number, texts)
        self._group = zarr().open_group(self.part, mode="w")
        self._maps: Any = None
        self._waiting: list[np.ndarray] = []

    def add(
        self, names: Sequence[str], sizes: Sequence[tuple[int, int]], found: BatchResult
    ) -> None:
        for index, (name, size) in enumerate(zip(names, sizes, strict=True)):
            top, scores = found.top_indices[index].tolist(), found.top_scores[index].tolist()
            # Zarr takes what is missing for zeros.
            crc = zlib.crc32(np.ascontiguousarray(found.maps[index]).data)
            self.rows.append(ImageRecord(name, (len(self.rows), crc), size, top, scores))
            self._waiting.append(found.maps[index])
            if len(self._waiting) == BLOCK:
                self._write()

    def _write(self) -> None:
        block = np.stack(self._waiting)
        if self._maps is None:
            self._maps = self._array("maps", block[:0], chunk=1)
        # Blocks are whole files, so that none is read to be written again.
        self._maps.append(block)
        self._waiting.clear()

    def _array(self, name: str, values: np.ndarray, chunk: int) -> Any:
        rest = values.shape[1:]
        array = self._group.create_array(
            name,
            shape=values.shape,
            dtype=values.dtype,
            chunks=(chunk, *(max(side, 1) for side in rest)),
            shards=(BLOCK, *(max(side, 1) for side in rest)) if chunk < BLOCK else None,
            compressors=[zarr().codecs.Crc32cCodec()],
        )
        array[:] = values
        return array

    def _close(self) -> None:
        if self._waiting:
            self._write()
        rows, kinds = self.rows, {"top": np.int32, "scores": np.float32, "sizes": np.int32}
        for name, values in (
            ("top", [row.top for row in rows]),
            ("scores", [row.scores for row in rows]),
            ("sizes", [row.size for row in rows]),
        ):
            self._array(name, np.array(values, kinds[name]), chunk=1000)
        self._group.attrs.update(
            {"names": [key_of(row.name) for row in rows], "texts": list(self.texts)}
        )


#: Shards by the name of their format.
FORMATS: Mapping[str, type[ShardWriter]] = {"webdataset": TarShardWriter, "zarr": ZarrShardWriter}


def key_of(name: str) -> str:
    """Return an image's name as a key without path traversal; `urllib.parse.unquote` undoes it.

    Dots are written as %2E: WebDataset ends a key at the first dot, and no path goes up without
    dots.

    Example::

        >>> key_of("cats/one.jpg"), key_of("../../etc/passwd"), key_of("/a//b")
        ('cats/one%2Ejpg', '%2E%2E/%2E%2E/etc/passwd', '%2Fa/%2Fb')
    """
    key = quote(name, safe="/", errors="surrogateescape").replace(".", "%2E")
    # Neither empty parts nor what WebDataset takes for its own notes.
    return re.sub(r"^__", "%5F_", re.sub(r"(?<![^/])/|/$", "%2F", key))


def npy(array: np.ndarray) -> bytes:
    """Return an array in NumPy's file format."""
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()


def checksum(path: Path) -> tuple[str, int]:
    """Return the SHA-256 and the size in bytes of a file, or of a folder's files and names."""
    digest, total = hashlib.sha256(), 0
    for file in files_of(path):
        with file.open("rb") as stream:
            if file == path:
                digest = hashlib.file_digest(stream, "sha256")
            else:
                name = file.relative_to(path).as_posix()
                inner = hashlib.file_digest(stream, "sha256").hexdigest()
                digest.update(f"{inner}  {name}\n".encode())
        total += file.stat().st_size
    return digest.hexdigest(), total


def files_of(path: Path) -> list[Path]:
    """Return a file itself, or all files of a folder sorted by name."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    return [path]


def remove(path: Path) -> None:
    """Remove a file or a folder, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _places(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the names and offsets of a tar's files."""
    with tarfile.open(path, "r:") as archive:
        while (member := archive.next()) is not None:
            yield member.name, member.offset_data
            archive.members.clear()  # type: ignore[attr-defined]


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of files, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
