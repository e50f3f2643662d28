"""NUS-WIDE: photographs from Flickr, and which of 81 concepts each shows."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath

import numpy as np

from captum_clip_surgery._utils.files import read_lines, read_text
from captum_clip_surgery.datasets._base import ImageDataset, Sample, Tags
from captum_clip_surgery.datasets._classes import Classes
from captum_clip_surgery.datasets._files import open_rgb
from captum_clip_surgery.datasets._layout import check_layout, check_option

HINT = (
    "Groundtruth.zip, ImageList.zip and ConceptsList.zip from NUS-WIDE's page, unpacked there: "
    "Groundtruth/TrainTestLabels/Labels_CONCEPT_{Train,Test}.txt, "
    "ImageList/{Train,Test}Imagelist.txt, ConceptsList/Concepts81.txt; and its photographs, "
    "Flickr/FOLDER/NAME.jpg"
)
SPLITS = {"train": "Train", "test": "Test"}
#: Folders where copies of the data set have its photographs.
IMAGES = ("Flickr", "images", "Images")
#: Value in the table of labels for "not known".
UNKNOWN = 2
#: The one invalid line of the published files: line 78372 of lake, train.
DAMAGED = {("lake", "Train"): "-1130179"}


class NusWide(ImageDataset):
    r"""NUS-WIDE: which of 81 concepts an image shows, as annotated by people.

    Expected files, as published; the photographs may also be in `images` or `Images`, and directly
    in these folders::

        root/ConceptsList/Concepts81.txt
        root/Groundtruth/TrainTestLabels/Labels_airport_Test.txt     0 or 1 per line
        root/ImageList/TestImagelist.txt                             FOLDER\NAME.jpg per line
        root/Flickr/FOLDER/NAME.jpg

    Photographs disappear from Flickr, and few copies have them all: missing ones are left out with
    a warning. `listed` is the number in the list, `missing` the names of those left out. The
    published files have one invalid line, of lake in the training split, which is read as unknown.

    Copies for hashing in .mat files have other images, 10 or 21 concepts and their own splits, in
    layouts that differ by author; they are not read.

    Args:
        root: The folder that contains `Groundtruth` and `ImageList`.
        split: "train" or "test".

    Raises:
        FileNotFoundError: If a list, a label file, or every photograph is missing.
        ValueError: If `split` is unknown, labels are not a 0 or 1 for each image, or the concepts
            differ.

    References:
        Chua et al.: NUS-WIDE: A Real-World Web Image Database from National University of
        Singapore. CIVR 2009; lms.comp.nus.edu.sg.
    """

    def __init__(self, root: Path | str, split: str = "test") -> None:
        check_option("NUS-WIDE", "split", split, SPLITS)
        root, part = Path(root), SPLITS[split]
        classes = Classes.named("nus_wide81")
        listing, concepts = f"ImageList/{part}Imagelist.txt", "ConceptsList/Concepts81.txt"
        files = [f"Groundtruth/TrainTestLabels/Labels_{c}_{part}.txt" for c in classes.first]
        check_layout("NUS-WIDE", root, [listing, concepts, *files], HINT)
        _check_concepts(root / concepts, classes.first)
        names = _read_list(root / listing)
        columns = [
            _read_column(root / file, len(names), DAMAGED.get((concept, part)))
            for concept, file in zip(classes.first, files, strict=True)
        ]
        paths = _find_images(root, names)
        present = [i for i, path in enumerate(paths) if path is not None]
        self.listed = len(names)
        self.missing = tuple(n for n, path in zip(names, paths, strict=True) if path is None)
        self._report_missing(root)
        self._root, self._paths = root, tuple(path for path in paths if path is not None)
        self._labels = np.stack(columns, axis=1)[present]
        super().__init__(f"NUS-WIDE {split}", classes, [names[i] for i in present])

    def _report_missing(self, root: Path) -> None:
        """Warn if some photographs are missing, raise if all are."""
        if len(self.missing) == self.listed:
            raise FileNotFoundError(
                f"none of NUS-WIDE's {self.listed} photographs is at {root}, such as "
                f"{self.missing[0]} in {' or '.join(IMAGES)}. Expected: {HINT}"
            )
        if self.missing:
            warnings.warn(
                f"{len(self.missing)} of NUS-WIDE's {self.listed} photographs are not at {root}, "
                f"such as {self.missing[0]}: figures cover the other "
                f"{self.listed - len(self.missing)}",
                stacklevel=3,
            )

    def read(self, index: int) -> Sample:
        """Read an image and its concepts."""
        row = self._labels[index]
        present, unknown = (frozenset(np.flatnonzero(row == v).tolist()) for v in (1, UNKNOWN))
        image = open_rgb(self._root / self._paths[index])
        return Sample(self.names[index], image, Tags(present, unknown))


def _check_concepts(path: Path, expected: tuple[str, ...]) -> None:
    concepts = tuple(read_text(path).split())
    if concepts != expected:
        raise ValueError(
            f"{path} has {len(concepts)} concepts, {', '.join(concepts[:3])[:80]} ..., expected "
            f"NUS-WIDE's {len(expected)}, {', '.join(expected[:3])} ... in their order"
        )


def _read_list(path: Path) -> list[str]:
    """Return the names FOLDER/NAME.jpg in a list of images, which is written with backslashes."""
    names = [PureWindowsPath(line).as_posix() for line in read_lines(path)]
    if not names:
        raise ValueError(f"{path} lists no images")
    if len(set(names)) < len(names):
        raise ValueError(f"{path} lists an image twice")
    return names


def _read_column(path: Path, count: int, damaged: str | None) -> np.ndarray:
    """Return one concept's label (count,) per image: 0, 1, or `UNKNOWN` for the damaged value."""
    values = read_text(path).split()
    if len(values) != count:
        raise ValueError(f"{path} has {len(values)} labels, its list {count} images")
    meaning = {"0": 0, "1": 1}
    if damaged is not None:
        meaning[damaged] = UNKNOWN
    for number, value in enumerate(values, 1):
        if value not in meaning:
            raise ValueError(f"{path}: label {number} is {value!r:.80}, expected 0 or 1")
    return np.array([meaning[value] for value in values], np.uint8)


def _find_images(root: Path, names: Sequence[str]) -> list[str | None]:
    """Return each photograph's path below `root`, in its own folder or directly in `IMAGES`."""
    present = set[str]()
    for folder in IMAGES:
        # One walk is faster than 100,000 existence checks, above all on network disks.
        for parent, _, files in os.walk(root / folder):
            below = Path(parent).relative_to(root).as_posix()
            present.update(f"{below}/{file}" for file in files)
    paths = []
    for name in names:
        ends = (name, name.rpartition("/")[2])
        options = (f"{folder}/{end}" for folder in IMAGES for end in ends)
        paths.append(next((option for option in options if option in present), None))
    return paths
