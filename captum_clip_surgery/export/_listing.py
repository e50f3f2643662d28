"""The files of a collection, looked at by one process and listed in the export's folder.

Other processes read the names of the shard they work on from the list, so that nobody else looks at
millions of files, or holds their names.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from captum_clip_surgery._utils.pieces import Pieces, arrow, damage_as_error, write_parquet
from captum_clip_surgery.export._sources import FileShard, Shard, Source, TarShard

LISTING = "listing.parquet"

#: Files of a shard, each with its size and time.
Files = list[tuple[bytes, str]]


@dataclass(frozen=True)
class Listing(Sequence[Shard]):
    """Shards of a list, each read from the disk on access.

    Args:
        path: File of the list; row group n has the files of shard n.
    """

    path: Path

    def __len__(self) -> int:
        with _opened(self.path) as file:
            count: int = file.num_row_groups
            return count

    @overload
    def __getitem__(self, number: int) -> Shard: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Shard]: ...
    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[index] for index in range(len(self))[number]]
        with _opened(self.path) as file:
            root = Path(os.fsdecode(file.schema_arrow.metadata[b"root"]))
            kind = file.schema_arrow.metadata[b"kind"].decode()
            names = [os.fsdecode(name) for name, _ in _files(file, number)]
        if kind == "tars":
            return TarShard(number, root / names[0])
        return FileShard(number, root, tuple(names))

    def images(self) -> list[int | None]:
        """Return the number of images of each shard; None for tars, which are not read yet."""
        with _opened(self.path) as file:
            if file.schema_arrow.metadata[b"kind"] == b"tars":
                return [None] * file.num_row_groups
            return [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]

    def files(self) -> list[Files]:
        """Return the files of all shards."""
        with _opened(self.path) as file:
            return [_files(file, number) for number in range(file.num_row_groups)]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    with (
        damage_as_error(path),
        arrow().parquet.ParquetFile(path, page_checksum_verification=True) as file,
    ):
        yield file


def _files(file: Any, number: int) -> Files:
    table = file.read_row_group(number)
    return list(zip(table["name"].to_pylist(), table["state"].to_pylist(), strict=True))


def list_source(path: Path, source: Source, shard_size: int, pieces: Pieces) -> None:
    """List a collection, or bring its list up to date.

    Shards whose files have changed since are removed and left to be computed again; files that were
    added make further shards.

    Args:
        path: File of the list.
        source: The collection.
        shard_size: Number of files in a shard.
        pieces: The export's pieces.
    """
    names = [name for shard in source.pieces for name in _names_of(shard)]
    now = dict(zip(map(os.fsencode, names), source.states, strict=True))
    size = 1 if source.kind == "tars" else shard_size
    known = Listing(path).files() if path.exists() else []
    shards = [[(name, now.get(name, "missing")) for name, _ in files] for files in known]
    changed = [number for number, files in enumerate(shards) if files != known[number]]
    listed = {name for files in known for name, _ in files}
    added = [item for item in now.items() if item[0] not in listed]
    if known and not changed and not added:
        return
    if known:
        _warn(path, known, shards, added, len(changed))
    for number in changed:  # before the list: if killed between, they are found changed again
        pieces.path(number).unlink(missing_ok=True)
    shards += [added[start : start + size] for start in range(0, len(added), size)]
    _write(path, source, shards)


def _write(path: Path, source: Source, shards: Iterable[Files]) -> None:
    pa = arrow()
    first = source.pieces[0]
    root = first.root.absolute() if isinstance(first, FileShard) else Path.cwd()
    schema = pa.schema(
        {"name": pa.binary(), "state": pa.string()},
        {"root": os.fsencode(root), "kind": source.kind},
    )
    with write_parquet(path, schema) as write:
        for files in shards:
            names, states = zip(*files, strict=True)
            write(pa.table([list(names), list(states)], schema=schema))


def _warn(
    path: Path, before: list[Files], now: list[Files], added: Files, num_changed: int
) -> None:
    """Say which files changed since a list was written."""
    old, new = (dict(file for files in shards for file in files) for shards in (before, now))
    changed = [name for name, state in old.items() if new[name] != state]
    first = os.fsdecode((changed or [name for name, _ in added])[0])
    warnings.warn(
        f"since {path} was written, {len(changed)} files have changed or gone and {len(added)} "
        f"were added (the first is {first!r}); the {num_changed} shards they are in are computed "
        "again",
        stacklevel=4,
    )


def _names_of(shard: Shard) -> Sequence[str]:
    if isinstance(shard, FileShard):
        return shard.names
    assert isinstance(shard, TarShard)
    return [str(shard.path.absolute())]
