"""Tell what kind of file is given in place of a checkpoint, or that a checkpoint is incomplete."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

POINTER = b"version https://git-lfs"
MAX_HEADER = 100_000_000  # bytes of a header of safetensors, as its reader allows


def check_kind(path: Path) -> None:
    """Check that a file can be one of weights, by its beginning and its size.

    Raises:
        ValueError: If it is a pointer of Git LFS, a web page, a text, empty or cut off.
    """
    problem = describe_problem(path)
    if problem:
        raise ValueError(f"{path} is {problem}")


def describe_problem(path: Path) -> str | None:
    """Describe why a file cannot hold weights, and how to get the right one; None if it can."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(512)
    if not size:
        return "empty; download or save it again"
    if stand_in := describe_stand_in(start):
        return stand_in
    if path.suffix == ".safetensors":
        return _problem_of_safetensors(path, size, start)
    if start.startswith(b"PK\x03\x04") and not zipfile.is_zipfile(path):
        return f"cut off: an archive of {size:,} bytes without its end; download or save it again"
    if start.startswith((b"\x1f\x8b", b"BZh", b"7z\xbc\xaf", b"\xfd7zXZ")):
        return "compressed; unpack it first"
    if start.lstrip().startswith((b"{", b"[")):
        return "JSON, perhaps a configuration, and not the weights"
    return None


def describe_stand_in(start: bytes) -> str | None:
    """Describe what was downloaded in place of a file, from its first bytes; None if it was not."""
    text = start.lstrip().lower()
    if start.startswith(POINTER):
        return "a pointer of Git LFS and not the file itself; fetch it with git lfs pull"
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page (HTML) and not the file itself; download that"
    if text.startswith(b"<?xml"):
        return "an XML document, perhaps a server's error message, and not the file itself"
    return None


def _problem_of_safetensors(path: Path, size: int, start: bytes) -> str | None:
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return "not in the form of safetensors but of torch.save; name it .pt"
    length = int.from_bytes(start[:8], "little")
    if size < 8 or length > MAX_HEADER or start[8:9] != b"{":
        return "not in the form of safetensors"
    if size < 8 + length:
        return f"cut off: its header has {length:,} bytes, the file {size:,}"
    with path.open("rb") as stream:
        stream.seek(8)
        try:
            header = json.loads(stream.read(length))
            end = max((v["data_offsets"][1] for k, v in header.items() if k[:2] != "__"), default=0)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            return "not in the form of safetensors: its header is damaged"
    if size < 8 + length + end:
        return f"cut off: it has {size:,} of {8 + length + end:,} bytes; download it again"
    return None
