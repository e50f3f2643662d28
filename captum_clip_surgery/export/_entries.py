"""Images of a collection, before and after they are decoded."""

from __future__ import annotations

import errno
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image

from captum_clip_surgery.preprocessing import read_image

T = TypeVar("T")

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


@dataclass(frozen=True)
class Entry:
    """An image that is not decoded yet, or the reason why it is missing.

    Attributes:
        name: Name of the image in the export.
        file: Its file or the file's bytes; None if it cannot be read.
        reason: Why it cannot be read.
    """

    name: str
    file: Path | bytes | None
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
    def entries(self) -> Iterator[Entry]:
        """Yield the images in order, not decoded yet."""


def decode(entry: Entry, at_least: tuple[int, int] | None = None) -> Image.Image:
    """Return the image of an entry, as `read_image` does.

    Raises:
        FileNotFoundError: If its file does not exist.
        ValueError: If it cannot be read.
    """
    if isinstance(entry.file, Path):
        if not entry.file.is_file():
            raise FileNotFoundError(f"no image file at {entry.file}")
        return read_image(entry.file, str(entry.file), at_least=at_least)
    return read_image(io.BytesIO(entry.file or b""), entry.name, at_least=at_least)


def attempt(entry: Entry, read: Callable[[Entry], T]) -> T | str:
    """Read an entry, or return the reason why that is impossible.

    Raises:
        OSError: If the machine failed rather than the file.
    """
    if entry.file is None:
        return entry.reason
    try:
        return read(entry)
    except Exception as error:
        # Decoders fail in their own ways, and nothing in an image may end a run.
        raise_passing(error, entry.name)
        return describe(error)


def raise_passing(error: Exception, name: str) -> None:
    """Raise errors of the machine again: an image listed as unreadable would stay so."""
    for cause in (error, error.__cause__):
        if isinstance(cause, OSError) and cause.errno not in OWN_ERRORS:
            cause.add_note(f"reading {name}; nothing is lost: run the same command again to resume")
            raise cause


def describe(error: Exception) -> str:
    """Return an error as the reason why something cannot be read."""
    return f"{type(error).__name__}: {error}"
