"""Turn images of any kind into batches for a model, and back for display."""

from __future__ import annotations

import importlib
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image, ImageFile, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate

from captum_clip_surgery._utils.errors import error_message
from captum_clip_surgery._utils.images import (
    FORMATS,
    PROGRAMS,
    ImageSource,
    check_floats,
    orientation,
    scale_to_8_bits,
    to_rgb,
    turn,
)

__all__ = ["Preprocess", "load_image"]

#: A PIL image, an array, or a path.
ImageInput = Image.Image | np.ndarray | str | PathLike[str]

#: First bytes of JPEG XL, bare and in a container.
JPEG_XL = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
#: Brands of HEIF files that hold HEVC images.
HEIC = re.compile(rb"ftyp(hei[cmsx]|hev[cmsx]|mif1|msf1)", re.DOTALL)
#: How many times larger than the model's input JPEGs are still decoded if `fast`.
FAST_MARGIN = 3

INTERPOLATIONS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}


class TooManyPixelsError(ValueError):
    """An image has more pixels than Pillow's limit."""


class UnreadFormatError(ValueError):
    """An image has a known format that is not read; the message says what to do."""


def open_image(file: ImageSource, formats: Sequence[str] = FORMATS) -> ImageFile.ImageFile:
    """Open an image without decoding its pixels.

    Args:
        file: A path or a stream, which need not be trusted.
        formats: Names of Pillow's formats to allow, a subset of `FORMATS`. File names do not
            matter.

    Raises:
        ValueError: If the format is not allowed, or the path is not that of a file.
        TooManyPixelsError: If the image has more pixels than Pillow's limit.
        OSError: If the file cannot be read. Decoders raise other errors as well.
    """
    if isinstance(file, (str, PathLike)) and Path(file).exists() and not Path(file).is_file():
        raise ValueError("it is a folder, pipe or device, expected a file")
    Image.init()
    try:
        with warnings.catch_warnings():
            # Pillow warns of images that are large but within its limit.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(file, formats=[kind for kind in formats if kind in Image.OPEN])
    except Image.DecompressionBombError as error:
        count = re.search(r"\((\d+) pixels\)", str(error))
        raise TooManyPixelsError(
            f"it has {f'{int(count[1]):,}' if count else 'too many'} pixels, the limit is "
            f"{2 * (Image.MAX_IMAGE_PIXELS or 0):,}; reduce the image, or raise "
            "PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        ) from None
    except UnidentifiedImageError:
        prefix = _prefix_of(file)
        if "HEIF" in formats and "HEIF" not in Image.OPEN and HEIC.match(prefix, 4):
            _register_heif()
            return open_image(file, formats)
        remedy = _remedy(prefix)
        if remedy:
            raise UnreadFormatError(remedy) from None
        raise ValueError(
            f"cannot identify image file; formats that are read: {', '.join(formats)}"
        ) from None


def _prefix_of(file: ImageSource) -> bytes:
    """Return the first bytes of a file."""
    if isinstance(file, (str, PathLike)):
        with Path(file).open("rb") as stream:
            return stream.read(16)
    file.seek(0)
    prefix = file.read(16)
    file.seek(0)
    return prefix


def _register_heif() -> None:
    """Have pillow-heif decode HEIC files.

    Raises:
        UnreadFormatError: If it is not installed.
    """
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        raise UnreadFormatError(
            "HEIC images need pillow-heif; install the extra: "
            "pip install 'captum_clip_surgery[heif]', or convert the image to JPEG"
        ) from None


def _remedy(prefix: bytes) -> str | None:
    """Return advice on a file whose first bytes belong to a known format, or None."""
    if prefix.startswith(JPEG_XL):
        return "JPEG XL is not read; convert it to PNG or JPEG"
    for kind in PROGRAMS:
        _, accept = Image.OPEN.get(kind, (None, None))
        if accept and accept(prefix):
            return f"{kind} is run by another program; convert it to PNG first"
    return None


def load_image(image: ImageInput) -> Image.Image:
    """Load an image as upright RGB with 8 bits.

    - The EXIF orientation is applied, and the first of several frames is taken.
    - Transparency is laid on white. A fourth band of a TIFF that does not say what it is counts as
      alpha, with a warning; a fourth channel of BMP or TGA that is zero everywhere does not.
    - Gray of 12 or 16 bits is scaled to 8 bits. Integers that do not say their range (PIL's mode
      "I" in memory, TIFF of 32 bits) are taken as 8-bit gray if none exceeds 255, otherwise as
      16-bit gray.

    Args:
        image: A PIL image of any mode; an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8,
            uint16, or floats in 0..1; or a path.

    Raises:
        FileNotFoundError: If there is no file at the path.
        ValueError: If a file is not an image, an image has no pixels, or an array has another
            shape, dtype or range.
        TypeError: If `image` has another type.

    Example::

        >>> load_image(np.zeros((2, 3), np.uint8)).size
        (3, 2)
    """
    if isinstance(image, (str, PathLike)):
        path = Path(image)
        if not path.is_file():
            folder = ", which is a folder" if path.is_dir() else ""
            raise FileNotFoundError(f"no image file at {path}{folder}")
        return read_image(path, str(path))
    if isinstance(image, np.ndarray):
        return to_rgb(_from_array(image))
    if isinstance(image, Image.Image):
        try:
            return turn(to_rgb(image), orientation(image))
        except ValueError:
            raise
        except Exception as error:  # an opened file is decoded only now
            raise ValueError(f"the image cannot be read: {error_message(error)}") from error
    raise TypeError(
        f"an image must be a PIL image, a numpy array or a path, got {type(image).__name__}"
        + ("; a tensor needs no preprocessing" if isinstance(image, Tensor) else "")
    )


def read_image(
    file: ImageSource,
    where: str,
    upright: bool = True,
    at_least: tuple[int, int] | None = None,
) -> Image.Image:
    """Read an image file as RGB; all readers of the package do it by this function.

    Args:
        file: A path, or a stream of the file's bytes.
        where: Description of the file, for messages.
        upright: Whether to apply the EXIF orientation.
        at_least: Width and height that suffice: a JPEG is decoded at 1/2, 1/4 or 1/8 of its size
            if it keeps this size.

    Returns:
        The image; in its `info` are `original_size` (width, height) and `exif_orientation`, which
        has been applied.

    Raises:
        FileNotFoundError: If there is no file at the path.
        ValueError: If the file cannot be read as an image.
    """
    try:
        with open_image(file) as image:
            size = image.size
            if at_least is not None and image.format in ("JPEG", "MPO"):
                image.draft(None, at_least if orientation(image) < 5 else at_least[::-1])
            rgb = to_rgb(image)
            value = orientation(image) if upright else 1
            rgb = turn(rgb, value)
            rgb.info |= {
                "original_size": size if value < 5 else size[::-1],
                "exif_orientation": value,
            }
            return rgb
    except FileNotFoundError:
        raise
    except Exception as error:  # decoders fail in their own ways
        raise ValueError(f"{where} cannot be read as an image: {error_message(error)}") from error


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))) or not array.size:
        raise ValueError(
            "an image array must be (H, W), or (H, W, C) of 1, 3 or 4 channels, and have pixels, "
            f"got {array.shape}"
        )
    if np.issubdtype(array.dtype, np.floating):
        check_floats(array, "an image array of floats", "divide by 255, or use uint8 for 0..255")
        array = scale_to_8_bits(array, 1)
    elif array.dtype == np.uint16:
        array = scale_to_8_bits(array, 65_535)
    elif array.dtype != np.uint8:
        raise ValueError(f"an image array must be uint8, uint16 or float, got {array.dtype}")
    return Image.fromarray(array)


@dataclass(frozen=True)
class Preprocess:
    """A model's own preprocessing, from images to batches.

    Attributes:
        size: Height and width in pixels.
        mean: Mean of pixels in 0..1, per channel.
        std: Standard deviation of pixels in 0..1, per channel.
        interpolation: "bicubic", "bilinear" or "nearest".
        fast: Whether to resize by torch, which is 6 times faster than Pillow and differs from it in
            0.4 % of values, by 1 or 2 levels of 255. `export` then also decodes JPEGs of at least 6
            times the size at 1/2, 1/4 or 1/8; docs/export.md shows how little that changes maps.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    fast: bool = False

    @classmethod
    def of(cls, model: Any, size: tuple[int, int]) -> Preprocess:
        """Return the preprocessing recorded on a model by open_clip's factory.

        Without a record, OpenAI's mean and standard deviation are used, with a warning.

        Args:
            model: An open_clip model.
            size: Height and width in pixels.

        Raises:
            ValueError: If the record has values out of range.
        """
        config = getattr(model.visual, "preprocess_cfg", None)
        if not config:
            warnings.warn(
                "the model has no visual.preprocess_cfg; using OpenAI's mean and std", stacklevel=5
            )
            config = {}
        mean = _per_channel(config.get("mean", open_clip.OPENAI_DATASET_MEAN), "mean")
        std = _per_channel(config.get("std", open_clip.OPENAI_DATASET_STD), "std")
        if min(std) <= 0:
            raise ValueError(f"preprocessing has std {std}, expected numbers above 0")
        interpolation = config.get("interpolation") or "bicubic"
        if interpolation not in INTERPOLATIONS:
            known = ", ".join(INTERPOLATIONS)
            raise ValueError(
                f"preprocessing has interpolation {interpolation!r}, expected one of {known}"
            )
        return cls(size, mean, std, interpolation)

    def __call__(
        self,
        images: ImageInput | Sequence[ImageInput],
        size: int | tuple[int, int] | None = None,
        crop: bool = False,
    ) -> Tensor:
        """Resize and normalize images to a batch (N, 3, H, W).

        Args:
            images: One or a list of PIL images, arrays or paths.
            size: Side or (height, width) in pixels; None means the model's own.
            crop: Whether to resize the shorter side and keep the center, instead of squashing the
                whole image.

        Raises:
            FileNotFoundError: If a file does not exist.
            TypeError: If an image or the size has another type.
            ValueError: If there are no images, or one cannot be read.
        """
        height, width = self.size if size is None else _height_width(size)
        if isinstance(images, str) or not isinstance(images, Sequence):
            images = [images]
        if not images:
            raise ValueError("no images to preprocess")
        batch = [self._one(load_image(image), height, width, crop) for image in images]
        return torch.stack(batch).sub_(self._channels(self.mean)).div_(self._channels(self.std))

    def at_least(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """Return the (width, height) at which to read an image for a (height, width); None: all."""
        return (FAST_MARGIN * size[1], FAST_MARGIN * size[0]) if self.fast else None

    def unnormalize(self, images: Tensor) -> Tensor:
        """Return batches (..., 3, H, W) as colors for display, clipped to 0..1."""
        mean, std = self._channels(self.mean).to(images), self._channels(self.std).to(images)
        return (images * std + mean).clamp(0, 1)

    def _one(self, image: Image.Image, height: int, width: int, crop: bool) -> Tensor:
        size = _cover(image.size, height, width) if crop else (width, height)
        left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
        pixels = self._resize(image, size)[:, top : top + height, left : left + width]
        return pixels.float().div_(255)

    def _resize(self, image: Image.Image, size: tuple[int, int]) -> Tensor:
        """Resize an image to (width, height), as uint8 (3, height, width)."""
        by_torch = self.fast and self.interpolation != "nearest" and image.size != size
        if not by_torch and image.size != size:
            image = image.resize(size, INTERPOLATIONS[self.interpolation])
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        if by_torch:
            mode = self.interpolation
            pixels = interpolate(pixels[None], size[::-1], mode=mode, antialias=True)[0]
        return pixels

    @staticmethod
    def _channels(values: tuple[float, float, float]) -> Tensor:
        # Whatever the default dtype and device.
        return torch.tensor(values, dtype=torch.float32, device="cpu").reshape(3, 1, 1)


def _per_channel(values: Any, what: str) -> tuple[float, float, float]:
    """Check that a setting has a finite number for each channel."""
    numbers = tuple(values) if isinstance(values, Sequence) else ()
    if len(numbers) != 3 or not all(isinstance(v, (int, float)) for v in numbers):
        numbers = (math.nan,) * 3
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"preprocessing has {what} {values!r}, expected three finite numbers")
    return numbers


def _cover(size: tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """Return the (width, height) at which the shorter side fits, as open_clip rounds it."""
    scale = max(width / size[0], height / size[1])
    # open_clip rounds down for square targets, and to the nearest integer for others.
    to_int = math.floor if height == width else round
    return (
        max(width, to_int(size[0] * scale + 1e-6)),
        max(height, to_int(size[1] * scale + 1e-6)),
    )


def _height_width(size: int | tuple[int, int]) -> tuple[int, int]:
    sides = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(sides) != 2 or not all(hasattr(side, "__index__") for side in sides):
        raise TypeError(f"size {size!r} is neither an int nor (height, width)")
    height, width = (int(side) for side in sides)
    if height < 1 or width < 1:
        raise ValueError(f"size {size!r} must be positive")
    return height, width
