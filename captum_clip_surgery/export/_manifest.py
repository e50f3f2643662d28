"""Index and manifest of a finished export, made from its journal."""

from __future__ import annotations

import json
import os
import sqlite3
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from captum_clip_surgery._utils.checkpoint import ABOUT, CheckpointStore
from captum_clip_surgery.export._shards import PART, ImageRecord, checksum, sync
from captum_clip_surgery.export._writing import ShardRecord, entries, rows_of

JOURNAL, MANIFEST, INDEX = "journal", "manifest.json", "index.sqlite"
TABLE = (
    "CREATE TABLE images (position INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, "
    "file TEXT NOT NULL, place TEXT NOT NULL, size TEXT NOT NULL, top TEXT NOT NULL, "
    "scores TEXT NOT NULL)"
)


def write_manifest(
    output: str | os.PathLike[str], about: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write `index.sqlite` and, last of all, `manifest.json` of a finished export.

    Args:
        output: Folder of the export.
        about: Further entries of the manifest, as JSON.

    Returns:
        The content of the manifest.

    Raises:
        FileNotFoundError: If there is no export in the folder.
        ValueError: If a shard is not finished.
    """
    folder = Path(output)
    settings = json.loads((folder / JOURNAL / ABOUT).read_text(encoding="utf-8"))
    pieces = range(settings["source"]["pieces"])
    with CheckpointStore.open(folder / JOURNAL) as journal:
        found = entries(journal)
        chosen = [_chosen(folder, number, found.get(number, [])) for number in pieces]
        rows = ((entry.file, row) for entry in chosen for row in rows_of(journal.reload(entry.key)))
        repeated = _write_index(folder / INDEX, rows)
    if repeated:
        warnings.warn(
            f"{len(repeated)} images have a name that another has; {repeated[0][0]!r} is known "
            f"as {repeated[0][1]!r}, others alike",
            stacklevel=2,
        )
    sha256, _ = checksum(folder / INDEX)
    content = {
        **(about or {}),
        "settings": settings,
        "images": sum(entry.images for entry in chosen),
        "unreadable": [
            {"image": name, "reason": reason, "piece": entry.number}
            for entry in chosen
            for name, reason in entry.unreadable
        ],
        "repeated": {new: old for old, new in repeated},
        "index": {"file": INDEX, "sha256": sha256},
        "shards": [
            {
                "file": entry.file,
                "sha256": entry.sha256,
                "bytes": entry.size,
                "images": entry.images,
            }
            for entry in chosen
            if entry.file is not None
        ],
    }
    part = folder / (MANIFEST + PART)
    part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    sync(part)
    part.replace(folder / MANIFEST)
    return content


def is_intact(folder: Path, entry: ShardRecord) -> bool:
    """Return whether an entry's shard is there and passes its checksum."""
    if entry.file is None:
        return True
    path = folder / entry.file
    try:
        return path.exists() and checksum(path) == (entry.sha256, entry.size)
    except OSError:
        return False


def _chosen(folder: Path, number: int, among: Sequence[ShardRecord]) -> ShardRecord:
    """Return the entry of a shard whose file is there, out of all entries the journal has of it."""
    there = [entry for entry in among if entry.file is None or (folder / entry.file).exists()]
    if len(there) > 1:  # made anew, and not the same: another machine's
        there = [entry for entry in there if is_intact(folder, entry)]
    if not there:
        raise ValueError(f"piece {number} of {folder} is not finished; go on with --resume")
    return there[0]


def _write_index(
    path: Path, rows: Iterable[tuple[str | None, ImageRecord]]
) -> list[tuple[str, str]]:
    """Write the index and return duplicate names, each with the name the image gets instead."""
    part = path.with_name(path.name + PART)
    part.unlink(missing_ok=True)
    repeated: list[tuple[str, str]] = []
    times: dict[str, int] = {}  # of repeated names, the last number behind them
    with closing(sqlite3.connect(part)) as database, database:
        database.execute(TABLE)
        for file, row in rows:
            values = [json.dumps(value) for value in (row.place, row.size, row.top, row.scores)]
            name = row.name
            while not _insert(database, coded(name), file, values):
                times[row.name] = times.get(row.name, 1) + 1
                name = f"{row.name}~{times[row.name]}"
            if name != row.name:
                repeated.append((row.name, name))
    part.replace(path)
    return repeated


def _insert(
    database: sqlite3.Connection, name: str, file: str | None, values: Sequence[str]
) -> bool:
    """Insert a row and return whether its name was free."""
    added = database.execute(
        "INSERT OR IGNORE INTO images VALUES (NULL, ?, ?, ?, ?, ?, ?)", (name, file, *values)
    )
    return added.rowcount == 1


def coded(name: str) -> str:
    """Return a name as the index stores it, because names of files may not be valid text."""
    return quote(name, safe="/", errors="surrogateescape")
