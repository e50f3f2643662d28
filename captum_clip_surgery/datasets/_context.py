"""PASCAL Context: all pixels of VOC 2010's images, 59 classes of things and stuff."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image

from captum_clip_surgery._utils.files import read_text
from captum_clip_surgery.datasets._base import IGNORE_INDEX
from captum_clip_surgery.datasets._classes import Classes
from captum_clip_surgery.datasets._files import check_size, image_size, open_labels
from captum_clip_surgery.datasets._layout import check_layout, check_option
from captum_clip_surgery.datasets._matlab import import_scipy_io, read_matrix
from captum_clip_surgery.datasets._paired import PairedDataset
from captum_clip_surgery.datasets._voc import listed_files, official_name, voc_folder

CONVERTED = "SegmentationClassContext"
HINT = (
    "VOCtrainval_03-May-2010.tar from host.robots.ox.ac.uk/pascal/VOC, unpacked there, and in "
    "VOCdevkit/VOC2010 either trainval.tar.gz from cs.stanford.edu/~roozbeh/pascal-context "
    "unpacked (trainval/*.mat, labels.txt; ImageSets/Main/SPLIT.txt is VOC's), or the output of "
    f"mmsegmentation's pascal_context.py ({CONVERTED}/*.png, "
    "ImageSets/SegmentationContext/SPLIT.txt)"
)
SPLITS = ("train", "val")
#: The largest id that a file of the release can hold: its values have 16 bits.
MAX_ID = 65_535


class PascalContext(PairedDataset):
    """PASCAL Context with 59 classes: one class per pixel, or background.

    Two layouts are read; if both exist, the converted one::

        root/VOCdevkit/VOC2010/JPEGImages/2008_000002.jpg

        root/VOCdevkit/VOC2010/trainval/2008_000002.mat               as released
        root/VOCdevkit/VOC2010/labels.txt
        root/VOCdevkit/VOC2010/ImageSets/Main/val.txt

        root/VOCdevkit/VOC2010/SegmentationClassContext/2008_000002.png     converted
        root/VOCdevkit/VOC2010/ImageSets/SegmentationContext/val.txt

    `trainval` and `labels.txt` may be in `root` as well. As released, `LabelMap` holds ids of
    `labels.txt`, 1 to 459; 59 of them are the classes, the others and 0 are background. Converted
    files hold 1 to 59 for the classes, in the same order, and 0 for background. The classes are in
    the order of their ids in `labels.txt`, as in mmsegmentation and in published results on open
    vocabularies; the release's `59_labels.txt` has another order.

    With background it is class 0 ("Context60"); without, its pixels are ignored ("Context59").

    The released layout uses the splits of VOC 2010's main tasks, as FCN's reader does, because the
    release has none; the converted layout those of `trainval_merged.json` (PASCAL in Detail).
    Published results are on 5,105 images of val.

    Args:
        root: The folder that contains `VOCdevkit`, or `VOCdevkit`, or `VOC2010`.
        split: "train" or "val".
        background: Whether background is a class.

    Raises:
        FileNotFoundError: If neither layout is found, or the list, an image or its labels are
            missing.
        ImportError: If the released layout is read and scipy is missing.
        ValueError: If `split` is unknown, or `labels.txt` lacks a class.

    References:
        Mottaghi et al.: The Role of Context for Object Detection and Semantic Segmentation in the
        Wild. CVPR 2014; shelhamer/fcn.berkeleyvision.org, `pascalcontext_layers.py`;
        open-mmlab/mmsegmentation, `pascal_context.py`.
    """

    def __init__(self, root: Path | str, split: str = "val", background: bool = True) -> None:
        check_option("PASCAL Context", "split", split, SPLITS)
        classes = Classes.named("context60" if background else "context59")
        title = f"PASCAL Context {split}, {len(classes)} classes"
        folder = voc_folder(root, "2010")
        check_layout(title, folder, ["JPEGImages"], HINT)
        if (folder / CONVERTED).is_dir():
            labels, listed = (folder / CONVERTED, ".png"), "ImageSets/SegmentationContext"
            table = np.arange(60)
        else:
            above = folder if (folder / "trainval").is_dir() else Path(root)
            check_layout(title, above, ["trainval", "labels.txt"], HINT)
            labels, listed = (above / "trainval", ".mat"), "ImageSets/Main"
            table = _class_of_id(above / "labels.txt")
            import_scipy_io()
        listed = f"{listed}/{split}.txt"
        check_layout(title, folder, [listed], HINT)
        images = (folder / "JPEGImages", ".jpg")
        files = listed_files(title, folder / listed, images, labels, HINT)
        if not background:
            table = np.where(table == 0, IGNORE_INDEX, table - 1)
        super().__init__(title, classes, files, table, 0 if background else None)

    def _read_values(self, path: Path, image: Image.Image, image_path: Path) -> np.ndarray:
        if path.suffix == ".png":
            check_size(image, image_path, image_size(path), path)
            return open_labels(path)

        def check_shape(shape: tuple[int, ...]) -> None:
            if len(shape) != 2:
                raise ValueError(f"{path} has a LabelMap of shape {shape}, expected two dimensions")
            check_size(image, image_path, (shape[1], shape[0]), path)

        return read_matrix(path, "LabelMap", check_shape)


def _class_of_id(path: Path) -> np.ndarray:
    """Return a table from the ids in `labels.txt` to 1 to 59 for the classes and 0 for others.

    The lines of the file are of the form "284: person".
    """
    expected = [official_name(first) for first in Classes.named("context59").first]
    seen: set[str] = set()
    table = np.zeros(MAX_ID + 1, dtype=int)
    last = 0
    for number, line in enumerate(read_text(path).split("\n"), 1):
        digits, colon, name = line.partition(":")
        if not colon:
            continue
        where = f"{path}, line {number} is {line!r:.80}"
        if not re.fullmatch(r"\s*[0-9]{1,5}\s*", digits) or int(digits) > MAX_ID:
            raise ValueError(
                f"{where}, expected an id of 0 to {MAX_ID} and a name, such as '284: person'"
            )
        label_id, name = int(digits), official_name(name)
        last = max(last, label_id)
        if name in expected:
            if name in seen or table[label_id]:
                raise ValueError(f"{where}, but another line has the same id or name")
            seen.add(name)
            table[label_id] = expected.index(name) + 1
    missing = [name for name in expected if name not in seen]
    if missing:
        raise ValueError(
            f"{path} has no {missing[0]!r}, expected the 459 names of the release, such as "
            "'284: person'"
        )
    return table[: last + 1]
