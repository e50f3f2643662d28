"""Statistics of images: in memory, or as rows of Parquet files that any later run reuses.

A folder holds a table for each task and method, in pieces as `_utils.pieces` writes them. A row is
of an image and a class, and keeps a digest of the image and its annotation as they were read: after
a change of the data set only images that differ are measured again.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_clip_surgery._utils.pieces import Pieces, start_run, write_text
from captum_clip_surgery.datasets import Labels, Masks, Sample

#: Names of a task's columns with their widths; statistics are their concatenation.
Columns = Mapping[str, int]
FILES = "files.json"


@dataclass(frozen=True)
class ImageRows:
    """The statistics of one image by one method.

    Args:
        name: Name of the image.
        digest: Digest of the image and its annotation as they were read; empty if unreadable.
        error: Why the image could not be read, or None.
        stats: One row (class, statistics) per class, (n, 1 + W) of float64; NaN where a class has
            none.
    """

    name: str
    digest: str
    error: str | None
    stats: Tensor

    @classmethod
    def unreadable(cls, name: str, error: str, columns: Columns) -> ImageRows:
        """Return the rows of an unreadable image: none."""
        return cls(name, "", error, torch.zeros(0, 1 + sum(columns.values()), dtype=torch.float64))


def digest_of(sample: Sample) -> str:
    """Return a digest of a sample's pixels and annotation."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{sample.image.size} {sample.image.mode}".encode() + sample.image.tobytes())
    target = sample.target
    if isinstance(target, Labels):
        digest.update(np.ascontiguousarray(target.labels).data)
    elif isinstance(target, Masks):
        for kind in (target.masks, target.ignored):
            for label, mask in sorted(kind.items()):
                digest.update(f"{label} {mask.shape}".encode() + np.packbits(mask).tobytes())
    else:  # sets are unordered
        values = vars(target).values()
        digest.update(repr([sorted(v) if isinstance(v, frozenset) else v for v in values]).encode())
    return digest.hexdigest()


@dataclass
class Table:
    """The statistics of all images by one method in one task.

    Args:
        columns: Columns of the task.
        classes: Names of the classes.
        pieces: Files of the table; None keeps it in memory.
        rows: Known rows by name of the image.
    """

    columns: Columns
    classes: Sequence[str]
    pieces: Pieces | None = None
    rows: dict[str, ImageRows] = field(default_factory=dict)

    def load(self) -> None:
        """Read all files; a damaged one counts as missing, with a warning."""
        if self.pieces is None:
            return
        for path in sorted(self.pieces.folder.glob("*.parquet")):
            number = int(path.stem) if path.stem.isdecimal() else -1
            if number < 0 or not self.pieces.is_done(number):
                continue
            try:
                table = self.pieces.read(number)
                self.rows |= {rows.name: rows for rows in self._parse(table)}
            except (ValueError, TypeError, KeyError, RuntimeError) as error:
                warnings.warn(
                    f"{path} cannot be used ({error!r:.200}); its images are measured again",
                    stacklevel=2,
                )

    def write(self, number: int, images: Sequence[ImageRows]) -> None:
        """Add the images of a piece, and write its file."""
        self.rows |= {rows.name: rows for rows in images}
        if self.pieces is not None:
            self.pieces.write(number, self._format(images))

    def _format(self, images: Sequence[ImageRows]) -> Any:
        """Return a `pyarrow.Table` with one row per class; one without class if there are none."""
        pyarrow: Any = import_module("pyarrow")
        width = 1 + sum(self.columns.values())
        blank = torch.full((1, width), torch.nan, dtype=torch.float64)
        parts = [rows.stats if len(rows.stats) else blank for rows in images]
        counts = [len(part) for part in parts]
        labels, *columns = torch.cat(parts).split([1, *self.columns.values()], 1)
        numbers = [None if label != label else int(label) for label in labels[:, 0].tolist()]

        def repeated(values: Sequence[str | None]) -> Any:
            rows = [v for v, count in zip(values, counts, strict=True) for _ in range(count)]
            return pyarrow.array(rows, pyarrow.string())

        arrays = {
            "image": repeated([rows.name for rows in images]),
            "digest": repeated([rows.digest for rows in images]),
            "error": repeated([rows.error for rows in images]),
            "label": pyarrow.array(numbers, pyarrow.int32()),
            "class": pyarrow.array(
                [None if n is None or n < 0 else self.classes[n] for n in numbers], pyarrow.string()
            ),
        }
        for (name, count), values in zip(self.columns.items(), columns, strict=True):
            flat = pyarrow.array(values.flatten().numpy())
            arrays[name] = (
                flat if count == 1 else pyarrow.FixedSizeListArray.from_arrays(flat, count)
            )
        return pyarrow.table(arrays)

    def _parse(self, table: Any) -> Iterator[ImageRows]:
        """Yield the images of a `pyarrow.Table` from `_format`."""
        labels = table["label"].cast("float64").to_numpy()  # NaN where there is none
        columns = [torch.from_numpy(np.array(labels))[:, None]]
        for name, count in self.columns.items():
            flat = table[name].combine_chunks()
            flat = flat.flatten() if count > 1 else flat
            values = np.array(flat.to_numpy(zero_copy_only=False), np.float64)
            columns.append(torch.from_numpy(values).reshape(-1, count))
        stats = torch.cat(columns, 1)
        known = labels[~np.isnan(labels)]
        if ((known < -1) | (known >= len(self.classes))).any():
            raise ValueError(f"it has classes beyond the {len(self.classes)} of the data set")
        keys = zip(*(table[k].to_pylist() for k in ("image", "digest", "error")), strict=True)
        for (name, digest, error), rows in groupby(enumerate(keys), lambda pair: pair[1]):
            part = stats[[row for row, _ in rows]]
            yield ImageRows(name, digest, error, part[~part[:, 0].isnan()])


@dataclass
class StatisticsStore:
    """A folder of statistics, and what they depend on.

    Args:
        folder: The folder.
        settings: Everything that determines the statistics of all tasks and methods, as JSON.
        files: State of every file of the data set, by path.
        changed: Paths of the files that differ from those of the statistics in the folder.
    """

    folder: Path
    settings: Mapping[str, Any]
    files: Mapping[str, str]
    changed: list[str] = field(init=False)

    def __post_init__(self) -> None:
        try:
            before = json.loads((self.folder / FILES).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            before = {}
        if not isinstance(before, dict):
            before = {}
        if not before and not any(self.folder.glob("*/*/*.parquet")):
            before = self.files
        paths = sorted(before.keys() | self.files.keys())
        self.changed = [path for path in paths if before.get(path) != self.files.get(path)]

    def open(
        self, task: str, method: str, settings: Mapping[str, Any], table: Table, count: int
    ) -> None:
        """Give a table its files, and read those that there are.

        Args:
            task: Name of the task.
            method: Name of the method.
            settings: What determines the statistics besides the store's own settings, as JSON.
            table: The table.
            count: Number of pieces.

        Raises:
            ValueError: If the files were computed with other settings; the message lists them.
        """
        folder, described = self.folder / task / method, self.folder / "settings" / task / method
        settings = {**self.settings, **settings, "task": task, "method": method}
        # A run that was given up without results does not bind this one.
        start_run(described, settings, replace=not any(folder.glob("*.parquet")))
        table.pieces = Pieces(folder, count)
        table.pieces.clean(warn=False)
        table.load()

    def finish(self) -> None:
        """Note that the statistics are those of the files as they are now."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / FILES, json.dumps(self.files))
