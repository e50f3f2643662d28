"""Whether files are there as they are listed, and fit each other."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image


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
    return [line.split()[0] for line in path.read_text().splitlines() if line.strip()]


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


def check_size(image: Image.Image, image_path: Path, stored: np.ndarray, path: Path) -> None:
    """Whether labels have the sides of their image.

    Raises:
        ValueError: they have not; both files and sizes.
    """
    if stored.shape != (image.height, image.width):
        raise ValueError(
            f"{path} is {stored.shape[1]} x {stored.shape[0]} pixels, its image {image_path} is "
            f"{image.width} x {image.height}"
        )
