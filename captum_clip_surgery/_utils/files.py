"""Text, JSON and CSV files with errors that name the file and the line, and walks of folders."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_text(path: Path) -> str:
    """Return the content of a UTF-8 text file without its byte order mark.

    Raises:
        ValueError: If the file is not UTF-8 text; the message names the line.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line} is not UTF-8 text: {error.reason}") from None


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
                    f"{error.reason}"
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
