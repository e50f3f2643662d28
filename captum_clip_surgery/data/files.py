"""Whether files are there as they are listed, and fit each other."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from PIL import Image


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
