"""Images and label maps of data sets."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile

from captum_clip_surgery._utils.errors import error_message
from captum_clip_surgery._utils.images import FORMATS, ImageSource
from captum_clip_surgery.preprocessing import open_image, read_image

#: Formats of label maps: those that keep every value as it is stored.
LABEL_FORMATS = ("PNG", "TIFF", "BMP", "DIB", "GIF")


def open_rgb(path: Path) -> Image.Image:
    """Read an image as RGB, its pixels in the order in which they are stored.

    An EXIF rotation is not applied, because annotations of published data sets refer to the stored
    pixels. Otherwise the image is read as by `load_image`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not an image, or is truncated.
    """
    return read_image(path, str(path), upright=False)


@contextmanager
def opened(
    file: ImageSource, where: str, what: str, formats: Sequence[str] = FORMATS
) -> Iterator[ImageFile.ImageFile]:
    """Open an image file; every error of its decoder names `where`, `what` being expected."""
    try:
        with open_image(file, formats) as image:
            yield image
    except FileNotFoundError:
        raise
    except Exception as error:  # decoders raise many types
        raise ValueError(f"{where} cannot be read as {what}: {error_message(error)}") from None


def image_size(path: Path) -> tuple[int, int]:
    """Read the (width, height) of an image's stored pixels from its header.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not an image.
    """
    with opened(path, str(path), "an image") as image:
        return image.size


def open_labels(path: Path) -> np.ndarray:
    """Read the integers in a PNG of labels: palette indices, or gray values of up to 16 bits.

    Returns:
        Array (H, W) of int32.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, holds colors, or has a format that changes values.
    """
    with opened(path, str(path), "labels", LABEL_FORMATS) as image:
        return decode_labels(image)


def decode_labels(image: ImageFile.ImageFile) -> np.ndarray:
    """Return the integers (H, W) that a file of labels stores, as int32.

    Raises:
        ValueError: If it holds colors.
    """
    if image.mode not in ("P", "L", "I", "I;16", "I;16B", "1"):
        raise ValueError(f"it holds colors, mode {image.mode}, expected a palette or gray values")
    arguments = image.tile[0][3] if image.tile else ""
    mode = arguments[0] if isinstance(arguments, tuple) else str(arguments)
    labels = np.asarray(image).astype(np.int32)
    if re.fullmatch("[1L];[24]?IR?", mode):  # Pillow inverts gray whose zero is white
        labels = (1 if image.mode == "1" else 255) - labels
    # Pillow spreads gray of 2 and 4 bits over 0..255.
    labels //= {"L;2": 85, "L;4": 17}.get(mode[:3], 1)
    return labels


def open_rgb_labels(path: Path) -> np.ndarray:
    """Read the integers red + 256 x green in an RGB PNG of labels.

    Returns:
        Array (H, W) of int32.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, or does not hold RGB colors.
    """
    with opened(path, str(path), "labels", LABEL_FORMATS) as image:
        if image.mode != "RGB":
            raise ValueError(f"it has mode {image.mode}, expected colors, RGB")
        colors = np.asarray(image).astype(np.int32)
    return colors[..., 0] + 256 * colors[..., 1]


def check_size(
    image: Image.Image, image_path: Path | str, size: tuple[int, int], path: Path | str
) -> None:
    """Check that labels have the size of their image, before they are decoded.

    Args:
        image: The image.
        image_path: Its file, for the message.
        size: (width, height) of the labels.
        path: Their file, for the message.

    Raises:
        ValueError: If the sizes differ.
    """
    if size != image.size:
        raise ValueError(
            f"{path} is {size[0]} x {size[1]} pixels, its image {image_path} is {image.width} x "
            f"{image.height}"
        )
