"""Cityscapes: streets of 50 cities, 19 classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torchvision.datasets import Cityscapes as TorchvisionCityscapes

from captum_clip_surgery.datasets._base import IGNORE_INDEX
from captum_clip_surgery.datasets._classes import Classes
from captum_clip_surgery.datasets._layout import check_layout, check_option, check_paired
from captum_clip_surgery.datasets._paired import INVALID, PairedDataset, lookup_table, pair_files

HINT = (
    "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from cityscapes-dataset.com, both "
    "unpacked there: leftImg8bit/SPLIT/CITY/*_leftImg8bit.png, "
    "gtFine/SPLIT/CITY/*_gtFine_labelIds.png"
)
IMAGE = "_leftImg8bit.png"
#: Suffix of label files with the ids of all labels, as distributed.
LABEL_IDS = "_gtFine_labelIds.png"
#: Suffix of label files with the ids of the 19 classes, as the data set's tools create them.
TRAIN_IDS = "_gtFine_labelTrainIds.png"
VOID = 255
SPLITS = ("train", "val")


class Cityscapes(PairedDataset):
    """Cityscapes with fine annotations: one of 19 classes per pixel, or ignored.

    Expected files::

        root/leftImg8bit/val/frankfurt/frankfurt_000000_000294_leftImg8bit.png
        root/gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_labelIds.png

    Labels that the benchmark does not evaluate (void, parking, rail track, guard rail, bridge,
    tunnel, pole group, caravan, trailer) are ignored; there is no background class. For an image
    without `labelIds.png`, its `labelTrainIds.png` is read, where 255 is ignored.

    Args:
        root: The folder that contains `leftImg8bit` and `gtFine`.
        split: "train" or "val"; the labels of the test split are not published.

    Raises:
        FileNotFoundError: If a folder, an image or a label file is missing.
        ValueError: If `split` is unknown.

    References:
        Cordts et al.: The Cityscapes Dataset for Semantic Urban Scene Understanding. CVPR 2016;
        https://github.com/mcordts/cityscapesScripts, whose label table torchvision includes.
    """

    def __init__(self, root: Path | str, split: str = "val") -> None:
        check_option("Cityscapes", "split", split, SPLITS)
        root = Path(root)
        check_layout("Cityscapes", root, [f"leftImg8bit/{split}", f"gtFine/{split}"], HINT)
        images = _by_name(root / "leftImg8bit" / split, IMAGE)
        # Label ids take precedence: the train ids depend on the tool that converted them.
        folder = root / "gtFine" / split
        labels = _by_name(folder, TRAIN_IDS) | _by_name(folder, LABEL_IDS)
        check_paired("Cityscapes", images, labels, HINT)
        classes, files = Classes.named("cityscapes19"), pair_files(images, labels)
        super().__init__(f"Cityscapes {split}", classes, files, _label_table())
        self._train_table = lookup_table(len(classes), VOID)

    def _table_of(self, path: Path) -> np.ndarray:
        return self._table if path.name.endswith(LABEL_IDS) else self._train_table


def _by_name(folder: Path, suffix: str) -> dict[str, Path]:
    """Return the files of all cities by what precedes the suffix: city, sequence, frame."""
    return {path.name.removesuffix(suffix): path for path in folder.glob(f"*/*{suffix}")}


def _label_table() -> np.ndarray:
    """Return the class of each label id; license plates have the id -1, which files never hold."""
    train_ids = {
        label.id: label.train_id for label in TorchvisionCityscapes.classes if label.id >= 0
    }
    table = np.full(max(train_ids) + 1, INVALID, np.int32)
    for label_id, train_id in train_ids.items():
        table[label_id] = IGNORE_INDEX if train_id == VOID else train_id
    return table
