"""A summary of an export's files, so that opening many of them reads one."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from operator import lt
from pathlib import Path
from typing import Any

import numpy as np

from captum_clip_surgery._utils.pieces import Pieces, arrow, damage_as_error, write_parquet

SUMMARY = "summary.parquet"


@dataclass(frozen=True)
class Summary:
    """Counts and names of the files, by which an image is found without opening all of them.

    Attributes:
        numbers: Numbers (P,) of the files.
        images: Number (P,) of readable images in each.
        unreadable: Number (P,) of unreadable images in each.
        first: Least name in each file.
        last: Greatest name in each file.
        repeated: Of images whose name an earlier one has, the name they get instead, with the
            number of the file and the row.
    """

    numbers: list[int]
    images: list[int]
    unreadable: list[int]
    first: list[str]
    last: list[str]
    repeated: dict[str, tuple[int, int]]

    @cached_property
    def is_sorted(self) -> bool:
        """Whether every name in a file is greater than all in the files before, as in folders."""
        return all(map(lt, self.last, self.first[1:]))


def summarize(pieces: Pieces) -> Summary:
    """Read the names in all finished files."""
    found = Summary([], [], [], [], [], {})
    hashes = []
    for number in range(pieces.count):
        try:
            names, readable = _names(pieces, number)
        except FileNotFoundError:
            continue
        found.numbers.append(number)
        found.images.append(sum(readable))
        found.unreadable.append(len(names) - sum(readable))
        # As Parquet and Python order text: by code points.
        found.first.append(min(names, default=""))
        found.last.append(max(names, default=""))
        hashes.append(np.fromiter(map(hash, names), np.int64, len(names)))
    if hashes:
        found.repeated.update(_repeated(pieces, found.numbers, np.concatenate(hashes)))
    return found


def write_summary(folder: Path, pieces: Pieces) -> Summary:
    """Write the summary of an export whose files are all there, with a word on repeated names."""
    pa, found = arrow(), summarize(pieces)
    if found.repeated:
        new = next(iter(found.repeated))
        warnings.warn(
            f"{len(found.repeated)} images have the name of another one; the second "
            f"{new.rpartition('~')[0]!r} is called {new!r}, and so on",
            stacklevel=3,
        )
    table = pa.table(
        {
            "number": pa.array(found.numbers, pa.int64()),
            "images": pa.array(found.images, pa.int64()),
            "unreadable": pa.array(found.unreadable, pa.int64()),
            "first": pa.array(found.first, pa.string()),
            "last": pa.array(found.last, pa.string()),
        },
        metadata={"repeated": json.dumps(found.repeated)},
    )
    with write_parquet(folder / SUMMARY, table.schema) as write:
        write(table)
    return found


def read_summary(folder: Path, pieces: Pieces) -> Summary:
    """Return the summary of an export's files, from its own file if the export has ended."""
    path = folder / SUMMARY
    if not path.exists():
        return summarize(pieces)
    with (
        damage_as_error(path),
        arrow().parquet.ParquetFile(path, page_checksum_verification=True) as file,
    ):
        table = file.read()
        repeated: dict[str, Any] = json.loads(table.schema.metadata[b"repeated"])
    columns = {name: table[name].to_pylist() for name in table.column_names}
    return Summary(
        columns["number"],
        columns["images"],
        columns["unreadable"],
        columns["first"],
        columns["last"],
        {name: (int(number), int(row)) for name, (number, row) in repeated.items()},
    )


def _names(pieces: Pieces, number: int) -> tuple[list[str], list[bool]]:
    table = pieces.read(number, ["name", "reason"])
    return table["name"].to_pylist(), table["reason"].is_null().to_pylist()


def _repeated(
    pieces: Pieces, numbers: list[int], hashes: np.ndarray
) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the new names and places of images whose name an earlier one has.

    Hashes of names, of which millions fit into memory, say which names to look at.
    """
    values, counts = np.unique(hashes, return_counts=True)
    suspects = set(values[counts > 1].tolist())
    if not suspects:
        return
    taken = set(values.tolist())
    times: dict[str, int] = {}
    for number in numbers:
        names, readable = _names(pieces, number)
        for row, name in enumerate(names):
            if not readable[row] or hash(name) not in suspects:
                continue
            times[name] = times.get(name, 0) + 1
            new = f"{name}~{times[name]}"
            if times[name] > 1:
                while hash(new) in taken:
                    times[name] += 1
                    new = f"{name}~{times[name]}"
                yield new, (number, row)
