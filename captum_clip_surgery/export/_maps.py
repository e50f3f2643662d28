"""Exported maps, read back lazily."""

from __future__ import annotations

import os
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from captum_clip_surgery._utils.pieces import RUN, Pieces, damage_as_error, read_run
from captum_clip_surgery.export._listing import LISTING, Listing
from captum_clip_surgery.export._plan import DATA
from captum_clip_surgery.export._rows import plain_name, schema
from captum_clip_surgery.export._summary import read_summary


class MapStore(Mapping[str, np.ndarray]):
    """Exported maps by image name, read lazily.

    Values are arrays (K, h, w), float16, of the part of an image that `covered` returns. A store
    can be pickled and shared by threads and workers. Use `load_maps` to open one.

    Args:
        path: Folder of the export.

    Attributes:
        path: Folder of the export.
        settings: Settings of the export.
        texts: The K texts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings: dict[str, Any] = read_run(path)
        try:
            listing = path / LISTING
            count = len(Listing(listing)) if listing.exists() else self.settings["source"]["shards"]
            texts = self.settings["model"]["texts"]
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise TypeError("its texts are not a list of strings")
            covered, shown = self.settings["covered"], self.settings["options"]["size"]
            pairs = zip(covered, shown, strict=True)
            self._covered = tuple(float(part / whole) for part, whole in pairs)
            if len(self._covered) != 2 or not all(0 < share <= 1 for share in self._covered):
                raise TypeError(f"its maps cover {covered!r:.80} of {shown!r:.80} pixels")
            if not isinstance(count, int):
                raise TypeError(f"it has {count!r:.80} shards")
        except (ArithmeticError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path / RUN} does not describe an export: {error!r:.200}") from None
        self.texts = tuple(texts)
        self._pieces = Pieces(path / DATA, count)
        self._summary = read_summary(path, self._pieces)

    @property
    def missing(self) -> int:
        """Number of files that are not there yet; 0 once the export has ended."""
        return self._pieces.count - len(self._summary.numbers)

    @property
    def unreadable(self) -> dict[str, str]:
        """Reasons by name, for images that could not be read."""
        found = {}
        summary = self._summary
        for number, count in zip(summary.numbers, summary.unreadable, strict=True):
            if count:
                table = self._pieces.read(number, ["name", "reason"]).to_pydict()
                pairs = zip(table["name"], table["reason"], strict=True)
                found.update({name: reason for name, reason in pairs if reason is not None})
        return found

    def __getitem__(self, name: str) -> np.ndarray:
        array = self._row(name, _to_array, "maps", "maps_shape")
        if array is None:
            raise KeyError(f"{name}: the export stores no maps")
        return array

    def __iter__(self) -> Iterator[str]:
        new = {place: name for name, place in self._summary.repeated.items()}
        for number in self._summary.numbers:
            for row, (name, reason) in enumerate(self._names(number)):
                if reason is None:
                    yield new.get((number, row), name)

    def __len__(self) -> int:
        return sum(self._summary.images)

    def __contains__(self, name: object) -> bool:
        try:
            return isinstance(name, str) and self._place(name) is not None
        except KeyError:
            return False

    def top(self, name: str) -> list[tuple[str, float]]:
        """Return the texts that match an image best with CLIP's cosines, best first.

        Raises:
            KeyError: If there is no such image.
        """
        return self._row(
            name, lambda *columns: list(zip(*columns, strict=True)), "top_texts", "top_scores"
        )

    def size(self, name: str) -> tuple[int, int]:
        """Return height and width of an original image in pixels.

        Raises:
            KeyError: If there is no such image.
        """
        return self._row(name, lambda *sides: sides, "height", "width")

    def covered(self, name: str) -> tuple[float, float]:
        """Return height and width in pixels of the part of an original image that its maps cover.

        It begins at the upper left. It is smaller than the image if the last pixels that the model
        sees are in no patch: the 27 x 27 patches of ViT-SO400M-14-SigLIP-384 cover 378 of 384.

        Raises:
            KeyError: If there is no such image.
        """
        (height, width), (rows, columns) = self.size(name), self._covered
        return height * rows, width * columns

    def embedding(self, name: str) -> np.ndarray:
        """Return the L2-normalized embedding (C,) of an image, float32.

        Raises:
            KeyError: If there is no such image.
        """
        return self._row(name, partial(np.array, dtype=np.float32), "embedding")

    def embeddings(self) -> tuple[list[str], np.ndarray]:
        """Return the names of all images in order, and their embeddings (N, C), float32."""
        columns = []
        for number in self._summary.numbers:
            table = self._pieces.read(number, ["embedding", "reason"])
            column = table.filter(table["reason"].is_null())["embedding"].combine_chunks()
            if len(column):
                columns.append(column.flatten().to_numpy().reshape(len(column), -1))
        return list(self), np.concatenate(columns) if columns else np.empty((0, 0), np.float32)

    def batches(self) -> Iterator[tuple[list[str], np.ndarray]]:
        """Yield names and maps (N, K, h, w) of all images in order.

        An array holds the images that are stored together, 64 at most.
        """
        names = iter(self)
        for number in self._summary.numbers:
            with self._pieces.open(number) as file:
                for group in range(file.num_row_groups):
                    table = file.read_row_group(group, ["maps", "maps_shape"])
                    arrays = [_to_array(*row.values()) for row in table.to_pylist()]
                    maps = [array for array in arrays if array is not None]
                    if maps:
                        yield list(islice(names, len(maps))), np.stack(maps)

    def verify(self) -> None:
        """Read all files and compare them with their checksums.

        Raises:
            ValueError: If files are missing or damaged; the message names them.
        """
        damaged = self._pieces.damaged(schema(self.texts))
        wrong = [f"{self._pieces.path(number).name} (missing)" for number in self._pieces.left()]
        wrong += [f"{self._pieces.path(number).name} (damaged)" for number in damaged]
        if wrong:
            wrong = sorted(set(wrong))
            raise ValueError(
                f"{len(wrong)} files of {self.path} are damaged or missing: "
                f"{', '.join(wrong[:5])}{' ...' if len(wrong) > 5 else ''}; export again with "
                "--verify to compute them again"
            )

    def __getstate__(self) -> dict[str, Any]:
        # Hashes differ from process to process.
        return {name: value for name, value in vars(self).items() if name != "_index"}

    def __repr__(self) -> str:
        return f"MapStore({str(self.path)!r}, {len(self)} images, {len(self.texts)} texts)"

    def _row(self, name: str, convert: Callable[..., Any], *columns: str) -> Any:
        """Return an image's values in some columns, converted by `convert`."""
        place = self._place(name)
        if place is None:
            raise KeyError(name)
        number, row = place
        changed, group = self._changed(number), 0
        with damage_as_error(self._pieces.path(number)):
            sizes = _group_sizes(self._pieces, number, changed)
            while row >= sizes[group]:
                row, group = row - sizes[group], group + 1
            table = _group(self._pieces, number, group, columns, changed)
            return convert(*(table[column][row].as_py() for column in columns))

    def _names(self, number: int) -> list[tuple[str, str | None]]:
        return _names(self._pieces, number, self._changed(number))

    def _changed(self, number: int) -> int:
        return self._pieces.path(number).stat().st_mtime_ns

    def _place(self, name: str) -> tuple[int, int] | None:
        """Return the number of the file and the row of an image, or None.

        Raises:
            KeyError: If the image could not be read; the message says why.
        """
        name, summary = plain_name(name), self._summary
        if name in summary.repeated:
            return summary.repeated[name]
        reason = None
        for number in self._candidates(name):
            for row, (other, why) in enumerate(self._names(number)):
                if other == name and why is None:
                    return number, row
                reason = why if other == name else reason
        if reason is not None:
            raise KeyError(f"{name}: {reason}")
        return None

    def _candidates(self, name: str) -> Sequence[int]:
        """Return the numbers of the files that may hold a name, nearly always one at most."""
        summary = self._summary
        if summary.is_sorted:
            place = bisect_right(summary.first, name) - 1
            within = place >= 0 and name <= summary.last[place]
            return summary.numbers[place : place + 1] if within else ()
        hashes, numbers, unread = self._index
        start, end = (np.searchsorted(hashes, hash(name), side) for side in ("left", "right"))
        return sorted({*numbers[start:end].tolist(), *unread})

    @cached_property
    def _index(self) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Hashes of all names in order, the files they are in, and files that cannot be read.

        That is 12 bytes an image. Only names whose order is not that of the files need it.
        """
        hashes, numbers, unread = [], [], []
        for number in self._summary.numbers:
            try:
                names = self._pieces.read(number, ["name"])["name"].to_pylist()
            except (FileNotFoundError, ValueError):  # said if a name is not found elsewhere
                unread.append(number)
                continue
            hashes.append(np.fromiter(map(hash, names), np.int64, len(names)))
            numbers.append(np.full(len(names), number, np.int32))
        merged = np.concatenate(hashes) if hashes else np.empty(0, np.int64)
        order = np.argsort(merged, kind="stable")
        return merged[order], np.concatenate(numbers)[order] if numbers else merged, unread


def _to_array(content: bytes | None, shape: Sequence[int] | None) -> np.ndarray | None:
    """Return maps (K, h, w) from their bytes; None without maps."""
    if content is None:
        return None
    if shape is None or min(shape) < 1:
        raise ValueError(f"maps of shape {shape!r:.80}")
    return np.frombuffer(content, "<f2").reshape(shape).copy()


def load_maps(path: str | os.PathLike[str]) -> MapStore:
    """Open an export as a mapping from image names to arrays.

    Args:
        path: Folder that `clip-surgery export` or a `Plan` wrote.

    Returns:
        The maps; none is read yet. Of an export that has not ended these are the maps so far, with
        a warning.

    Raises:
        FileNotFoundError: If there is no export in the folder.
        ValueError: If its description or a file is damaged.

    Example::

        maps = load_maps("out")
        maps["cats/one.jpg"].shape, maps.top("cats/one.jpg")[0]
        for names, arrays in maps.batches():  # (N, K, h, w)
            ...
    """
    store = MapStore(Path(path))
    if store.missing:
        warnings.warn(
            f"the export in {path} has not ended: {store.missing} of its files are not there; run "
            "the same command again to resume it",
            stacklevel=2,
        )
    return store


# What was read last is kept; the time of a file's last change tells whether it is still the same.


@lru_cache(maxsize=64)
def _names(pieces: Pieces, number: int, _: int) -> list[tuple[str, str | None]]:
    """Return the names in a file, each with the reason if it is unreadable."""
    table = pieces.read(number, ["name", "reason"])
    return list(zip(table["name"].to_pylist(), table["reason"].to_pylist(), strict=True))


@lru_cache(maxsize=64)
def _group_sizes(pieces: Pieces, number: int, _: int) -> list[int]:
    with pieces.open(number) as file:
        return [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]


@lru_cache(maxsize=8)
def _group(pieces: Pieces, number: int, group: int, columns: tuple[str, ...], _: int) -> Any:
    with pieces.open(number) as file:
        return file.read_row_group(group, columns)
