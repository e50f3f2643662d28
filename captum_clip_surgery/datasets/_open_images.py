"""Open Images V7: annotated points, and whether a class is there."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from captum_clip_surgery._utils.files import read_csv
from captum_clip_surgery.datasets._base import ImageDataset, Point, Points, Sample
from captum_clip_surgery.datasets._classes import Classes
from captum_clip_surgery.datasets._files import open_rgb
from captum_clip_surgery.datasets._layout import check_files, check_layout, check_option

DESCRIPTIONS = "oidv7-class-descriptions.csv"
#: The splits' names in the names of the point files.
SPLITS = {"train": "train", "validation": "val", "test": "test"}
HINT = (
    f"{DESCRIPTIONS} and oidv7-{{train,val,test}}-annotations-point-labels.csv from "
    "storage.googleapis.com/openimages/v7, and the images of the split, SPLIT/ID.jpg"
)
COLUMNS = ("ImageId", "X", "Y", "Label", "EstimatedYesNo", "TextLabel")
ANSWERS = {"yes": True, "no": False}
UNSURE = "unsure"


class OpenImagesPoints(ImageDataset):
    """Open Images V7 point labels: points where people judged whether a class is there.

    Expected files, as published::

        root/oidv7-class-descriptions.csv
        root/oidv7-val-annotations-point-labels.csv
        root/validation/0001eeaf4aed83f9.jpg

    A point whose `EstimatedYesNo` is yes is positive, no negative; unsure points are left out, and
    so are images with unsure points only. The classes are those of the split's points, in the order
    of the descriptions, followed by those without description, named by the file's `TextLabel`.
    `ids` are the classes' ids in the files. A few classes of Open Images share a name.

    Args:
        root: The folder that contains the files and the split's folder of images.
        split: "train", "validation" or "test".

    Raises:
        FileNotFoundError: If a file, or an image with points, is missing.
        ValueError: If `split` is unknown, or a file has other columns or values.

    References:
        Benenson and Ferrari: From colouring-in to pointillism: revisiting semantic segmentation
        supervision. arXiv 2210.14142; storage.googleapis.com/openimages/web.
    """

    def __init__(self, root: Path | str, split: str = "validation") -> None:
        name = f"Open Images V7 points {split}"
        check_option("Open Images V7", "split", split, SPLITS)
        root = Path(root)
        file = f"oidv7-{SPLITS[split]}-annotations-point-labels.csv"
        check_layout("Open Images V7", root, [DESCRIPTIONS, file, split], HINT)
        descriptions = _read_descriptions(root / DESCRIPTIONS)
        self._folder = root / split
        self._table = _PointTable(root / file, descriptions)
        images = self._table.images
        check_files("Open Images V7", self._folder, [f"{image}.jpg" for image in images], HINT)
        self.ids = self._table.ids
        texts = self._table.texts
        classes = tuple((descriptions.get(i) or texts[i],) for i in self.ids)
        super().__init__(name, Classes(classes, f"{DESCRIPTIONS} of Open Images V7"), images)

    def read(self, index: int) -> Sample:
        """Read an image and its points."""
        name = self.names[index]
        return Sample(name, open_rgb(self._folder / f"{name}.jpg"), self._table.points(index))


class _PointTable:
    """The points of a file, grouped by image in arrays because there are millions.

    `images` are the sorted image names, `ids` the ids of the classes, and `texts` the file's own
    names of classes without description.
    """

    def __init__(self, path: Path, descriptions: dict[str, str]) -> None:
        images: dict[str, int] = {}
        labels: dict[str, int] = {}
        self.texts: dict[str, str] = {}
        image, label, positive = array("i"), array("i"), array("b")
        x, y = array("d"), array("d")
        for where, (name, across, down, class_id, answer, text) in _read_rows(path):
            if answer == UNSURE:
                continue
            if answer not in ANSWERS:
                raise ValueError(
                    f"{where}: EstimatedYesNo is {answer!r:.80}, expected yes, no, unsure"
                )
            if class_id not in descriptions:
                if not text:
                    raise ValueError(
                        f"{where}: class {class_id!r:.80} is not in {DESCRIPTIONS} and has no "
                        "TextLabel"
                    )
                class_id = class_id or text
                self.texts.setdefault(class_id, text)
            image.append(images.setdefault(name, len(images)))
            label.append(labels.setdefault(class_id, len(labels)))
            x.append(_coordinate(across, where))
            y.append(_coordinate(down, where))
            positive.append(ANSWERS[answer])
        if not images:
            raise ValueError(f"{path} holds no point with the answer yes or no")
        rank = {class_id: i for i, class_id in enumerate(descriptions)}
        self.ids = tuple(sorted(labels, key=lambda i: (rank.get(i, len(rank)), i)))
        self.images = tuple(sorted(images))
        # Numbers in the order of the file become positions among the sorted names.
        rows = np.argsort([images[name] for name in self.images])[np.array(image)]
        classes = np.argsort([labels[i] for i in self.ids])[np.array(label)]
        by_image = np.argsort(rows, kind="stable")
        self._starts = np.searchsorted(rows[by_image], np.arange(len(images) + 1))
        self._label = classes[by_image]
        self._x, self._y = np.array(x)[by_image], np.array(y)[by_image]
        self._positive = np.array(positive, bool)[by_image]

    def points(self, index: int) -> Points:
        """Return the points of image `index`, in the order of the file."""
        part = slice(self._starts[index], self._starts[index + 1])
        columns = (self._label[part], self._x[part], self._y[part], self._positive[part])
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return Points(tuple(Point(*row) for row in rows))


def _read_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the place of each row, for messages, and its cells of `COLUMNS`."""
    rows = read_csv(path)
    _, header = next(rows, (0, []))
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        raise ValueError(f"{path} has no column {', '.join(missing)}")
    positions = [header.index(column) for column in COLUMNS]
    for number, row in rows:
        where = f"{path}, line {number}"
        if len(row) != len(header):
            raise ValueError(f"{where} has {len(row)} cells, expected {len(header)}")
        yield where, [row[position].strip() for position in positions]


def _coordinate(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise ValueError(f"{where}: coordinate {text!r:.80}, expected a number in 0..1")
    return value


def _read_descriptions(path: Path) -> dict[str, str]:
    """Return the names of classes by id, in the order of the file."""
    names = {}
    for number, row in read_csv(path):
        if row and (len(row) != 2 or not row[1].strip()):
            raise ValueError(f"{path}, line {number} does not have two columns, an id and a name")
        if row and row[0] != "LabelName":
            names[row[0].strip()] = row[1].strip()
    return names
