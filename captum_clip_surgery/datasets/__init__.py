"""Data sets on disk as torch `Dataset`s of `Sample`s, and the base class for your own.

`open_dataset` reads those in `DATASETS`, each in the directory layout it is distributed in. To read
your own data set, put it in the layout of `Folder`, or derive from `ImageDataset`.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from captum_clip_surgery.datasets._ade20k import Ade20k
from captum_clip_surgery.datasets._base import (
    IGNORE_INDEX,
    ImageDataset,
    Labels,
    Masks,
    Point,
    Points,
    Sample,
    Tags,
    Target,
)
from captum_clip_surgery.datasets._boxes import Boxes, PlainImages
from captum_clip_surgery.datasets._cityscapes import Cityscapes
from captum_clip_surgery.datasets._classes import Classes
from captum_clip_surgery.datasets._coco import Coco, CocoTags
from captum_clip_surgery.datasets._coco_stuff import CocoObject, CocoStuff
from captum_clip_surgery.datasets._context import PascalContext
from captum_clip_surgery.datasets._files import open_labels, open_rgb
from captum_clip_surgery.datasets._folder import Folder
from captum_clip_surgery.datasets._hugging_face import HuggingFace
from captum_clip_surgery.datasets._imagenet_s import ImageNetS
from captum_clip_surgery.datasets._nus_wide import NusWide
from captum_clip_surgery.datasets._open_images import OpenImagesPoints
from captum_clip_surgery.datasets._voc import PascalVoc, PascalVocTags

__all__ = [
    "DATASETS",
    "IGNORE_INDEX",
    "Boxes",
    "Classes",
    "Folder",
    "HuggingFace",
    "ImageDataset",
    "Labels",
    "Masks",
    "PlainImages",
    "Point",
    "Points",
    "Sample",
    "Tags",
    "Target",
    "open_dataset",
    "open_labels",
    "open_rgb",
]


class DatasetEntry(NamedTuple):
    """Entry of a data set that can be opened by name.

    Args:
        reader: Callable that takes the root folder and, unless `split` is None, `split=`.
        split: The split that papers evaluate on, or None for a data set without splits.
    """

    reader: Callable[..., ImageDataset]
    split: str | None


#: Data sets by their name on the command line.
DATASETS: dict[str, DatasetEntry] = {
    "voc21": DatasetEntry(PascalVoc, "val"),
    "voc20": DatasetEntry(partial(PascalVoc, background=False), "val"),
    "context60": DatasetEntry(PascalContext, "val"),
    "context59": DatasetEntry(partial(PascalContext, background=False), "val"),
    "coco": DatasetEntry(Coco, "val"),
    "coco-stuff171": DatasetEntry(CocoStuff, "val"),
    "coco-stuff27": DatasetEntry(partial(CocoStuff, classes=27), "val"),
    "coco-object": DatasetEntry(CocoObject, "val"),
    "imagenet-s50": DatasetEntry(partial(ImageNetS, size=50), "validation"),
    "imagenet-s300": DatasetEntry(partial(ImageNetS, size=300), "validation"),
    "imagenet-s919": DatasetEntry(partial(ImageNetS, size=919), "validation"),
    "cityscapes": DatasetEntry(Cityscapes, "val"),
    "ade20k": DatasetEntry(Ade20k, "validation"),
    "nus-wide": DatasetEntry(NusWide, "test"),
    "voc2007": DatasetEntry(PascalVocTags, "test"),
    "coco2014": DatasetEntry(CocoTags, "val"),
    "open-images": DatasetEntry(OpenImagesPoints, "validation"),
    "folder": DatasetEntry(Folder, None),
    "huggingface": DatasetEntry(HuggingFace, None),
}


def open_dataset(name: str, root: Path | str, split: str | None = None) -> ImageDataset:
    """Open a data set by its name.

    Args:
        name: Name in `DATASETS`.
        root: The folder it was unpacked to.
        split: Split of the data set (default: the one that its papers evaluate on).

    Raises:
        ValueError: If there is no such data set, or it does not have the split.
        FileNotFoundError: If files are missing; the message names them and the expected layout.
    """
    if name not in DATASETS:
        raise ValueError(f"the data set must be one of {', '.join(DATASETS)}, got {name!r}")
    entry = DATASETS[name]
    if entry.split is None:
        if split is not None:
            raise ValueError(f"data set {name} has no splits, got split={split!r}; leave it out")
        return entry.reader(root)
    return entry.reader(root, split=split or entry.split)
