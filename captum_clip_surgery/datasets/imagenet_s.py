"""ImageNet-S: ImageNet's images with the pixels of their object."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from captum_clip_surgery.datasets.base import (
    IGNORED,
    Classes,
    DataSet,
    Labels,
    Sample,
    check_layout,
    open_rgb,
    picture_size,
)
from captum_clip_surgery.datasets.files import check_size, check_split
from captum_clip_surgery.datasets.paired import INVALID, check_paired, relabel
from captum_clip_surgery.preprocessing import open_image

SIZES = (50, 300, 919)
SPLITS = ("train-semi", "validation")
#: The value of what was not judged.
VOID = 1000


class ImageNetS(DataSet):
    """ImageNet-S: each pixel one of 50, 300 or 919 classes, another thing, or ignored.

    Layout, as `data_preparation.sh` of LUSSeg/ImageNet-S makes it of ImageNet::

        root/ImageNetS50/validation/n01443537/ILSVRC2012_val_00004677.JPEG
        root/ImageNetS50/validation-segmentation/n01443537/ILSVRC2012_val_00004677.png

    Labels are colours: red + 256 x green. 0 is all else, the background class; 1 to `size` are the
    classes, in the order of their WordNet ids; 1000 is ignored. Their names are those of the
    official toolkit.

    Source: Gao et al., "Large-scale Unsupervised Semantic Segmentation" (TPAMI 2022);
    github.com/LUSSeg/ImageNet-S.

    Args:
        root: the folder of `ImageNetS50`, or that folder.
        size: 50, 300 or 919.
        split: "validation" or "train-semi"; the labels of test are not published.

    Raises:
        FileNotFoundError: a folder, or the labels or the image of a sample, is missing.
        ValueError: another size or split.
    """

    def __init__(self, root: Path | str, size: int = 50, split: str = "validation") -> None:
        if size not in SIZES:
            raise ValueError(f"size {size!r} of ImageNet-S is none of {', '.join(map(str, SIZES))}")
        check_split("ImageNet-S", split, SPLITS)
        title = f"ImageNet-S {size} {split}"
        below = Path(root) / f"ImageNetS{size}"
        folder = Path(root) if Path(root).resolve().name == below.name else below
        hint = (
            "what data_preparation.sh of github.com/LUSSeg/ImageNet-S makes in it: "
            f"{below.name}/{split}/nXXXXXXXX/*.JPEG of {size} folders, "
            f"{below.name}/{split}-segmentation/nXXXXXXXX/*.png"
        )
        check_layout(title, folder, [split, f"{split}-segmentation"], hint)
        for part in (split, f"{split}-segmentation"):
            found = len([p for p in (folder / part).glob("n*") if p.is_dir()])
            if found != size:
                raise FileNotFoundError(
                    f"{title} is not whole: {folder / part} has {found} folders of classes, "
                    f"expected {size}. Expected: {hint}"
                )
        self._images = _by_name(folder / split, ".JPEG")
        self._labels = _by_name(folder / f"{split}-segmentation", ".png")
        check_paired(title, self._images, self._labels, hint)
        super().__init__(title, Classes.named(f"imagenet_s{size}"), sorted(self._images), 0)

    def read(self, index: int) -> Sample:
        name = self.names[index]
        image_path, path = self._images[name], self._labels[name]
        image = open_rgb(image_path)
        check_size(image, image_path, picture_size(path), path)
        stored = _open_colours(path)
        table = np.full(VOID + 1, INVALID)
        table[: len(self.classes)] = range(len(self.classes))
        table[VOID] = IGNORED
        return Sample(name, image, Labels(relabel(stored, table, path)))


def _by_name(folder: Path, suffix: str) -> dict[str, Path]:
    """Files by their folder and stem: n01443537/ILSVRC2012_val_00004677."""
    return {f"{path.parent.name}/{path.stem}": path for path in folder.glob(f"n*/*{suffix}")}


def _open_colours(path: Path) -> np.ndarray:
    """The numbers that colours stand for."""
    try:
        with open_image(path) as image:
            if image.mode != "RGB":
                raise ValueError(f"it is of mode {image.mode}, expected colours, RGB")
            colours = np.asarray(image).astype(np.int32)
    except FileNotFoundError:
        raise
    except Exception as error:  # decoders fail in their own ways
        raise ValueError(f"{path} cannot be read as labels: {error}") from None
    return colours[..., 0] + 256 * colours[..., 1]
