"""PASCAL Context: all pixels of VOC 2010's images, 59 classes of things and stuff."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image

from captum_clip_surgery.datasets.base import (
    IGNORE_INDEX,
    Classes,
    ImageDataset,
    Labels,
    Sample,
    check_layout,
    open_rgb,
)
from captum_clip_surgery.datasets.files import check_listed, check_size, read_names, read_text
from captum_clip_surgery.datasets.matlab import read_matrix, scipy_io
from captum_clip_surgery.datasets.paired import read_pair, relabel
from captum_clip_surgery.datasets.voc import official, voc_folder

CONVERTED = "SegmentationClassContext"
HINT = (
    "VOCtrainval_03-May-2010.tar of host.robots.ox.ac.uk/pascal/VOC unpacked in it, and in "
    "VOCdevkit/VOC2010 either trainval.tar.gz of cs.stanford.edu/~roozbeh/pascal-context unpacked "
    "(trainval/*.mat, labels.txt; ImageSets/Main/SPLIT.txt is VOC's), or what mmsegmentation's "
    f"pascal_context.py makes ({CONVERTED}/*.png, ImageSets/SegmentationContext/SPLIT.txt)"
)
SPLITS = ("train", "val")
#: The largest id that a file of the release could hold: its numbers have 16 bits.
MAX_ID = 65_535


class PascalContext(ImageDataset):
    """PASCAL Context, the task of 59 classes: each pixel one class, or background.

    Two layouts are read, whichever lies there, the converted one if both do::

        root/VOCdevkit/VOC2010/JPEGImages/2008_000002.jpg

        root/VOCdevkit/VOC2010/trainval/2008_000002.mat               as released
        root/VOCdevkit/VOC2010/labels.txt
        root/VOCdevkit/VOC2010/ImageSets/Main/val.txt

        root/VOCdevkit/VOC2010/SegmentationClassContext/2008_000002.png     converted
        root/VOCdevkit/VOC2010/ImageSets/SegmentationContext/val.txt

    `trainval` and `labels.txt` may lie in `root` as well. As released, `LabelMap` has ids of
    `labels.txt`, 1 to 459, of which 59 are the classes; the others, and 0, are background. Files
    that were converted have 1 to 59 for the classes, in the same order, and 0 for background. The
    classes are in the order of their ids in `labels.txt`, as in mmsegmentation and in published
    results on open vocabularies; the release's `59_labels.txt` has another.

    With background it is class 0 ("Context60"), without it its pixels are ignored ("Context59").

    The splits as released are those of VOC 2010's main tasks, as in FCN's reader: the release has
    none of its own. Those converted come from `trainval_merged.json` (PASCAL in Detail). Results
    are published on 5,105 images of val.

    Source: Mottaghi et al., "The Role of Context for Object Detection and Semantic Segmentation in
    the Wild" (CVPR 2014); shelhamer/fcn.berkeleyvision.org, `pascalcontext_layers.py`; open-mmlab/
    mmsegmentation, `pascal_context.py`.

    Args:
        root: the folder of `VOCdevkit`, or `VOCdevkit`, or `VOC2010`.
        split: "train" or "val".
        background: whether background is a class.

    Raises:
        FileNotFoundError: neither layout is there, or the list, an image or its labels are missing.
        ImportError: files are as released, and scipy is missing.
        ValueError: another split, or `labels.txt` lacks a class.
    """

    def __init__(self, root: Path | str, split: str = "val", background: bool = True) -> None:
        if split not in SPLITS:
            raise ValueError(f"split {split!r} of PASCAL Context is none of {', '.join(SPLITS)}")
        classes = Classes.named("context60" if background else "context59")
        title = f"PASCAL Context {split}, {len(classes)} classes"
        folder = voc_folder(root, "2010")
        check_layout(title, folder, ["JPEGImages"], HINT)
        if (folder / CONVERTED).is_dir():
            self._labels, listed = folder / CONVERTED, "ImageSets/SegmentationContext"
            self._suffix, shown = ".png", np.arange(60)
        else:
            above = folder if (folder / "trainval").is_dir() else Path(root)
            check_layout(title, above, ["trainval", "labels.txt"], HINT)
            self._labels, listed = above / "trainval", "ImageSets/Main"
            self._suffix, shown = ".mat", _class_of_id(above / "labels.txt")
            scipy_io()
        check_layout(title, folder, [f"{listed}/{split}.txt"], HINT)
        path = folder / listed / f"{split}.txt"
        names = read_names(path)
        self._images = folder / "JPEGImages"
        check_listed(title, path, self._images, names, ".jpg", HINT)
        check_listed(title, path, self._labels, names, self._suffix, HINT)
        self._table = shown if background else np.where(shown == 0, IGNORE_INDEX, shown - 1)
        super().__init__(title, classes, names, 0 if background else None)

    def read(self, index: int) -> Sample:
        name = self.names[index]
        image_path, path = self._images / f"{name}.jpg", self._labels / f"{name}{self._suffix}"
        if self._suffix == ".png":
            image, stored = read_pair(image_path, path)
        else:
            image = open_rgb(image_path)
            stored = _open_mat(path, image, image_path)
        return Sample(name, image, Labels(relabel(stored, self._table, path)))


def _class_of_id(path: Path) -> np.ndarray:
    """By id of `labels.txt`, lines of "284: person": 1 to 59 for the classes, 0 for others."""
    wanted = [official(first) for first in Classes.named("context59").first]
    ids: dict[str, int] = {}
    table = np.zeros(MAX_ID + 1, dtype=int)
    last = 0
    for number, line in enumerate(read_text(path).splitlines(), 1):
        digits, colon, name = line.partition(":")
        if not colon:
            continue
        if not re.fullmatch(r"\s*[0-9]{1,5}\s*", digits) or int(digits) > MAX_ID:
            raise ValueError(
                f"{path}, line {number} is {line!r:.80}, expected an id of 0 to {MAX_ID} and a "
                "name, such as '284: person'"
            )
        last, name = max(last, int(digits)), official(name)
        if name in wanted:
            if name in ids or table[int(digits)]:
                raise ValueError(
                    f"{path}, line {number} is {line!r:.80}, whose id or name another line has"
                )
            ids[name] = int(digits)
            table[ids[name]] = wanted.index(name) + 1
    missing = [name for name in wanted if name not in ids]
    if missing:
        raise ValueError(
            f"{path} has no {missing[0]!r}, expected the 459 names of the release, such as "
            "'284: person'"
        )
    return table[: last + 1]


def _open_mat(path: Path, image: Image.Image, image_path: Path) -> np.ndarray:
    """The ids in a file of the release, which must be of the image's size."""

    def check_shape(shape: tuple[int, ...]) -> None:
        if len(shape) != 2:
            raise ValueError(f"{path} has a LabelMap of shape {shape}, expected two sides")
        check_size(image, image_path, (shape[1], shape[0]), path)

    return read_matrix(path, "LabelMap", check_shape)
