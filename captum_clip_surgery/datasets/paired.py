"""Data sets of which each image has a PNG of labels, in two folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from captum_clip_surgery.datasets.base import IGNORE_INDEX, open_labels, open_rgb, picture_size
from captum_clip_surgery.datasets.files import check_size

#: In a table for `relabel`: a value that files of the data set never hold.
INVALID = -2


def check_paired(
    name: str, images: Mapping[str, Path], labels: Mapping[str, Path], hint: str
) -> None:
    """Whether each image has its labels, and each file of labels its image.

    Args:
        name: of the data set.
        images, labels: files by the name of the sample.
        hint: what to download and unpack where.

    Raises:
        FileNotFoundError: how many are alone, one of them, and the hint.
    """
    for files, others, what in ((images, labels, "labels"), (labels, images, "image")):
        alone = sorted(set(files) - set(others))
        if alone:
            raise FileNotFoundError(
                f"{name} is not whole: {len(alone)} of {len(files)} have no {what}, such as "
                f"{files[alone[0]]}. Expected: {hint}"
            )


def read_pair(image_path: Path, labels_path: Path) -> tuple[Image.Image, np.ndarray]:
    """An image and the numbers in its PNG of labels.

    Raises:
        ValueError: they differ in size, or one cannot be read.
    """
    image = open_rgb(image_path)
    check_size(image, image_path, picture_size(labels_path), labels_path)
    return image, open_labels(labels_path)


def own_numbers(count: int, void: int) -> np.ndarray:
    """A table for `relabel`: classes 0 to count - 1 stay, `void` is ignored unless it is one."""
    table = np.full(max(void + 1, count), INVALID)
    table[void] = IGNORE_INDEX
    table[:count] = range(count)
    return table


def relabel(stored: np.ndarray, table: np.ndarray, path: Path) -> np.ndarray:
    """Numbers of a file as labels, by `table`, which has the label of each number or `INVALID`.

    Raises:
        ValueError: a number that the table has no label for, and the file's `path`.
    """
    known = (stored >= 0) & (stored < len(table))
    known[known] = table[stored[known]] != INVALID
    if not known.all():
        allowed = np.flatnonzero(table != INVALID)
        raise ValueError(
            f"{path} holds {int(stored[~known][0])}, expected only "
            f"{', '.join(_ranges(allowed.tolist()))}"
        )
    return table[stored].astype(np.int32)


def _ranges(numbers: list[int]) -> list[str]:
    """Ascending numbers as `0..18`, `255`."""
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    return [f"{a}..{b}" if a < b else f"{a}" for a, b in zip(starts, ends, strict=True)]
