"""ImageNet-S: ImageNet's images with the pixels of their object."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from captum_clip_surgery.datasets._classes import Classes
from captum_clip_surgery.datasets._files import check_size, image_size, open_rgb_labels
from captum_clip_surgery.datasets._layout import check_layout, check_option, check_paired
from captum_clip_surgery.datasets._paired import PairedDataset, lookup_table, pair_files

SIZES = (50, 300, 919)
SPLITS = ("train-semi", "validation")
#: Value of unlabeled pixels.
VOID = 1000


class ImageNetS(PairedDataset):
    """ImageNet-S: one of 50, 300 or 919 classes per pixel, background, or ignored.

    Expected files, as `data_preparation.sh` of LUSSeg/ImageNet-S creates them from ImageNet::

        root/ImageNetS50/validation/n01443537/ILSVRC2012_val_00004677.JPEG
        root/ImageNetS50/validation-segmentation/n01443537/ILSVRC2012_val_00004677.png

    Labels are stored as colors, red + 256 x green: 0 is the background class, 1 to `size` are the
    classes in the order of their WordNet ids, and 1000 is ignored. Class names are those of the
    official toolkit.

    Args:
        root: The folder that contains `ImageNetS50`, or that folder.
        size: Number of classes: 50, 300 or 919.
        split: "validation" or "train-semi"; the labels of the test split are not published.

    Raises:
        FileNotFoundError: If a folder, an image or a label file is missing.
        ValueError: If `size` or `split` is unknown.

    References:
        Gao et al.: Large-scale Unsupervised Semantic Segmentation. TPAMI 2022;
        https://github.com/LUSSeg/ImageNet-S.
    """

    def __init__(self, root: Path | str, size: int = 50, split: str = "validation") -> None:
        check_option("ImageNet-S", "size", size, SIZES)
        check_option("ImageNet-S", "split", split, SPLITS)
        title, below = f"ImageNet-S {size} {split}", Path(root) / f"ImageNetS{size}"
        folder = Path(root) if Path(root).resolve().name == below.name else below
        hint = (
            "what data_preparation.sh of github.com/LUSSeg/ImageNet-S creates there: "
            f"{below.name}/{split}/nXXXXXXXX/*.JPEG in {size} folders, "
            f"{below.name}/{split}-segmentation/nXXXXXXXX/*.png"
        )
        check_layout(title, folder, [split, f"{split}-segmentation"], hint)
        for part in (split, f"{split}-segmentation"):
            count = sum(path.is_dir() for path in (folder / part).glob("n*"))
            if count != size:
                raise FileNotFoundError(
                    f"{title} is incomplete: {folder / part} has {count} folders of classes, "
                    f"expected {size}. Expected: {hint}"
                )
        images = _by_name(folder / split, ".JPEG")
        labels = _by_name(folder / f"{split}-segmentation", ".png")
        check_paired(title, images, labels, hint)
        classes = Classes.named(f"imagenet_s{size}")
        table = lookup_table(len(classes), VOID)
        super().__init__(title, classes, pair_files(images, labels), table, background=0)

    def _read_values(self, path: Path, image: Image.Image, image_path: Path) -> np.ndarray:
        check_size(image, image_path, image_size(path), path)
        return open_rgb_labels(path)


def _by_name(folder: Path, suffix: str) -> dict[str, Path]:
    """Return files by folder and stem, such as n01443537/ILSVRC2012_val_00004677."""
    return {f"{path.parent.name}/{path.stem}": path for path in folder.glob(f"n*/*{suffix}")}
