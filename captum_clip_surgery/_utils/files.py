"""Text, JSON and CSV files with errors that name the file and the line, and walks of folders."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
#: Byte order marks begin a file, and each further part of a file that was put together.
BYTE_ORDER_MARKS = re.compile("^\ufeff+", re.MULTILINE)
LINE_ENDS = re.compile("\r\n?")


def read_text(path: Path, errors: str = "strict") -> str:
    """Return the content of a UTF-8 text file without byte order marks, its lines ended by LF.

    Args:
        path: The file.
        errors: What to do with bytes that are not UTF-8, as for `bytes.decode`.

    Raises:
        ValueError: If the file is not UTF-8 text; the message names the line.
    """
    content = path.read_bytes()
    if content.startswith(UTF_16_MARKS) or b"\0" in content:
        raise ValueError(f"{path} is not UTF-8 text but UTF-16 or binary; save it as UTF-8")
    try:
        text = content.decode(errors=errors)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}, line {line} is not UTF-8 text: {error.reason}; save the file as UTF-8"
        ) from None
    return clean_text(text)


def clean_text(text: str) -> str:
    """Return a text without byte order marks, its lines ended by LF."""
    return BYTE_ORDER_MARKS.sub("", LINE_ENDS.sub("\n", text))


def read_lines(path: Path, errors: str = "strict") -> list[str]:
    """Return the lines of a text file that are not blank, stripped.

    Args:
        path: The file, read as by `read_text`.
        errors: What to do with bytes that are not UTF-8.

    Raises:
        ValueError: If the file is not UTF-8 text; the message names the line.
    """
    # `str.splitlines` also splits at characters that names may contain.
    lines = (line.strip() for line in read_text(path, errors).split("\n"))
    return [line for line in lines if line]


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        ValueError: If the file cannot be parsed; the message names the line if it is known.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{path} cannot be read as JSON: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from None


def read_csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Read the rows of a UTF-8 CSV file one by one.

    Yields:
        The number of the row's last line, counted from 1, and the row's cells.

    Raises:
        ValueError: If a row cannot be parsed or decoded; the message names the line.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file)
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                raise ValueError(f"{path}, line {rows.line_num}: {error}") from None
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}, at or after line {rows.line_num + 1}, is not UTF-8 text: "
                    f"{error.reason}; save the file as UTF-8"
                ) from None
            yield rows.line_num, row


def walk(root: str | os.PathLike[str], leave_out: str | None = None) -> Iterator[str]:
    """Yield the sorted paths of all files below a folder, following links but not cycles.

    Args:
        root: The folder.
        leave_out: Real path of a folder to skip.

    Raises:
        OSError: If a folder cannot be listed.
    """
    seen = {leave_out}
    for folder, folders, files in os.walk(root, followlinks=True, onerror=_raise):
        true = os.path.realpath(folder)
        if true in seen:
            folders.clear()
            continue
        seen.add(true)
        folders.sort()
        for name in sorted(files):
            yield os.path.join(folder, name)  # noqa: PTH118 (Path is slow for a million files)


def _raise(error: OSError) -> None:
    raise error


def state_of(path: str | os.PathLike[str]) -> str:
    """Return a file's size and modification time as text, or "missing".

    For a broken link these are the link's own.
    """
    try:
        state = os.stat(path)  # noqa: PTH116
    except OSError:
        try:
            state = os.lstat(path)
        except OSError:
            return "missing"
    return f"{state.st_size} {state.st_mtime_ns}"
