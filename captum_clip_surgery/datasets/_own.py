"""Images and masks of users' own data sets: both are read as viewers show them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFile

from captum_clip_surgery._utils.images import ImageSource, orientation, turn
from captum_clip_surgery.datasets._base import IGNORE_INDEX, Labels
from captum_clip_surgery.datasets._classes import Classes
from captum_clip_surgery.datasets._files import LABEL_FORMATS, check_size, decode_labels, opened
from captum_clip_surgery.datasets._paired import lookup_table, relabel
from captum_clip_surgery.preprocessing import read_image

#: Number of masks that are all read to find out whether the last class occurs.
FEW = 100


@dataclass(frozen=True)
class OwnImage:
    """An image as viewers show it, with which its masks must agree.

    Args:
        image: The image, RGB and upright.
        where: Description of its file, for messages.
    """

    image: Image.Image
    where: str

    @classmethod
    def read(cls, file: ImageSource, where: str) -> OwnImage:
        """Read an image file.

        Raises:
            ValueError: If it cannot be read.
        """
        return cls(read_image(file, where), where)

    def check_size(self, size: tuple[int, int], where: str) -> None:
        """Check the size of a mask.

        Raises:
            ValueError: If it is another one; the message says whether the EXIF orientation of the
                image explains it.
        """
        try:
            check_size(self.image, self.where, size, where)
        except ValueError as error:
            width, height = self.image.size
            if self.image.info["exif_orientation"] < 5 or size != (height, width):
                raise
            raise ValueError(
                f"{error} as shown: it is stored as {height} x {width} and turned by its EXIF "
                "rotation. Turn the mask as well, or store the image upright"
            ) from None

    def warn_of_orientation(self, mask_orientation: int, where: str) -> None:
        """Warn if the size does not tell whether a mask matches the image as shown or as stored."""
        value = self.image.info["exif_orientation"]
        is_square = self.image.width == self.image.height
        if value != 1 and mask_orientation == 1 and (value < 5 or is_square):
            warnings.warn(
                f"{self.where} is turned upright by its EXIF orientation {value}, and {where} has "
                "none; it is assumed to match the image as shown. If it matches the stored pixels, "
                "turn it as well, or store the image upright",
                stacklevel=2,
            )


def read_mask(
    file: ImageSource, where: str, own: OwnImage | None = None, mode: str | None = None
) -> tuple[np.ndarray, int]:
    """Read the integers of a mask, turned by the mask's own EXIF orientation.

    Args:
        file: File of the mask.
        where: Description of the file, for messages.
        own: Image whose size the mask must have.
        mode: "L" reads gray that is stored as RGB.

    Returns:
        Array (H, W) of int32, and the value that stands for unlabeled pixels: 65535 for 16 bits,
        otherwise 255.

    Raises:
        ValueError: If the mask cannot be read, or does not have the size of the image as shown.
    """
    with opened(file, where, "labels", LABEL_FORMATS) as mask:
        size, turned = mask.size, 1
        if own is None or sorted(size) == sorted(own.image.size):
            is_gray_rgb = mode == "L" and mask.mode == "RGB"
            values = _gray_of_rgb(mask) if is_gray_rgb else decode_labels(mask)
            void = 65_535 if mask.mode.startswith("I;16") else 255
            turned = orientation(mask)
    if own:
        own.check_size(size[::-1] if turned >= 5 else size, where)
        own.warn_of_orientation(turned, where)
    if turned != 1:
        values = np.asarray(turn(Image.fromarray(values), turned))
    return values, void


def _gray_of_rgb(mask: ImageFile.ImageFile) -> np.ndarray:
    colors = np.asarray(mask)
    if (colors != colors[..., :1]).any():
        raise ValueError("it holds colors, expected a palette or gray values")
    return colors[..., 0].astype(np.int32)


def read_labels(
    file: ImageSource,
    where: str,
    classes: Classes,
    own: OwnImage | None = None,
    mode: str | None = None,
) -> Labels:
    """Read a mask of class numbers, as `read_mask` does.

    Raises:
        ValueError: Also if a value is neither a class nor the value of unlabeled pixels.
    """
    values, void = read_mask(file, where, own, mode)
    return Labels(relabel(values, lookup_table(len(classes), void), where))


def check_ignored(name: str, classes: Classes, count: int, read: Callable[[int], Labels]) -> None:
    """Check that masks do not hold the ignored value in the place of a class.

    Masks of 0 and 255 would leave one class, and every pixel of an object would be ignored. Masks
    are read until two classes have occurred, which is seldom more than a few, and in data sets of
    up to `FEW` masks until the last class has.

    Args:
        name: Name of the data set, for the message.
        classes: Its classes.
        count: Number of masks.
        read: Function that reads the mask of a number.

    Raises:
        ValueError: If pixels are ignored while only one class occurs, or all but the last one.
    """
    last = len(classes) - 1
    found: set[int] = set()
    for index in range(count):
        try:
            found.update(np.unique(read(index).labels).tolist())
        except (OSError, ValueError):  # reported when the sample is read
            continue
        if len(found - {IGNORE_INDEX}) > 1 and (count > FEW or last in found):
            return
    missing = sorted(set(range(len(classes))) - found)
    if IGNORE_INDEX in found and (len(missing) >= last or missing == [last]):
        what = classes.first[missing[0]] if missing else "any other class"
        raise ValueError(
            f"{name}: {what!r:.80} never occurs in the masks, but the ignored value does, 255 "
            "(65535 in 16 bits). Masks hold the numbers of lines in classes.txt, from 0: in masks "
            "of 0 and 255 write 1 for 255, or store one mask per class, which may hold 0 and 255. "
            "Remove classes that are in no image from the end of classes.txt"
        )
