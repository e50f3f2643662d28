"""Collections of images on disk, divided into shards that are explained as a whole."""

from __future__ import annotations

import glob
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from captum_clip_surgery._utils.files import read_lines, state_of, walk
from captum_clip_surgery._utils.images import SUFFIXES, is_image_name
from captum_clip_surgery.export._entries import Entry, Shard, describe, raise_passing
from captum_clip_surgery.export._extras import webdataset
from captum_clip_surgery.export._tables import SPLITS, STATE, open_parquet, open_saved

__all__ = ["FileShard", "Shard", "Source", "TarShard", "open_source"]

TARS = (".tar", ".tar.gz", ".tgz")
PARQUET = (".parquet", ".pq")
END = bytes(tarfile.BLOCKSIZE)  # what a whole archive ends with
MOST = 2**30  # bytes of an image in an archive, which may say anything of its size


@dataclass(frozen=True)
class Source:
    """A collection of images.

    Attributes:
        kind: "folder", "list", "tars", "Parquet files" or "saved data set".
        place: Absolute path of the collection.
        pieces: Its shards.
        states: Size and time of each of its files, in order.
    """

    kind: str
    place: str
    pieces: Sequence[Shard]
    states: Sequence[str]


def open_source(
    source: str | os.PathLike[str], shard_size: int = 1000, column: str | None = None
) -> Source:
    """Open a collection of images.

    Args:
        source: One of

            - a folder of images, named by their paths in it, or a text file with one path per
              line, relative to the file's folder;
            - a folder or a pattern of .tar files such as `train-{000..009}.tar`, images named by
              their WebDataset keys;
            - a folder or a pattern of .parquet files with a column of images or paths, images
              named by file and row, such as `train-000/000017`, or by their paths;
            - a Hugging Face data set saved by `save_to_disk`, images named by row.
        shard_size: Number of images per shard; every tar is one shard, and row groups of Parquet
            files are not divided.
        column: Column of images in a table (default: the only one with images or paths).

    Returns:
        The collection, its images not yet read.

    Raises:
        FileNotFoundError: If there is nothing at `source`.
        ValueError: If there are no images, a folder holds files of several kinds, a table has no
            column of images or several, or `shard_size` is below 1.
    """
    if shard_size < 1:
        raise ValueError(f"shard_size {shard_size!r} must be at least 1")
    path, name = Path(source), str(source).lower()
    if path.is_dir():
        return _open_folder(path, shard_size, column)
    if name.endswith(TARS):
        return _tars(path, _matching(str(source), "tar"))
    if name.endswith(PARQUET):
        return _parquet(path, _matching(str(source), "Parquet file"), shard_size, column)
    if not path.is_file():
        raise FileNotFoundError(f"no folder, list or tar at {path}")
    return _list(path, shard_size)


def _open_folder(path: Path, shard_size: int, column: str | None) -> Source:
    """Open a folder by the kind of files that it holds."""
    inside = sorted(entry.name for entry in path.iterdir())
    if SPLITS in inside:
        splits = ", ".join(str(path / name) for name in inside if (path / name / STATE).is_file())
        raise ValueError(f"{path} holds several splits; give one of them: {splits}")
    if STATE in inside:
        files, pieces = open_saved(path, shard_size, column)
        return _source("saved data set", path, files, pieces)
    kinds = {
        "pictures": [name for name in inside if is_image_name(name)],
        "tars": [name for name in inside if name.lower().endswith(TARS)],
        "Parquet files": [name for name in inside if name.lower().endswith(PARQUET)],
    }
    present = [kind for kind, names in kinds.items() if names]
    if len(present) > 1:
        pattern = path / ("*.tar" if "tars" in present else "*.parquet")
        raise ValueError(
            f"{path} holds both {' and '.join(present)}; give {pattern}, or move one of them"
        )
    if kinds["tars"]:
        return _tars(path, [path / name for name in kinds["tars"]])
    if kinds["Parquet files"]:
        files = [path / name for name in kinds["Parquet files"]]
        return _parquet(path, files, shard_size, column)
    return _folder(path, shard_size)


def _parquet(place: Path, paths: list[Path], shard_size: int, column: str | None) -> Source:
    return _source("Parquet files", place, paths, open_parquet(paths, shard_size, column))


def _source(kind: str, place: Path, files: Sequence[Path], pieces: Sequence[Shard]) -> Source:
    if not pieces:
        raise ValueError(f"no images in {place}, which holds empty tables")
    return Source(kind, str(place.resolve()), pieces, [f"{f.name} {state_of(f)}" for f in files])


# --- files ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FileShard(Shard):
    """Image files of a folder or a list."""

    root: Path
    names: tuple[str, ...]

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.names)

    def entries(self) -> Iterator[Entry]:
        """Yield the images in order, not decoded yet."""
        return (Entry(name, self.root / name) for name in self.names)


def _folder(root: Path, shard_size: int) -> Source:
    start = len(str(root / "_")) - 1  # of the names; `relative_to` is slow for a million files
    names = sorted(path[start:] for path in walk(root) if is_image_name(path))
    if not names:
        raise ValueError(
            f"no pictures in the folder {root}, nor tars or Parquet files; names of pictures end "
            f"in {', '.join(SUFFIXES)}"
        )
    return _files("folder", root, root, names, shard_size)


def _list(path: Path, shard_size: int) -> Source:
    names = list(dict.fromkeys(_read_paths(path)))
    if not names:
        raise ValueError(f"the list {path} is empty")
    return _files("list", path, path.parent, names, shard_size)


def _read_paths(path: Path) -> list[str]:
    """Return the lines of a list; names of files need be no text, but then they must exist."""
    try:
        return read_lines(path)
    except ValueError:
        lines = read_lines(path, errors="surrogateescape")
        odd = [line for line in lines if line.encode(errors="replace").decode() != line]
        if not all((path.parent / line).exists() for line in odd):
            raise
        return lines


def _files(kind: str, place: Path, root: Path, names: list[str], shard_size: int) -> Source:
    pieces = [
        FileShard(number, root, tuple(names[start : start + shard_size]))
        for number, start in enumerate(range(0, len(names), shard_size))
    ]
    return Source(kind, str(place.resolve()), pieces, [state_of(root / name) for name in names])


# --- tars ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TarShard(Shard):
    """A tar of a WebDataset."""

    path: Path

    @property
    def images(self) -> None:
        """Not known before the tar is read."""
        return None

    def entries(self) -> Iterator[Entry]:
        """Yield the images in order, not decoded yet."""
        problems: list[str] = []
        grouped = webdataset().tariterators.group_by_keys(
            _members(self.path, problems),
            handler=partial(_noted, problems),
        )
        for sample in grouped:
            yield from _pictures(sample)
        for problem in problems:
            yield Entry(self.path.name, None, problem)


def _tars(place: Path, paths: list[Path]) -> Source:
    pieces = [TarShard(number, path) for number, path in enumerate(paths)]
    return Source("tars", str(place.resolve()), pieces, [state_of(path) for path in paths])


def _matching(pattern: str, what: str) -> list[Path]:
    """Return the files that match a pattern with braces, stars or neither."""
    found: list[Path] = []
    for name in webdataset().shardlists.expand_urls(pattern):
        some = sorted(glob.glob(name)) if glob.has_magic(name) else [name]  # noqa: PTH207
        if not some or not all(Path(one).is_file() for one in some):
            raise FileNotFoundError(f"no {what} at {name}")
        found += map(Path, some)
    return list(dict.fromkeys(found))


def _noted(problems: list[str], error: Exception) -> bool:
    """Record a duplicate file; the first one counts, and WebDataset continues."""
    problems.append(str(error.args[0]))
    return True


def _members(path: Path, problems: list[str]) -> Iterator[dict[str, Any]]:
    """Yield an archive's files as WebDataset groups them, images with content, until an error."""
    try:
        with tarfile.open(path) as archive:
            while (member := archive.next()) is not None:
                # It would keep them all.
                archive.members.clear()  # type: ignore[attr-defined]
                picture = is_image_name(member.name)
                if picture and (member.issym() or member.islnk()):
                    problems.append(f"{member.name!r} is a link, which is not followed")
                if not member.isreg():
                    continue
                if picture and member.size > MOST:
                    raise ValueError(f"{member.name!r} says it has {member.size} bytes")
                file = archive.extractfile(member) if picture else None
                data = b"" if file is None else file.read()
                yield {"fname": member.name, "data": data, "__url__": str(path)}
            # tarfile takes a damaged header for the end.
            assert archive.fileobj is not None
            archive.fileobj.seek(archive.offset)
            if archive.fileobj.read(len(END)) != END:
                raise ValueError(f"it is truncated or damaged at byte {archive.offset}")
    except Exception as error:  # a cut or damaged archive says so in many ways
        raise_passing(error, str(path))
        problems.append(f"read no further: {describe(error)}")


def _pictures(sample: dict[str, Any]) -> Iterator[Entry]:
    key = sample["__key__"]
    ends = [end for end in sample if is_image_name(f".{end}")]
    for end in ends:
        # Where a sample has several the key alone would name none.
        yield Entry(key if len(ends) == 1 else f"{key}.{end}", sample[end])
    if not ends:
        files = ", ".join(end for end in sample if not end.startswith("__"))
        yield Entry(key, None, f"no picture among its files: {files}")
