"""Cityscapes: streets of 50 cities, 19 classes."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from captum_clip_surgery.datasets.base import (
    IGNORE_INDEX,
    Classes,
    ImageDataset,
    Labels,
    Sample,
    check_layout,
)
from captum_clip_surgery.datasets.files import check_split
from captum_clip_surgery.datasets.paired import INVALID, check_paired, read_pair, relabel

HINT = (
    "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip of cityscapes-dataset.com, both "
    "unpacked in it: leftImg8bit/SPLIT/CITY/*_leftImg8bit.png, "
    "gtFine/SPLIT/CITY/*_gtFine_labelIds.png"
)
IMAGE = "_leftImg8bit.png"
#: Ids of all labels, which come with the data set.
LABEL_IDS = "_gtFine_labelIds.png"
#: Ids of the 19 classes, which the data set's tools make of polygons.
TRAIN_IDS = "_gtFine_labelTrainIds.png"
SPLITS = ("train", "val")


class Cityscapes(ImageDataset):
    """Cityscapes, fine annotations: each pixel one of 19 classes, or ignored.

    Layout::

        root/leftImg8bit/val/frankfurt/frankfurt_000000_000294_leftImg8bit.png
        root/gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_labelIds.png

    Labels that the benchmark does not evaluate (void, parking, rail track, guard rail, bridge,
    tunnel, pole group, caravan, trailer) are ignored; there is no background. Where an image has no
    `labelIds.png` its `labelTrainIds.png` is read, of which 255 is ignored.

    Source: Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding" (CVPR
    2016); github.com/mcordts/cityscapesScripts, whose table of labels torchvision has.

    Args:
        root: the folder of `leftImg8bit` and `gtFine`.
        split: "train" or "val"; the labels of test are not published.

    Raises:
        FileNotFoundError: a folder, or the labels or the image of a sample, is missing.
        ImportError: torchvision is missing.
        ValueError: another split.
    """

    def __init__(self, root: Path | str, split: str = "val") -> None:
        check_split("Cityscapes", split, SPLITS)
        root = Path(root)
        folders = root / "leftImg8bit" / split, root / "gtFine" / split
        check_layout("Cityscapes", root, [f"leftImg8bit/{split}", f"gtFine/{split}"], HINT)
        self._images = _by_name(folders[0], IMAGE)
        # Ids of all labels go before, for the other ones are whatever made them took for classes.
        self._labels = _by_name(folders[1], TRAIN_IDS) | _by_name(folders[1], LABEL_IDS)
        check_paired("Cityscapes", self._images, self._labels, HINT)
        _label_table()
        super().__init__(f"Cityscapes {split}", Classes.named("cityscapes19"), sorted(self._images))

    def read(self, index: int) -> Sample:
        name = self.names[index]
        path = self._labels[name]
        image, stored = read_pair(self._images[name], path)
        table = _label_table() if path.name.endswith(LABEL_IDS) else _train_table()
        return Sample(name, image, Labels(relabel(stored, table, path)))


def _by_name(folder: Path, suffix: str) -> dict[str, Path]:
    """Files of all cities by what comes before the suffix: city, sequence, frame."""
    return {path.name.removesuffix(suffix): path for path in folder.glob(f"*/*{suffix}")}


@cache
def _label_table() -> np.ndarray:
    """The class of each label's id."""
    try:
        from torchvision.datasets import Cityscapes as Official
    except ImportError as error:
        raise ImportError(
            "Cityscapes needs torchvision; install the extra: "
            "pip install 'captum_clip_surgery[datasets]'"
        ) from error
    # Licence plates have no id: files never hold them.
    drawn = {label.id: label.train_id for label in Official.classes if label.id >= 0}
    table = np.full(max(drawn) + 1, INVALID)
    for number, train_id in drawn.items():
        table[number] = IGNORE_INDEX if train_id == 255 else train_id
    return table


@cache
def _train_table() -> np.ndarray:
    table = np.full(256, INVALID)
    table[:19] = range(19)
    table[255] = IGNORE_INDEX
    return table
