"""Open Images V7: places of images, and whether a class is there."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from captum_clip_surgery.datasets.base import (
    Classes,
    ImageDataset,
    Point,
    Points,
    Sample,
    check_layout,
    open_rgb,
)
from captum_clip_surgery.datasets.files import check_split, read_csv

DESCRIPTIONS = "oidv7-class-descriptions.csv"
#: What the files of points call the splits.
SPLITS = {"train": "train", "validation": "val", "test": "test"}
HINT = (
    f"{DESCRIPTIONS} and oidv7-{{train,val,test}}-annotations-point-labels.csv of "
    "storage.googleapis.com/openimages/v7 in it, and the images of the split, SPLIT/ID.jpg"
)
COLUMNS = ("ImageId", "X", "Y", "Label", "EstimatedYesNo", "TextLabel")
ANSWERS = {"yes": True, "no": False}
UNSURE = "unsure"


class OpenImagesPoints(ImageDataset):
    """Open Images V7, labels of points: places where people judged whether a class is there.

    Layout, as published::

        root/oidv7-class-descriptions.csv
        root/oidv7-val-annotations-point-labels.csv
        root/validation/0001eeaf4aed83f9.jpg

    A point whose `EstimatedYesNo` is yes is positive, no negative; unsure ones are left out, and so
    are images that have no other. Classes are those of the split's points, in the order of the
    descriptions; after them those that no description has, by the file's own `TextLabel`. `ids` are
    their ids in the files. Open Images gives a few of its classes the same name.

    Source: Benenson and Ferrari, "From colouring-in to pointillism: revisiting semantic
    segmentation supervision" (arXiv 2210.14142); storage.googleapis.com/openimages/web.

    Args:
        root: the folder of the files and of the split's folder of images.
        split: "train", "validation" or "test".

    Raises:
        FileNotFoundError: a file, or an image that has points, is missing.
        ValueError: another split, or a file of other columns or values.
    """

    def __init__(self, root: Path | str, split: str = "validation") -> None:
        check_split("Open Images", split, SPLITS)
        root = Path(root)
        file = f"oidv7-{SPLITS[split]}-annotations-point-labels.csv"
        check_layout("Open Images V7", root, [DESCRIPTIONS, file, split], HINT)
        described = _descriptions(root / DESCRIPTIONS)
        self._folder = root / split
        self._table = _Table(root / file, described)
        _check_images(self._folder, self._table.images)
        self.ids = self._table.ids
        texts = self._table.texts
        names = tuple((described.get(i) or texts[i],) for i in self.ids)
        source = f"{DESCRIPTIONS} of Open Images V7"
        super().__init__(
            f"Open Images V7 points {split}", Classes(names, source), self._table.images
        )

    def read(self, index: int) -> Sample:
        name = self.names[index]
        return Sample(name, open_rgb(self._folder / f"{name}.jpg"), self._table.points(index))


class _Table:
    """The judged points of a file by image, in arrays: there are millions.

    `images` are their names, sorted; `ids` those of the classes, and `texts` the names that the
    file itself has for those that are not described.
    """

    def __init__(self, path: Path, described: dict[str, str]) -> None:
        images: dict[str, int] = {}
        labels: dict[str, int] = {}
        self.texts: dict[str, str] = {}
        image, label, positive = array("i"), array("i"), array("b")
        x, y = array("d"), array("d")
        for where, (name, across, down, identity, answer, text) in _rows(path):
            if answer == UNSURE:
                continue
            if answer not in ANSWERS:
                raise ValueError(
                    f"{where}: EstimatedYesNo is {answer!r:.80}, expected yes, no, unsure"
                )
            if identity not in described:
                if not text:
                    raise ValueError(
                        f"{where}: class {identity!r:.80} is not in {DESCRIPTIONS} and has no "
                        "TextLabel"
                    )
                identity = identity or text
                self.texts.setdefault(identity, text)
            image.append(images.setdefault(name, len(images)))
            label.append(labels.setdefault(identity, len(labels)))
            x.append(_coordinate(across, where))
            y.append(_coordinate(down, where))
            positive.append(ANSWERS[answer])
        if not images:
            raise ValueError(f"{path} holds no point that was judged yes or no")
        rank = {identity: i for i, identity in enumerate(described)}
        self.ids = tuple(sorted(labels, key=lambda i: (rank.get(i, len(rank)), i)))
        self.images = tuple(sorted(images))
        # From numbers in the order of the file to those of the sorted names.
        rows = np.argsort([images[name] for name in self.images])[np.array(image)]
        classes = np.argsort([labels[i] for i in self.ids])[np.array(label)]
        by_image = np.argsort(rows, kind="stable")
        self._starts = np.searchsorted(rows[by_image], np.arange(len(images) + 1))
        self._label = classes[by_image]
        self._x, self._y = np.array(x)[by_image], np.array(y)[by_image]
        self._positive = np.array(positive, bool)[by_image]

    def points(self, index: int) -> Points:
        """Those of image `index`, in the order of the file."""
        part = slice(self._starts[index], self._starts[index + 1])
        columns = (self._label[part], self._x[part], self._y[part], self._positive[part])
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return Points(tuple(Point(*row) for row in rows))


def _rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Where a row of a file of points is, and its `COLUMNS`."""
    rows = read_csv(path)
    _, header = next(rows, (0, []))
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        raise ValueError(f"{path} has no column {', '.join(missing)}")
    places = [header.index(column) for column in COLUMNS]
    for number, row in rows:
        where = f"{path}, line {number}"
        if len(row) != len(header):
            raise ValueError(f"{where} has {len(row)} cells, expected {len(header)}")
        yield where, [row[place].strip() for place in places]


def _coordinate(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise ValueError(f"{where}: coordinate {text!r:.80}, expected a number in 0..1")
    return value


def _descriptions(path: Path) -> dict[str, str]:
    """Names by id, in the file's order."""
    names = {}
    for number, row in read_csv(path):
        if row and (len(row) != 2 or not row[1].strip()):
            raise ValueError(f"{path} has other columns than an id and a name in line {number}")
        if row and row[0] != "LabelName":
            names[row[0].strip()] = row[1].strip()
    return names


def _check_images(folder: Path, names: tuple[str, ...]) -> None:
    there = {path.name for path in folder.iterdir()}
    missing = [name for name in names if f"{name}.jpg" not in there]
    if missing:
        raise FileNotFoundError(
            f"Open Images V7 is not whole: {len(missing)} of {len(names)} images with points are "
            f"not in {folder}, such as {missing[0]:.80}.jpg. Expected: {HINT}"
        )
