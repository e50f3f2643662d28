"""Matrices in MATLAB files, decompressed only as far as their shape requires."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import ModuleType

import numpy as np

#: Array classes that are read. Cells, structures and objects can be nested too deeply for scipy's
#: stack; sparse matrices can be much larger than their file.
CLASSES = (
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "double", "single",
    "logical",
)  # fmt: skip
#: Element types of the format, and those that scipy reads as numbers. For other types it reads out
#: of bounds.
MATRIX, COMPRESSED = 14, 15
NUMBERS = (1, 2, 3, 4, 5, 6, 7, 9, 12, 13)
#: Sizes in bytes of a file's header, of a tag (type, number of bytes) and of the widest number, and
#: of the start of an element that contains its name, class and shape.
HEADER, TAG, NUMBER, PREFIX = 128, 8, 8, 1024


def read_matrix(
    path: Path, name: str, check_shape: Callable[[tuple[int, ...]], None]
) -> np.ndarray:
    """Read a matrix of integers by its name.

    The shape is read and checked first; then no more is decompressed than a matrix of that shape
    needs.

    Args:
        path: The file, of MATLAB's versions 4 to 7.
        name: Name of the matrix.
        check_shape: Function that raises for an unexpected shape.

    Returns:
        The matrix, int32.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, or does not hold such a matrix.
        ImportError: If scipy is missing.
    """
    io = import_scipy_io()
    content = path.read_bytes()
    try:
        matches = [
            (element, shape, kind)
            for element in _split(content)
            for other, shape, kind in io.whosmat(BytesIO(_truncated(content, element)))
            if other == name
        ]
    except Exception as error:  # scipy raises many types for truncated files
        raise ValueError(f"{path} cannot be read as a {name}: {error!r:.200}") from None
    if len(matches) != 1 or matches[0][2] not in CLASSES:
        kinds = ", ".join(kind for *_, kind in matches) or "none"
        raise ValueError(
            f"{path} cannot be read as a {name}: expected one matrix of numbers called {name}, "
            f"found {kinds:.80}"
        )
    element, shape, _ = matches[0]
    check_shape(shape)
    try:
        file = BytesIO(_whole(content, element, NUMBER * int(np.prod(shape)) + PREFIX))
        stored = io.loadmat(file, variable_names=[name])[name]
        with np.errstate(invalid="ignore"):
            numbers = np.asarray(stored).real.astype(np.int32)
        if numbers.shape != shape or not np.array_equal(numbers, stored):
            raise ValueError("it holds values other than 32-bit integers")
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a {name}: {error!r:.200}") from None
    return numbers


def _split(content: bytes) -> list[bytes]:
    """Return the elements of a file with their tags; a file of version 4 is one element."""
    if b"\0" in content[:4]:  # scipy's test for version 4
        return [content]
    order = _byte_order(content)
    elements, at = [], HEADER
    while at < len(content):
        _, size = struct.unpack_from(f"{order}II", content, at)
        elements.append(content[at : at + TAG + size])
        at += TAG + size
    return elements


def _byte_order(content: bytes) -> str:
    order = {b"IM": "<", b"MI": ">"}.get(content[HEADER - 2 : HEADER])
    if order is None:
        raise ValueError("it is not a MATLAB file")
    return order


def _truncated(content: bytes, element: bytes) -> bytes:
    """Return a file with only the start of one element."""
    if element is content:
        return content
    order = _byte_order(content)
    part = _decompress(element, order, PREFIX)[:PREFIX]
    return content[:HEADER] + part[:4] + struct.pack(f"{order}I", len(part) - TAG) + part[TAG:]


def _whole(content: bytes, element: bytes, max_size: int) -> bytes:
    """Return a file with one element, uncompressed and valid for scipy.

    Raises:
        ValueError: If the element has more than `max_size` bytes, or an unknown number type.
    """
    if element is content:
        return content
    order = _byte_order(content)
    part = _decompress(element, order, max_size + 1)
    if len(part) > max_size:
        raise ValueError("it holds more bytes than a matrix of its size needs")
    at = TAG
    while at < len(part):
        kind, size = struct.unpack_from(f"{order}II", part, at)
        if kind >> 16:  # up to 4 bytes, in the tag itself
            kind, size = kind & 0xFFFF, 0
        if kind not in NUMBERS or at + TAG + size > len(part):
            raise ValueError(
                f"its byte {at} starts {size} bytes of type {kind}, which are not numbers"
            )
        at += TAG + -(-size // TAG) * TAG
    return content[:HEADER] + part


def _decompress(element: bytes, order: str, max_size: int) -> bytes:
    """Return an element, decompressing at most `max_size` bytes."""
    kind, _ = struct.unpack_from(f"{order}II", element)
    if kind == COMPRESSED:
        element = zlib.decompressobj().decompress(element[TAG:], max_size)
        kind, _ = struct.unpack_from(f"{order}II", element)
    if kind != MATRIX:
        raise ValueError(f"it holds an element of type {kind}, expected matrices")
    return element


def import_scipy_io() -> ModuleType:
    """Import scipy's reader of MATLAB files.

    Raises:
        ImportError: If scipy is missing.
    """
    try:
        from scipy import io
    except ImportError as error:
        raise ImportError(
            "PASCAL Context's .mat files need scipy; install the extra: "
            "pip install 'captum_clip_surgery[datasets]'"
        ) from error
    return io
