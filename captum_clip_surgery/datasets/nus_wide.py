"""NUS-WIDE: photographs of Flickr, and which of 81 concepts each shows."""

from __future__ import annotations

import os
import warnings
from pathlib import Path, PureWindowsPath

import numpy as np

from captum_clip_surgery.datasets.base import (
    Classes,
    ImageDataset,
    Sample,
    Tags,
    check_layout,
    open_rgb,
)
from captum_clip_surgery.datasets.files import check_split, read_text

HINT = (
    "Groundtruth.zip, ImageList.zip and ConceptsList.zip of NUS-WIDE's page unpacked in it: "
    "Groundtruth/TrainTestLabels/Labels_CONCEPT_{Train,Test}.txt, "
    "ImageList/{Train,Test}Imagelist.txt, ConceptsList/Concepts81.txt; and its photographs, "
    "Flickr/FOLDER/NAME.jpg"
)
SPLITS = {"train": "Train", "test": "Test"}
#: Where copies of the data set have its photographs.
IMAGES = ("Flickr", "images", "Images")
#: In the table of labels: not known.
UNKNOWN = 2
#: The one damaged line of the published files, of neither meaning: line 78372 of lake, train.
DAMAGED = {("lake", "Train"): -1130179}


class NusWide(ImageDataset):
    """NUS-WIDE: which of 81 concepts an image shows, as people judged it.

    Layout, as published; the photographs may lie in `images` or `Images` as well, and there without
    folders of their own::

        root/ConceptsList/Concepts81.txt
        root/Groundtruth/TrainTestLabels/Labels_airport_Test.txt     0 or 1 a line
        root/ImageList/TestImagelist.txt                             FOLDER\\NAME.jpg a line
        root/Flickr/FOLDER/NAME.jpg

    Photographs vanish from Flickr, and hardly a copy has them all: those that are not there are
    left out with a warning. `listed` is how many the list has, `missing` the names of those left
    out. The published files hold one damaged line, of lake in the training split: unknown there.

    Copies for hashing in .mat files hold other images, 10 or 21 concepts and splits of their own,
    in a layout that differs by author: they are not read.

    Source: Chua et al., "NUS-WIDE: A Real-World Web Image Database from National University of
    Singapore" (CIVR 2009) and its page, lms.comp.nus.edu.sg.

    Args:
        root: the folder of `Groundtruth` and `ImageList`.
        split: "train" or "test".

    Raises:
        FileNotFoundError: a list, a file of labels, or every photograph is missing.
        ValueError: another split, labels that are not a 0 or 1 for each image, or other concepts.
    """

    def __init__(self, root: Path | str, split: str = "test") -> None:
        check_split("NUS-WIDE", split, SPLITS)
        root, part = Path(root), SPLITS[split]
        classes = Classes.named("nus_wide81")
        listing, concepts = f"ImageList/{part}Imagelist.txt", "ConceptsList/Concepts81.txt"
        files = [f"Groundtruth/TrainTestLabels/Labels_{c}_{part}.txt" for c in classes.first]
        check_layout("NUS-WIDE", root, [listing, concepts, *files], HINT)
        _check_concepts(root / concepts, classes.first)
        names = _listed(root / listing)
        columns = [
            _column(root / file, len(names), DAMAGED.get((concept, part)))
            for concept, file in zip(classes.first, files, strict=True)
        ]
        found = _find(root, names)
        kept = [i for i, path in enumerate(found) if path is not None]
        self.listed = len(names)
        self.missing = tuple(n for n, path in zip(names, found, strict=True) if path is None)
        self._report(root)
        self._files = tuple(path for path in found if path is not None)
        self._root = root
        self._labels = np.stack(columns, axis=1)[kept]
        super().__init__(f"NUS-WIDE {split}", classes, [names[i] for i in kept])

    def _report(self, root: Path) -> None:
        """Say which share of the photographs is there."""
        if len(self.missing) == self.listed:
            raise FileNotFoundError(
                f"none of NUS-WIDE's {self.listed} photographs is at {root}, such as "
                f"{self.missing[0]} in {' or '.join(IMAGES)}. Expected: {HINT}"
            )
        if self.missing:
            warnings.warn(
                f"{len(self.missing)} of NUS-WIDE's {self.listed} photographs are not at {root}, "
                f"such as {self.missing[0]}: figures are of the other "
                f"{self.listed - len(self.missing)}",
                stacklevel=3,
            )

    def read(self, index: int) -> Sample:
        row = self._labels[index]
        present, unknown = (frozenset(np.flatnonzero(row == v).tolist()) for v in (1, UNKNOWN))
        image = open_rgb(self._root / self._files[index])
        return Sample(self.names[index], image, Tags(present, unknown))


def _check_concepts(path: Path, expected: tuple[str, ...]) -> None:
    concepts = tuple(read_text(path).split())
    if concepts != expected:
        raise ValueError(
            f"{path} has {len(concepts)} concepts, {', '.join(concepts[:3])[:80]} ..., expected "
            f"NUS-WIDE's {len(expected)}, {', '.join(expected[:3])} ... in their order"
        )


def _listed(path: Path) -> list[str]:
    """Names in a list of images, FOLDER/NAME.jpg; the lists are written with back slashes."""
    lines = (line.strip() for line in read_text(path).splitlines())
    names = [PureWindowsPath(line).as_posix() for line in lines if line]
    if not names:
        raise ValueError(f"{path} lists no images")
    if len(set(names)) < len(names):
        raise ValueError(f"{path} lists an image twice")
    return names


def _column(path: Path, count: int, damaged: int | None) -> np.ndarray:
    """One concept's label of each of `count` images: 0, 1, or `UNKNOWN` where it is `damaged`."""
    values = read_text(path).split()
    if len(values) != count:
        raise ValueError(f"{path} has {len(values)} labels, its list {count} images")
    meaning = {"0": 0, "1": 1}
    if damaged is not None:
        meaning[str(damaged)] = UNKNOWN
    for number, value in enumerate(values, 1):
        if value not in meaning:
            raise ValueError(f"{path}: label {number} is {value!r:.80}, expected 0 or 1")
    return np.array([meaning[value] for value in values], np.uint8)


def _find(root: Path, names: list[str]) -> list[str | None]:
    """Where below `root` each photograph is: in its own folder, or with all others in one."""
    there = set[str]()
    for folder in IMAGES:
        # A walk is quicker than to ask for each of 100,000 files, on network disks above all.
        for parent, _, files in os.walk(root / folder):
            place = Path(parent).relative_to(root).as_posix()
            there.update(f"{place}/{file}" for file in files)
    found = []
    for name in names:
        places = (name, name.rpartition("/")[2])
        options = (f"{folder}/{place}" for folder in IMAGES for place in places)
        found.append(next((option for option in options if option in there), None))
    return found
