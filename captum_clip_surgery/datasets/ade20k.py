"""ADE20K as the scene parsing challenge of 2016 has it: 150 classes of things and stuff."""

from __future__ import annotations

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
from captum_clip_surgery.datasets.paired import check_paired, read_pair, relabel

FOLDER = "ADEChallengeData2016"
HINT = (
    f"{FOLDER}.zip of data.csail.mit.edu/places/ADEchallenge unpacked in it: "
    f"{FOLDER}/images/SPLIT/*.jpg, {FOLDER}/annotations/SPLIT/*.png"
)
SPLITS = ("training", "validation")


class Ade20k(ImageDataset):
    """ADE20K, the 150 classes of the scene parsing challenge: each pixel one class, or ignored.

    Layout::

        root/ADEChallengeData2016/images/validation/ADE_val_00000001.jpg
        root/ADEChallengeData2016/annotations/validation/ADE_val_00000001.png

    Files hold 1 to 150, which are classes 0 to 149, and 0 for what is none of them, which is
    ignored as in the challenge; there is no background.

    Source: Zhou et al., "Scene Parsing through ADE20K Dataset" (CVPR 2017);
    github.com/CSAILVision/sceneparsing.

    Args:
        root: the folder of `ADEChallengeData2016`, or that folder.
        split: "training" or "validation".

    Raises:
        FileNotFoundError: a folder, or the labels or the image of a sample, is missing.
        ValueError: another split.
    """

    def __init__(self, root: Path | str, split: str = "validation") -> None:
        check_split("ADE20K", split, SPLITS)
        root = Path(root)
        folder = root / FOLDER if (root / FOLDER).is_dir() else root
        check_layout("ADE20K", folder, [f"images/{split}", f"annotations/{split}"], HINT)
        self._images = {p.stem: p for p in (folder / "images" / split).glob("*.jpg")}
        self._labels = {p.stem: p for p in (folder / "annotations" / split).glob("*.png")}
        check_paired("ADE20K", self._images, self._labels, HINT)
        super().__init__(f"ADE20K {split}", Classes.named("ade150"), sorted(self._images))

    def read(self, index: int) -> Sample:
        name = self.names[index]
        path = self._labels[name]
        image, stored = read_pair(self._images[name], path)
        table = np.array([IGNORE_INDEX, *range(len(self.classes))])
        return Sample(name, image, Labels(relabel(stored, table, path)))
