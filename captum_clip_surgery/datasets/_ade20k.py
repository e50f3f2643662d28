"""ADE20K: 150 classes of things and stuff."""

from __future__ import annotations

from pathlib import Path

from captum_clip_surgery.datasets._classes import Classes
from captum_clip_surgery.datasets._layout import check_layout, check_option, check_paired
from captum_clip_surgery.datasets._paired import PairedDataset, lookup_table, pair_files

FOLDER = "ADEChallengeData2016"
HINT = (
    f"{FOLDER}.zip from data.csail.mit.edu/places/ADEchallenge, unpacked there: "
    f"{FOLDER}/images/SPLIT/*.jpg, {FOLDER}/annotations/SPLIT/*.png"
)
SPLITS = ("training", "validation")


class Ade20k(PairedDataset):
    """ADE20K with the 150 classes of the scene parsing challenge: one class per pixel, or ignored.

    Expected files::

        root/ADEChallengeData2016/images/validation/ADE_val_00000001.jpg
        root/ADEChallengeData2016/annotations/validation/ADE_val_00000001.png

    Label files hold 1 to 150, which become classes 0 to 149, and 0 for everything else, which is
    ignored as in the challenge. There is no background class.

    Args:
        root: The folder that contains `ADEChallengeData2016`, or that folder.
        split: "training" or "validation".

    Raises:
        FileNotFoundError: If a folder, an image or a label file is missing.
        ValueError: If `split` is unknown.

    References:
        Zhou et al.: Scene Parsing through ADE20K Dataset. CVPR 2017;
        https://github.com/CSAILVision/sceneparsing.
    """

    def __init__(self, root: Path | str, split: str = "validation") -> None:
        check_option("ADE20K", "split", split, SPLITS)
        root = Path(root)
        folder = root / FOLDER if (root / FOLDER).is_dir() else root
        check_layout("ADE20K", folder, [f"images/{split}", f"annotations/{split}"], HINT)
        images = {path.stem: path for path in (folder / "images" / split).glob("*.jpg")}
        labels = {path.stem: path for path in (folder / "annotations" / split).glob("*.png")}
        check_paired("ADE20K", images, labels, HINT)
        classes = Classes.named("ade150")
        table = lookup_table(len(classes), void=0, first=1)
        super().__init__(f"ADE20K {split}", classes, pair_files(images, labels), table)
