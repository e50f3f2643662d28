"""PASCAL VOC: pixels of 20 classes (VOC 2012), and which classes an image shows (VOC 2007)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from captum_clip_surgery.datasets.base import (
    IGNORE_INDEX,
    Classes,
    ImageDataset,
    Labels,
    Sample,
    Tags,
    check_layout,
    open_rgb,
)
from captum_clip_surgery.datasets.files import check_listed, check_split, read_names, read_text
from captum_clip_surgery.datasets.paired import INVALID, read_pair, relabel

SITE = "host.robots.ox.ac.uk/pascal/VOC"
#: The value of borders and of objects too hard to segment.
VOID = 255
YEARS = ("2007", "2008", "2009", "2010", "2011", "2012")
SPLITS = ("train", "val", "trainval")


class PascalVoc(ImageDataset):
    """PASCAL VOC 2012, segmentation: each pixel one class, background, or ignored.

    Layout::

        root/VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt
        root/VOCdevkit/VOC2012/JPEGImages/2007_000033.jpg
        root/VOCdevkit/VOC2012/SegmentationClass/2007_000033.png

    Files hold 0 for background, 1 to 20 for the classes, and 255 for borders of objects and what
    was not judged, which is ignored. Without background, the classes are 0 to 19 and pixels of
    background are ignored too, so that nothing is scored there ("VOC20"); with it they are 1 to 20
    ("VOC21").

    Source: Everingham et al., "The PASCAL Visual Object Classes Challenge: A Retrospective" (IJCV
    2015); the VOC2012 development kit.

    Args:
        root: the folder of `VOCdevkit`, as torchvision has it; or `VOCdevkit`, or `VOC2012`.
        split: "train", "val" or "trainval"; the labels of test are not published.
        background: whether background is a class.

    Raises:
        FileNotFoundError: the list, an image or the labels of an image are missing.
        ValueError: another split.
    """

    def __init__(self, root: Path | str, split: str = "val", background: bool = True) -> None:
        classes = Classes.named("voc21" if background else "voc20")
        title = f"PASCAL VOC 2012 {split}, {len(classes)} classes"
        check_split("PASCAL VOC 2012", split, SPLITS)
        folder = voc_folder(root, "2012")
        hint = (
            f"VOCtrainval_11-May-2012.tar of {SITE} unpacked in it: VOCdevkit/VOC2012/JPEGImages/"
            f"*.jpg, SegmentationClass/*.png, ImageSets/Segmentation/{split}.txt"
        )
        listed = f"ImageSets/Segmentation/{split}.txt"
        check_layout(title, folder, [listed, "JPEGImages", "SegmentationClass"], hint)
        names = read_names(folder / listed)
        self._images, self._labels = folder / "JPEGImages", folder / "SegmentationClass"
        check_listed(title, folder / listed, self._images, names, ".jpg", hint)
        check_listed(title, folder / listed, self._labels, names, ".png", hint)
        super().__init__(title, classes, names, 0 if background else None)

    def read(self, index: int) -> Sample:
        name = self.names[index]
        path = self._labels / f"{name}.png"
        image, stored = read_pair(self._images / f"{name}.jpg", path)
        table = np.full(VOID + 1, INVALID)
        table[:21] = range(21)
        table[VOID] = IGNORE_INDEX
        if self.background is None:
            table[:21] = [IGNORE_INDEX, *range(20)]
        return Sample(name, image, Labels(relabel(stored, table, path)))


class PascalVocTags(ImageDataset):
    """PASCAL VOC, classification: which of 20 classes an image shows.

    Layout::

        root/VOCdevkit/VOC2007/ImageSets/Main/test.txt
        root/VOCdevkit/VOC2007/JPEGImages/000001.jpg
        root/VOCdevkit/VOC2007/Annotations/000001.xml

    A class of which only objects marked difficult are there is unknown; one more that is not
    difficult makes it present. It is the rule of the development kit's `ImageSets/Main/
    CLASS_SPLIT.txt`, which have 1 for present, 0 for difficult ones only (the kit's evaluation
    leaves them out) and -1 for absent; `disagreements` compares.

    Source: Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge" (IJCV 2010); the
    VOC2007 development kit, `VOCevalcls.m`.

    Args:
        root: the folder of `VOCdevkit`, as torchvision has it; or `VOCdevkit`, or `VOC2007`.
        split: "train", "val", "trainval", or of 2007 "test".
        year: "2007" to "2012".

    Raises:
        FileNotFoundError: the list, an image or its annotation is missing.
        ValueError: another split or year.
    """

    def __init__(self, root: Path | str, split: str = "test", year: str = "2007") -> None:
        if year not in YEARS:
            raise ValueError(f"year {year!r} of PASCAL VOC is none of {', '.join(YEARS)}")
        check_split(f"PASCAL VOC {year}", split, (*SPLITS, "test") if year == "2007" else SPLITS)
        title = f"PASCAL VOC {year} {split}, tags"
        self._folder = voc_folder(root, year)
        hint = (
            f"VOC{'test' if split == 'test' else 'trainval'}_*.tar of {year} of {SITE} unpacked in "
            f"it: VOCdevkit/VOC{year}/JPEGImages/*.jpg, Annotations/*.xml, "
            f"ImageSets/Main/{split}.txt"
        )
        listed = f"ImageSets/Main/{split}.txt"
        check_layout(title, self._folder, [listed, "JPEGImages", "Annotations"], hint)
        names = read_names(self._folder / listed)
        for folder, suffix in (("JPEGImages", ".jpg"), ("Annotations", ".xml")):
            path = self._folder / folder
            check_listed(title, self._folder / listed, path, names, suffix, hint)
        self._split = split
        super().__init__(title, Classes.named("voc20"), names)

    def read(self, index: int) -> Sample:
        name = self.names[index]
        image = open_rgb(self._folder / "JPEGImages" / f"{name}.jpg")
        return Sample(name, image, self._tags(name))

    def disagreements(self) -> list[tuple[str, str]]:
        """Names and classes for which the kit's list, where there is one, says otherwise.

        Of the data set as released there should be none.
        """
        tags = {name: self._tags(name) for name in self.names}
        return [
            (name, self.classes.first[label])
            for label, name, told in self._lists()
            if told != _told(tags[name], label)
        ]

    def _lists(self) -> Iterator[tuple[int, str, int]]:
        """Class, name and 1, 0 or -1 of the lists that are there."""
        for label, first in enumerate(self.classes.first):
            path = self._folder / "ImageSets" / "Main" / f"{official(first)}_{self._split}.txt"
            if path.exists():
                for number, line in enumerate(read_text(path).splitlines(), 1):
                    cells = line.split()
                    if len(cells) != 2 or cells[1] not in ("1", "0", "-1"):
                        raise ValueError(
                            f"{path}, line {number} is {line!r:.80}, expected an image's name and "
                            "1, 0 or -1"
                        )
                    yield label, cells[0], int(cells[1])

    def _tags(self, name: str) -> Tags:
        path = self._folder / "Annotations" / f"{name}.xml"
        labels = {official(first): label for label, first in enumerate(self.classes.first)}
        clear: set[int] = set()
        difficult: set[int] = set()
        for found, hard in _objects(path):
            if found not in labels:
                raise ValueError(
                    f"{path} has an object {found!r:.80}, expected one of {', '.join(labels)}"
                )
            (difficult if hard else clear).add(labels[found])
        return Tags(frozenset(clear), frozenset(difficult - clear))


def voc_folder(root: Path | str, year: str) -> Path:
    """Where a year's data lies: below `VOCdevkit` below the root, below the root, or the root."""
    root = Path(root)
    if root.resolve().name == f"VOC{year}":
        return root
    below = root / f"VOC{year}"
    return below if below.is_dir() else root / "VOCdevkit" / f"VOC{year}"


def official(name: str) -> str:
    """A class as the data set spells it: "pottedplant"."""
    return name.replace(" ", "")


def _told(tags: Tags, label: int) -> int:
    """1, 0 or -1, as the kit's lists have it."""
    if label in tags.present:
        return 1
    return 0 if label in tags.unknown else -1


def _objects(path: Path) -> Iterator[tuple[str, bool]]:
    """Each object's class, and whether it is marked difficult; some files leave that out."""
    try:
        found = ElementTree.parse(path).getroot().findall("object")
    # Encodings that Python does not know or expat does not take are no errors of parsing.
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise ValueError(f"{path} cannot be read as an annotation: {error}") from None
    for thing in found:
        # Parts of a person, such as its head, have names as well, but further down.
        difficult = thing.findtext("difficult", "0").strip()
        if difficult not in ("0", "1"):
            raise ValueError(f"{path} has difficult {difficult!r:.80}, expected 0 or 1")
        yield thing.findtext("name", "").strip(), difficult == "1"
