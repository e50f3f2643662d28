"""Images and label maps as the data sets' own tools read them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile

from captum_clip_surgery.preprocessing import open_image


@contextmanager
def _opened(path: Path, what: str) -> Iterator[ImageFile.ImageFile]:
    """Open an image file; name the file in every error of its decoder, `what` being expected."""
    try:
        with open_image(path) as image:
            yield image
    except FileNotFoundError:
        raise
    except Exception as error:  # decoders raise many types
        raise ValueError(f"{path} cannot be read as {what}: {error}") from None


def open_rgb(path: Path) -> Image.Image:
    """Read an image as RGB, its pixels in the order in which they are stored.

    Grayscale, CMYK and palette images are converted. An EXIF rotation is not applied, because
    annotations refer to the stored pixels.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not an image, or is truncated.
    """
    with _opened(path, "an image") as opened:
        image = opened.convert("RGB")
        image.info.clear()  # including the EXIF rotation, which later steps would apply
        return image


def image_size(path: Path) -> tuple[int, int]:
    """Read the (width, height) of an image's stored pixels from its header.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not an image.
    """
    with _opened(path, "an image") as image:
        return image.size


def open_labels(path: Path) -> np.ndarray:
    """Read the integers in a PNG of labels: palette indices, or gray values of up to 16 bits.

    Returns:
        Array (H, W) of int32.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, or holds colors.
    """
    with _opened(path, "labels") as image:
        if image.mode not in ("P", "L", "I", "I;16", "I;16B", "1"):
            raise ValueError(f"it has mode {image.mode}, expected a palette or gray values")
        # Pillow scales 2- and 4-bit gray to 0..255; labels are the stored values.
        scale = {"L;2": 85, "L;4": 17}.get(str(image.tile[0][3]), 1) if image.tile else 1
        labels = np.asarray(image).astype(np.int32)
        labels //= scale
        return labels


def open_rgb_labels(path: Path) -> np.ndarray:
    """Read the integers red + 256 x green in an RGB PNG of labels.

    Returns:
        Array (H, W) of int32.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, or does not hold RGB colors.
    """
    with _opened(path, "labels") as image:
        if image.mode != "RGB":
            raise ValueError(f"it has mode {image.mode}, expected colors, RGB")
        colors = np.asarray(image).astype(np.int32)
    return colors[..., 0] + 256 * colors[..., 1]


def check_size(
    image: Image.Image, image_path: Path, size: tuple[int, int], path: Path | str
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
