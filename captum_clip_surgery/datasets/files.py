"""Files of data sets: read as text, JSON or CSV, found as they are listed, of sizes that fit."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, without its byte order mark if it has one.

    Raises:
        ValueError: other bytes; names the file and the line.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line} is no text in UTF-8: {error.reason}") from None


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: no JSON; names the file and, where it is known, the line.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{path} cannot be read as JSON: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from None


def read_csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Read the rows of a CSV file in UTF-8 one by one.

    Yields:
        The number of the line that the row ends in, from 1, and the row's cells.

    Raises:
        ValueError: a row that is no CSV or no text; names the file and the line.
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
                    f"{path}, at or after line {rows.line_num + 1}, is no text in UTF-8: "
                    f"{error.reason}"
                ) from None
            yield rows.line_num, row


def walk(root: str | os.PathLike[str], leave_out: str | None = None) -> Iterator[str]:
    """Paths of all files below a folder in their order, links followed, though not in circles.

    Args:
        root: the folder.
        leave_out: the real path of a folder that is passed over, should it lie below.

    Raises:
        OSError: a folder that cannot be listed.
    """
    seen = {leave_out}
    for folder, folders, files in os.walk(root, followlinks=True, onerror=_refuse):
        true = os.path.realpath(folder)
        if true in seen:
            folders.clear()
            continue
        seen.add(true)
        folders.sort()
        for name in sorted(files):
            yield os.path.join(folder, name)  # noqa: PTH118 (of a million files it counts)


def _refuse(error: OSError) -> None:
    raise error


def state_of(path: str | os.PathLike[str]) -> str:
    """Size and time of a file, by which a change shows; of a link that leads nowhere its own."""
    try:
        state = os.stat(path)  # noqa: PTH116
    except OSError:
        try:
            state = os.lstat(path)
        except OSError:
            return "missing"
    return f"{state.st_size} {state.st_mtime_ns}"


def read_names(path: Path) -> list[str]:
    """The first word of each line."""
    return [line.split()[0] for line in read_text(path).splitlines() if line.strip()]


def check_split(name: str, split: str, splits: Collection[str]) -> None:
    """Raises ValueError for a split that a data set does not have."""
    if split not in splits:
        raise ValueError(f"split {split!r} of {name} is none of {', '.join(splits)}")


def check_listed(
    name: str, listed: Path, folder: Path, names: Sequence[str], suffix: str, hint: str
) -> None:
    """Whether each listed name has its file in a folder.

    Args:
        name: of the data set.
        listed: the file that lists the names.
        folder: where the files are.
        names: of the files, without suffix.
        suffix: of the files, with its dot.
        hint: what to download and unpack where.

    Raises:
        FileNotFoundError: how many are missing, the first of them, and the hint.
    """
    there = {path.name for path in folder.iterdir()}
    missing = [n for n in names if n + suffix not in there]
    if missing:
        raise FileNotFoundError(
            f"{name} is not whole: {len(missing)} of {len(names)} files that {listed} lists are "
            f"missing, such as {folder / (missing[0] + suffix)}. Expected: {hint}"
        )


def check_files(name: str, folder: Path, files: Iterable[str], hint: str) -> None:
    """Whether all `files` are in `folder`, which is listed once: they are thousands.

    Raises:
        FileNotFoundError: how many are missing, the first of them, and the hint.
    """
    there = {path.name for path in folder.iterdir()}
    missing = [file for file in files if file not in there]
    if missing:
        raise FileNotFoundError(
            f"{name} is not whole: {len(missing)} files are missing from {folder}, the first "
            f"{missing[0]}. Expected: {hint}"
        )


def check_size(
    image: Image.Image, image_path: Path, size: tuple[int, int], path: Path | str
) -> None:
    """Check that labels have the size of their image, before they are decoded.

    Args:
        image: the image.
        image_path: its file, for the message.
        size: (width, height) of the labels.
        path: their file, for the message.

    Raises:
        ValueError: the sizes differ; names both files and sizes.
    """
    if size != image.size:
        raise ValueError(
            f"{path} is {size[0]} x {size[1]} pixels, its image {image_path} is {image.width} x "
            f"{image.height}"
        )
