"""Exported maps, read back lazily."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from captum_clip_surgery.export._extras import zarr
from captum_clip_surgery.export._manifest import INDEX, MANIFEST, coded
from captum_clip_surgery.export._shards import checksum


class MapStore(Mapping[str, np.ndarray]):
    """Exported maps by image name, read lazily one at a time.

    Values are arrays (K, h, w), float16. A store can be pickled and shared by threads and forked
    workers. Use `load_maps` to open one.

    Attributes:
        path: Folder of the export.
        texts: The K texts.
        manifest: Content of `manifest.json`.
        unreadable: Reasons by name, for images without maps.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        texts = manifest["settings"]["texts"]
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError("its texts are no list of strings")
        if type(manifest["images"]) is not int or not 0 <= manifest["images"] < 2**63:
            raise ValueError(f"it has {manifest['images']!r} images")
        for known in (manifest["index"], *manifest["shards"]):
            _inside(path, known["file"])
        self._files = {known["file"] for known in manifest["shards"]}
        self.texts: tuple[str, ...] = tuple(texts)
        self.unreadable: dict[str, str] = {
            entry["image"]: entry["reason"] for entry in manifest["unreadable"]
        }

    def __getitem__(self, name: str) -> np.ndarray:
        file, place = self._row(name, "file, place")
        path, numbers = _inside(self.path, str(file)), self._numbers(place)
        if file not in self._files:
            raise self._damaged_index(f"the shard {file!r:.80}, which the manifest does not")
        read, count = (_from_tar, 3) if file.endswith(".tar") else (_from_zarr, 2)
        if len(numbers) != count or min(numbers) < 0:
            raise self._damaged_index(f"a place {place!s:.80}")
        return read(path, name, *numbers)

    def __iter__(self) -> Iterator[str]:
        last = 0
        # In portions: no question stays open between, wherever the next is asked.
        while rows := self._ask(
            "SELECT position, name FROM images WHERE position > ? ORDER BY position LIMIT 1000",
            last,
        ):
            yield from (_plain(name) for _, name in rows)
            last = rows[-1][0]

    def __len__(self) -> int:
        return int(self.manifest["images"])

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        return bool(self._ask("SELECT 1 FROM images WHERE name = ?", coded(name)))

    def top(self, name: str) -> list[tuple[str, float]]:
        """Return the texts that match an image best with CLIP's cosines, best first.

        Raises:
            KeyError: If there is no such image.
        """
        texts, cosines = self._row(name, "top, scores")
        top, scores = self._numbers(texts), self._numbers(cosines, (int, float))
        if len(top) != len(scores) or not all(text in range(len(self.texts)) for text in top):
            raise self._damaged_index(f"the texts {top!s:.80}")
        return [(self.texts[text], score) for text, score in zip(top, scores, strict=True)]

    def size(self, name: str) -> tuple[int, int]:
        """Return height and width of an original image in pixels.

        Raises:
            KeyError: If there is no such image.
        """
        (size,) = self._row(name, "size")
        numbers = self._numbers(size)
        if len(numbers) != 2:
            raise self._damaged_index(f"a size {size!s:.80}")
        return numbers[0], numbers[1]

    def verify(self) -> None:
        """Compare all files with their checksums.

        Raises:
            ValueError: If files are missing or changed; the message names them.
        """
        wrong = []
        for known in (self.manifest["index"], *self.manifest["shards"]):
            path = self.path / known["file"]
            try:
                found = checksum(path)[0] if path.exists() else "missing"
            except OSError as error:
                found = str(error)
            if found != known["sha256"]:
                wrong.append(f"{known['file']} ({'missing' if found == 'missing' else 'changed'})")
        if wrong:
            raise ValueError(
                f"{len(wrong)} files of {self.path} are not as they were written: "
                f"{', '.join(wrong[:5])}{' ...' if len(wrong) > 5 else ''}; export again with "
                "--resume to make them anew"
            )

    def __repr__(self) -> str:
        return f"MapStore({str(self.path)!r}, {len(self)} images, {len(self.texts)} texts)"

    def _row(self, name: str, columns: str) -> tuple[Any, ...]:
        rows = self._ask(f"SELECT {columns} FROM images WHERE name = ?", coded(name))
        if not rows:
            why = self.unreadable.get(name)
            raise KeyError(f"{name}: {why}" if why else name)
        return rows[0]

    def _numbers(self, written: str, kinds: tuple[type, ...] = (int,)) -> list[Any]:
        try:
            numbers = json.loads(written)
        except (ValueError, TypeError, RecursionError):
            numbers = None
        if not isinstance(numbers, list) or any(type(n) not in kinds for n in numbers):
            raise self._damaged_index(str(written)[:80])
        return numbers

    def _damaged_index(self, what: str) -> ValueError:
        return ValueError(
            f"{self.path / INDEX} is damaged: it holds {what}; export again with --resume to make "
            "it anew"
        )

    def _ask(self, question: str, *values: Any) -> list[Any]:
        # A connection each time, as none may be shared by threads or forks.
        uri = (self.path / INDEX).resolve().as_uri() + "?mode=ro&immutable=1"
        try:
            with closing(sqlite3.connect(uri, uri=True)) as database:
                return database.execute(question, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise ValueError(
                f"{self.path / INDEX} cannot be read ({error}); export again with --resume to "
                "make it anew"
            ) from None


def load_maps(path: str | os.PathLike[str]) -> MapStore:
    """Open an export as a mapping from image names to arrays.

    Args:
        path: Folder that `export_maps` or `clip-surgery export` wrote.

    Returns:
        The maps; none is read yet.

    Raises:
        FileNotFoundError: If there is no finished export in the folder.
        ValueError: If the manifest is damaged.

    Example::

        maps = load_maps("out")
        maps["cats/one.jpg"].shape, maps.top("cats/one.jpg")[0]
    """
    folder = Path(path)
    file = folder / MANIFEST
    if not file.is_file():
        raise FileNotFoundError(
            f"no {MANIFEST} in {folder}: no export is there, or it has not ended; --resume goes "
            "on with it"
        )
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        return MapStore(folder, manifest)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{file} is no manifest of an export: {error!r:.200}") from None


def _inside(folder: Path, file: str) -> Path:
    """Return the path of an export's file; a path that leads elsewhere raises ValueError."""
    path = Path(file)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{file!r:.80} leads out of the export in {folder}")
    return folder / path


def _from_tar(path: Path, name: str, offset: int, length: int, crc: int) -> np.ndarray:
    with path.open("rb") as file:
        # No more than there is: a length is believed only after its checksum.
        file.seek(min(offset, path.stat().st_size))
        content = file.read(min(length, path.stat().st_size))
    if zlib.crc32(content) != crc:
        raise _damaged(path, name)
    return np.load(io.BytesIO(content), allow_pickle=False)


def _from_zarr(path: Path, name: str, row: int, crc: int) -> np.ndarray:
    try:
        found = np.asarray(_opened(path, path.stat().st_mtime_ns)[row])
    except (ValueError, RuntimeError, OSError) as error:
        raise _damaged(path, name) from error
    if zlib.crc32(np.ascontiguousarray(found).data) != crc:
        raise _damaged(path, name)
    return found


@lru_cache(maxsize=32)
def _opened(path: Path, _: int) -> Any:
    return zarr().open_array(path / "maps", mode="r")


def _damaged(path: Path, name: str) -> ValueError:
    return ValueError(
        f"{path}: the map of {name!r} is damaged; export again with --resume to make it anew"
    )


def _plain(name: str) -> str:
    return unquote(name, errors="surrogateescape")
