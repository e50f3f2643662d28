"""Matrices in MATLAB files, whose content may be compressed a thousandfold."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import ModuleType

import numpy as np

#: Classes of arrays that are read. Cells, structures and objects may lie in each other, too deep
#: for scipy's stack; sparse matrices are larger than what is stored of them.
CLASSES = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)) + (
    "double",
    "single",
    "logical",
)
#: Bytes of a file's head, of a tag (kind, number of bytes), and of the widest number.
HEAD, TAG, NUMBER = 128, 8, 8
COMPRESSED = 15
#: Bytes that a file may hold beside the matrix asked for.
MOST_BESIDE = 2**20


def read_matrix(
    path: Path, name: str, check_shape: Callable[[tuple[int, ...]], None]
) -> np.ndarray:
    """Read a matrix of whole numbers by its name.

    The shape is read, and checked, before anything else is decompressed; then no more than a matrix
    of that shape needs.

    Args:
        path: the file, of MATLAB's versions 4 to 7.
        name: of the matrix.
        check_shape: raises for a shape that is not expected.

    Returns:
        The numbers, int32.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that cannot be read, or a matrix of something else.
        ImportError: scipy is missing.
    """
    io = scipy_io()
    content = path.read_bytes()
    try:
        found = [(s, kind) for other, s, kind in io.whosmat(BytesIO(content)) if other == name]
    except Exception as error:  # scipy raises many kinds for a file that is cut short
        raise ValueError(f"{path} cannot be read as a {name}: {error!r:.200}") from None
    if len(found) != 1 or found[0][1] not in CLASSES:
        kinds = ", ".join(kind for _, kind in found) or "none"
        raise ValueError(
            f"{path} cannot be read as a {name}: expected one matrix of numbers called {name}, "
            f"found {kinds:.80}"
        )
    shape = found[0][0]
    check_shape(shape)
    try:
        most = MOST_BESIDE + NUMBER * int(np.prod(shape))
        stored = io.loadmat(BytesIO(_decompress(content, most)), variable_names=[name])[name]
        numbers = np.asarray(stored).astype(np.int32)
        if numbers.shape != shape or not np.array_equal(numbers, stored):
            raise ValueError("it holds something else than whole numbers")
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a {name}: {error!r:.200}") from None
    return numbers


def _decompress(content: bytes, most: int) -> bytes:
    """Return a file whose parts are not compressed, as scipy reads it too.

    Raises:
        ValueError: more than `most` bytes when decompressed.
        zlib.error, struct.error: damage.
    """
    order = {b"IM": "<", b"MI": ">"}.get(content[HEAD - 2 : HEAD])
    if order is None:  # version 4, which compresses nothing
        return content
    parts, at = [content[:HEAD]], HEAD
    while at < len(content):
        kind, size = struct.unpack_from(f"{order}II", content, at)
        part = content[at : at + TAG + size]
        if kind == COMPRESSED:
            stream = zlib.decompressobj()
            part = stream.decompress(part[TAG:], most + 1)
        parts.append(part)
        most -= len(part)
        if most < 0:
            raise ValueError("it holds more bytes than a matrix of its size needs")
        at += TAG + size
    return b"".join(parts)


def scipy_io() -> ModuleType:
    """Import scipy's reader of MATLAB files.

    Raises:
        ImportError: scipy is missing.
    """
    try:
        from scipy import io
    except ImportError as error:
        raise ImportError(
            "PASCAL Context's .mat files need scipy; install the extra: "
            "pip install 'captum_clip_surgery[datasets]'"
        ) from error
    return io
