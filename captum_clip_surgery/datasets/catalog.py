"""Data sets by the name they go by on the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from captum_clip_surgery.datasets.ade20k import Ade20k
from captum_clip_surgery.datasets.base import ImageDataset
from captum_clip_surgery.datasets.cityscapes import Cityscapes
from captum_clip_surgery.datasets.coco import Coco, CocoTags
from captum_clip_surgery.datasets.coco_stuff import CocoObject, CocoStuff
from captum_clip_surgery.datasets.context import PascalContext
from captum_clip_surgery.datasets.folder import Folder
from captum_clip_surgery.datasets.hugging_face import HuggingFace
from captum_clip_surgery.datasets.imagenet_s import ImageNetS
from captum_clip_surgery.datasets.nus_wide import NusWide
from captum_clip_surgery.datasets.open_images import OpenImagesPoints
from captum_clip_surgery.datasets.voc import PascalVoc, PascalVocTags


@dataclass(frozen=True)
class Entry:
    """How to make one, and which split is measured where nobody says; None where there are none."""

    make: Callable[..., ImageDataset]
    split: str | None


DATASETS: dict[str, Entry] = {
    "voc21": Entry(PascalVoc, "val"),
    "voc20": Entry(partial(PascalVoc, background=False), "val"),
    "context60": Entry(PascalContext, "val"),
    "context59": Entry(partial(PascalContext, background=False), "val"),
    "coco": Entry(Coco, "val"),
    "coco-stuff171": Entry(CocoStuff, "val"),
    "coco-stuff27": Entry(partial(CocoStuff, classes=27), "val"),
    "coco-object": Entry(CocoObject, "val"),
    "imagenet-s50": Entry(partial(ImageNetS, size=50), "validation"),
    "imagenet-s300": Entry(partial(ImageNetS, size=300), "validation"),
    "imagenet-s919": Entry(partial(ImageNetS, size=919), "validation"),
    "cityscapes": Entry(Cityscapes, "val"),
    "ade20k": Entry(Ade20k, "validation"),
    "nus-wide": Entry(NusWide, "test"),
    "voc2007": Entry(PascalVocTags, "test"),
    "coco2014": Entry(CocoTags, "val"),
    "open-images": Entry(OpenImagesPoints, "validation"),
    "folder": Entry(Folder, None),
    "huggingface": Entry(HuggingFace, None),
}


def open_dataset(name: str, root: Path | str, split: str | None = None) -> ImageDataset:
    """A data set by its name.

    Args:
        name: of `DATASETS`.
        root: the folder it was unpacked in.
        split: None is the one that is usually measured.

    Raises:
        ValueError: no such data set, or a split that it does not have.
        FileNotFoundError: files are missing; says which, and what is expected where.
    """
    if name not in DATASETS:
        raise ValueError(f"there is no data set {name!r}; there are {', '.join(DATASETS)}")
    entry = DATASETS[name]
    if entry.split is None:
        if split is not None:
            raise ValueError(f"data set {name} has no splits; leave out {split!r}")
        return entry.make(root)
    return entry.make(root, split=split or entry.split)
