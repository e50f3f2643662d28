"""Collections of images on disk, divided into shards that are explained as a whole."""

from __future__ import annotations

import errno
import glob
import io
import os
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from captum_clip_surgery._utils.files import state_of, walk
from captum_clip_surgery.export._extras import webdataset
from captum_clip_surgery.preprocessing import load_image, open_image

_KNOWN = "avif bmp gif jfif jpeg jpg jp2 pgm png pnm ppm tif tiff webp"
#: Ends of the names of pictures; in folders and tars others are passed over.
PICTURES = tuple(f".{end}" for end in _KNOWN.split())
TARS = (".tar", ".tar.gz", ".tgz")
#: Errors of the system that are a file's own; any other is the machine's, and passes.
OWN_ERRORS = {
    None,  # a decoder's
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EINVAL,
}
END = bytes(tarfile.BLOCKSIZE)  # what a whole archive ends with
MOST = 2**30  # bytes of a picture in an archive, which may say anything of its size


@dataclass(frozen=True)
class Sample:
    """An image as upright RGB, or the reason why it cannot be read.

    Attributes:
        name: Name of the image in the export.
        picture: The image; None if it cannot be read.
        reason: Why it cannot be read.
    """

    name: str
    picture: Image.Image | None
    reason: str = ""


@dataclass(frozen=True)
class Shard(ABC):
    """Images that make one shard of the export.

    Attributes:
        number: Position of the shard in the collection.
    """

    number: int

    @property
    @abstractmethod
    def images(self) -> int | None:
        """Number of images; None if it is unknown before they are read."""

    @abstractmethod
    def samples(self) -> Iterator[Sample]:
        """Yield the images in order; unreadable ones come with the reason."""


@dataclass(frozen=True)
class Source:
    """A collection of images.

    Attributes:
        kind: "folder", "list" or "tars".
        place: Absolute path of the collection.
        pieces: Its shards.
        states: Size and time of each of its files, in order.
    """

    kind: str
    place: str
    pieces: Sequence[Shard]
    states: Sequence[str]


def open_source(source: str | os.PathLike[str], shard_size: int = 1000) -> Source:
    """Open a collection of images.

    Args:
        source: A folder of images, named by their paths in it; a folder or a pattern of .tar files
            such as `train-{000..009}.tar`, images named by their WebDataset keys; or a text file
            with one image path per line, relative to the file's folder.
        shard_size: Number of images per shard; every tar is one shard.

    Returns:
        The collection, its images not yet read.

    Raises:
        FileNotFoundError: If there is nothing at `source`.
        ValueError: If there are no images, a folder holds both images and tars, or `shard_size` is
            below 1.
    """
    if shard_size < 1:
        raise ValueError(f"shard_size {shard_size!r} must be at least 1")
    path = Path(source)
    if path.is_dir():
        inside = [entry.name for entry in path.iterdir()]
        tars = sorted(name for name in inside if name.lower().endswith(TARS))
        if tars and any(name.lower().endswith(PICTURES) for name in inside):
            raise ValueError(f"{path} holds both pictures and tars; give {path}/*.tar, or move one")
        return _tars(path, [path / name for name in tars]) if tars else _folder(path, shard_size)
    if str(source).lower().endswith(TARS):
        return _tars(path, _matching(str(source)))
    if not path.is_file():
        raise FileNotFoundError(f"no folder, list or tar at {path}")
    return _list(path, shard_size)


# --- files ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FileShard(Shard):
    root: Path
    names: tuple[str, ...]

    @property
    def images(self) -> int:
        return len(self.names)

    def samples(self) -> Iterator[Sample]:
        for name in self.names:
            yield _read(name, self.root / name)


def _folder(root: Path, shard_size: int) -> Source:
    names = sorted(
        Path(path).relative_to(root).as_posix()
        for path in walk(root)
        if path.lower().endswith(PICTURES)
    )
    if not names:
        raise ValueError(f"no pictures in the folder {root}, nor tars; known are {PICTURES}")
    return _files("folder", root, root, names, shard_size)


def _list(path: Path, shard_size: int) -> Source:
    # Names of files need be no text.
    lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    names = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if any("\0" in name for name in names):
        raise ValueError(f"{path} is no list of paths: it holds zero bytes")
    if not names:
        raise ValueError(f"the list {path} is empty")
    return _files("list", path, path.parent, names, shard_size)


def _files(kind: str, place: Path, root: Path, names: list[str], shard_size: int) -> Source:
    pieces = [
        FileShard(number, root, tuple(names[start : start + shard_size]))
        for number, start in enumerate(range(0, len(names), shard_size))
    ]
    return Source(kind, str(place.resolve()), pieces, [state_of(root / name) for name in names])


# --- tars ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TarShard(Shard):
    path: Path

    @property
    def images(self) -> None:
        return None

    def samples(self) -> Iterator[Sample]:
        problems: list[str] = []
        grouped = webdataset().tariterators.group_by_keys(
            _members(self.path, problems),
            handler=partial(_noted, problems),
        )
        for sample in grouped:
            yield from _pictures(sample)
        for problem in problems:
            yield Sample(self.path.name, None, problem)


def _tars(place: Path, paths: list[Path]) -> Source:
    pieces = [TarShard(number, path) for number, path in enumerate(paths)]
    return Source("tars", str(place.resolve()), pieces, [state_of(path) for path in paths])


def _matching(pattern: str) -> list[Path]:
    """Return the files that match a pattern with braces, stars or neither."""
    found: list[Path] = []
    for name in webdataset().shardlists.expand_urls(pattern):
        some = sorted(glob.glob(name)) if glob.has_magic(name) else [name]  # noqa: PTH207
        if not some or not all(Path(one).is_file() for one in some):
            raise FileNotFoundError(f"no tar at {name}")
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
                picture = member.name.lower().endswith(PICTURES)
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
                raise ValueError(f"it is cut or damaged at byte {archive.offset}")
    except Exception as error:  # a cut or damaged archive says so in many ways
        _refuse_passing(error, str(path))
        problems.append(f"read no further: {_told(error)}")


def _pictures(sample: dict[str, Any]) -> Iterator[Sample]:
    key = sample["__key__"]
    ends = [end for end in sample if f".{end}".endswith(PICTURES)]
    for end in ends:
        # Where a sample has several the key alone would name none.
        yield _read(key if len(ends) == 1 else f"{key}.{end}", io.BytesIO(sample[end]))
    if not ends:
        files = ", ".join(end for end in sample if not end.startswith("__"))
        yield Sample(key, None, f"no picture among its files: {files}")


# --- both ----------------------------------------------------------------------------------------


def _read(name: str, file: Path | io.BytesIO) -> Sample:
    try:
        if isinstance(file, Path):
            return Sample(name, load_image(file))
        with open_image(file) as opened:
            opened.load()
            return Sample(name, load_image(opened))
    except Exception as error:
        # Decoders fail in their own ways, and nothing in a picture may end a run.
        _refuse_passing(error, name)
        return Sample(name, None, _told(error))


def _refuse_passing(error: Exception, name: str) -> None:
    """Raise errors of the machine again: an image listed as unreadable would stay so."""
    for cause in (error, error.__cause__):
        if isinstance(cause, OSError) and cause.errno not in OWN_ERRORS:
            cause.add_note(f"reading {name}; nothing is lost: run the same command again to go on")
            raise cause


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
