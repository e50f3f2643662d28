"""Data sets whose images each have a file of labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from captum_clip_surgery.datasets._base import IGNORE_INDEX, ImageDataset, Labels, Sample
from captum_clip_surgery.datasets._classes import Classes
from captum_clip_surgery.datasets._files import check_size, image_size, open_labels, open_rgb

#: Entry of a lookup table for a value that files of the data set never hold.
INVALID = -2


class PairedDataset(ImageDataset):
    """Images, each with a file of label values.

    Args:
        name: Name of the data set in results.
        classes: Names of its classes.
        files: Image file and label file by sample name.
        table: Lookup table from stored values to labels, see `lookup_table`.
        background: Index of the background class, or None.
    """

    def __init__(
        self,
        name: str,
        classes: Classes,
        files: Mapping[str, tuple[Path, Path]],
        table: np.ndarray,
        background: int | None = None,
    ) -> None:
        super().__init__(name, classes, list(files), background)
        self._files = files
        self._table = table

    def read(self, index: int) -> Sample:
        """Read an image and its labels."""
        name = self.names[index]
        image_path, path = self._files[name]
        image = open_rgb(image_path)
        stored = self._read_values(path, image, image_path)
        return Sample(name, image, Labels(relabel(stored, self._table_of(path), path)))

    def _read_values(self, path: Path, image: Image.Image, image_path: Path) -> np.ndarray:
        """Return the stored values (H, W) of a label file, after checking its size."""
        check_size(image, image_path, image_size(path), path)
        return open_labels(path)

    def _table_of(self, path: Path) -> np.ndarray:
        """Return the lookup table for one label file."""
        return self._table


def pair_files(
    images: Mapping[str, Path], labels: Mapping[str, Path]
) -> dict[str, tuple[Path, Path]]:
    """Return the image file and label file of every sample, sorted by sample name."""
    return {name: (images[name], labels[name]) for name in sorted(images)}


def lookup_table(count: int, void: int | None = None, first: int = 0) -> np.ndarray:
    """Return a table from stored values to labels.

    Args:
        count: Number of classes, which are stored as `first`, `first + 1`, ...
        void: Value of unlabeled pixels, unless it is the value of a class.
        first: Value of class 0.

    Returns:
        Array of int32: for every value its label, `IGNORE_INDEX` or `INVALID`.

    Example::

        >>> lookup_table(2, void=4).tolist()
        [0, 1, -2, -2, -1]
    """
    table = np.full(max(void or 0, first + count - 1) + 1, INVALID, np.int32)
    if void is not None:
        table[void] = IGNORE_INDEX
    table[first : first + count] = range(count)
    return table


def relabel(stored: np.ndarray, table: np.ndarray, path: Path | str) -> np.ndarray:
    """Look up the labels of stored values.

    Args:
        stored: Values (H, W) of a label file.
        table: Label of each value, or `INVALID`.
        path: The label file, for the message.

    Returns:
        Labels (H, W) of int32.

    Raises:
        ValueError: If a value has no label.
    """
    valid = (stored >= 0) & (stored < len(table))
    valid[valid] = table[stored[valid]] != INVALID
    if not valid.all():
        ranges = ", ".join(_ranges(np.flatnonzero(table != INVALID).tolist()))
        raise ValueError(f"{path} holds {int(stored[~valid][0])}, expected only {ranges}")
    return table[stored].astype(np.int32)


def _ranges(numbers: list[int]) -> list[str]:
    """Format ascending numbers as ranges, such as `0..18` and `255`."""
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    return [f"{a}..{b}" if a < b else f"{a}" for a, b in zip(starts, ends, strict=True)]
