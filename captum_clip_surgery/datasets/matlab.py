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
CLASSES = (
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "double", "single",
    "logical",
)  # fmt: skip
#: Numbers of the format: kinds of elements, and those that scipy knows as numbers. With others it
#: reads outside its memory.
MATRIX, COMPRESSED = 14, 15
NUMBERS = (1, 2, 3, 4, 5, 6, 7, 9, 12, 13)
#: Bytes of a file's head, of a tag (kind, number of bytes), and of the widest number; and those of
#: an element that are enough to tell its name, class and shape.
HEAD, TAG, NUMBER, BEGINNING = 128, 8, 8, 1024


def read_matrix(
    path: Path, name: str, check_shape: Callable[[tuple[int, ...]], None]
) -> np.ndarray:
    """Read a matrix of whole numbers by its name.

    The shape is read and checked first. Then no more is decompressed than a matrix of that shape
    needs.

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
        found = [
            (element, shape, kind)
            for element in _split(content)
            for other, shape, kind in io.whosmat(BytesIO(_beginning(content, element)))
            if other == name
        ]
    except Exception as error:  # scipy raises many kinds for a file that is cut short
        raise ValueError(f"{path} cannot be read as a {name}: {error!r:.200}") from None
    if len(found) != 1 or found[0][2] not in CLASSES:
        kinds = ", ".join(kind for *_, kind in found) or "none"
        raise ValueError(
            f"{path} cannot be read as a {name}: expected one matrix of numbers called {name}, "
            f"found {kinds:.80}"
        )
    element, shape, _ = found[0]
    check_shape(shape)
    try:
        file = BytesIO(_whole(content, element, NUMBER * int(np.prod(shape)) + BEGINNING))
        stored = io.loadmat(file, variable_names=[name])[name]
        with np.errstate(invalid="ignore"):
            numbers = np.asarray(stored).real.astype(np.int32)
        if numbers.shape != shape or not np.array_equal(numbers, stored):
            raise ValueError("it holds something else than whole numbers of 32 bits")
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a {name}: {error!r:.200}") from None
    return numbers


def _split(content: bytes) -> list[bytes]:
    """Return the elements of a file, each with its tag; one that is all of a file of version 4."""
    if b"\0" in content[:4]:  # as scipy tells versions
        return [content]
    order = _byte_order(content)
    elements, at = [], HEAD
    while at < len(content):
        _, size = struct.unpack_from(f"{order}II", content, at)
        elements.append(content[at : at + TAG + size])
        at += TAG + size
    return elements


def _byte_order(content: bytes) -> str:
    order = {b"IM": "<", b"MI": ">"}.get(content[HEAD - 2 : HEAD])
    if order is None:
        raise ValueError("it is no MATLAB file")
    return order


def _beginning(content: bytes, element: bytes) -> bytes:
    """Return a file that ends soon after the beginning of one element."""
    if element is content:
        return content
    order = _byte_order(content)
    part = _decompress(element, order, BEGINNING)[:BEGINNING]
    return content[:HEAD] + part[:4] + struct.pack(f"{order}I", len(part) - TAG) + part[TAG:]


def _whole(content: bytes, element: bytes, most: int) -> bytes:
    """Return a file of one element, uncompressed, of which all is as scipy expects it.

    Raises:
        ValueError: more than `most` bytes, or numbers of a kind that does not exist.
    """
    if element is content:
        return content
    order = _byte_order(content)
    part = _decompress(element, order, most + 1)
    if len(part) > most:
        raise ValueError("it holds more bytes than a matrix of its size needs")
    at = TAG
    while at < len(part):
        kind, size = struct.unpack_from(f"{order}II", part, at)
        if kind >> 16:  # up to 4 bytes, in the tag itself
            kind, size = kind & 0xFFFF, 0
        if kind not in NUMBERS or at + TAG + size > len(part):
            raise ValueError(f"byte {at} of it begins {size} bytes of kind {kind}, no numbers")
        at += TAG + -(-size // TAG) * TAG
    return content[:HEAD] + part


def _decompress(element: bytes, order: str, most: int) -> bytes:
    """Return an element, of which at most `most` bytes are decompressed."""
    kind, _ = struct.unpack_from(f"{order}II", element)
    if kind == COMPRESSED:
        element = zlib.decompressobj().decompress(element[TAG:], most)
        kind, _ = struct.unpack_from(f"{order}II", element)
    if kind != MATRIX:
        raise ValueError(f"it holds an element of kind {kind}, expected matrices")
    return element


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
