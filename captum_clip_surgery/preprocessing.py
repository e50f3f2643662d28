"""Turn images of any kind into batches for a model, and back for display."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import IO, Any

import numpy as np
import open_clip
import torch
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from captum_clip_surgery._utils.errors import error_message

__all__ = ["FORMATS", "ImageInput", "Preprocess", "load_image"]

#: A PIL image, an array, or a path.
ImageInput = Image.Image | np.ndarray | str | PathLike[str]

INTERPOLATIONS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}
#: Formats that are read: those that Pillow decodes itself (HEIF with a third-party plugin). Others
#: are never opened: Pillow passes EPS to Ghostscript, which runs the program in the file, and IPTC
#: contains another file, which may be EPS.
FORMATS = (
    "PNG", "JPEG", "MPO", "WEBP", "GIF", "TIFF", "BMP", "DIB", "PPM", "AVIF", "HEIF", "JPEG2000",
    "ICO", "TGA", "PSD", "DDS", "PCX", "SGI", "QOI", "IM",
)  # fmt: skip
#: Formats that Pillow has other programs decode, named in the error message.
PROGRAMS = ("EPS", "WMF")


def load_image(image: ImageInput) -> Image.Image:
    """Load an image as upright RGB.

    EXIF orientation is applied, 16-bit gray is scaled to 8 bits, transparency is blended with
    white, and the first of several frames is taken.

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
            raise FileNotFoundError(f"no image file at {path}")
        try:
            with open_image(path) as file:
                return _to_rgb(upright(file))
        except Exception as error:  # decoders fail in their own ways
            raise ValueError(
                f"{path} cannot be read as an image: {error_message(error)}"
            ) from error
    if isinstance(image, np.ndarray):
        return _to_rgb(_from_array(image))
    if isinstance(image, Image.Image):
        try:
            return _to_rgb(upright(image))
        except ValueError:
            raise
        except Exception as error:  # an opened file is decoded only now
            raise ValueError(f"the image cannot be read: {error_message(error)}") from error
    raise TypeError(
        f"an image is a PIL image, a numpy array or a path, not {type(image).__name__}"
        + ("; a tensor needs no preprocessing" if isinstance(image, Tensor) else "")
    )


def open_image(
    file: str | PathLike[str] | IO[bytes], formats: Sequence[str] = FORMATS
) -> ImageFile.ImageFile:
    """Open an image without decoding its pixels; the package opens all images by this function.

    Args:
        file: A path or a stream, which need not be trusted.
        formats: Names of Pillow's formats to allow, a subset of `FORMATS`. File names do not
            matter.

    Raises:
        ValueError: If the format is not allowed, or the path is not that of a file.
        OSError: If the file cannot be read. Decoders raise other errors as well.
    """
    if isinstance(file, (str, PathLike)) and Path(file).exists() and not Path(file).is_file():
        raise ValueError("it is a folder, pipe or device, expected a file")
    Image.init()
    try:
        return Image.open(file, formats=[kind for kind in formats if kind in Image.OPEN])
    except UnidentifiedImageError as error:
        program = _program_of(file)
        if program:
            raise ValueError(
                f"{program} is run by another program; convert it to PNG first"
            ) from None
        raise ValueError(f"{error}; formats that are read: {', '.join(formats)}") from None


def _program_of(file: str | PathLike[str] | IO[bytes]) -> str | None:
    """Return which of `PROGRAMS` a file is by its first bytes, or None."""
    if isinstance(file, (str, PathLike)):
        with Path(file).open("rb") as stream:
            prefix = stream.read(16)
    else:
        file.seek(0)
        prefix = file.read(16)
    for kind in PROGRAMS:
        _, accept = Image.OPEN.get(kind, (None, None))
        if accept and accept(prefix):
            return kind
    return None


def _check_format(image: Image.Image) -> None:
    """Check that a file which is not decoded yet has one of the formats in `FORMATS`."""
    if isinstance(image, ImageFile.ImageFile) and image.tile and image.format not in FORMATS:
        if image.format in PROGRAMS:
            raise ValueError(f"{image.format} is run by another program; convert it to PNG first")
        raise ValueError(
            f"it is an opened {image.format} file; formats that are read: {', '.join(FORMATS)}. "
            "Decode it with image.load() first if you trust it"
        )


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))) or not array.size:
        raise ValueError(f"an image array is (H, W), or (H, W, 1, 3 or 4), not {array.shape}")
    if np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise ValueError("an image array of floats must lie in 0..1; use uint8 for 0..255")
        array = (array * 255).round().astype(np.uint8)
    elif array.dtype == np.uint16:
        wide = array.astype(np.uint32)  # half the memory of float64
        wide += 128
        wide //= 257
        array = wide.astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ValueError(f"an image array is uint8, uint16 or float, not {array.dtype}")
    return Image.fromarray(array)


def upright(image: Image.Image) -> Image.Image:
    """Apply an image's EXIF orientation; damaged EXIF data leaves it as it is.

    Args:
        image: An image, which may be an opened file.

    Raises:
        ValueError: If it is an opened file of a format that is not in `FORMATS`.
        Exception: If decoding fails; decoders raise many types.
    """
    _check_format(image)
    image.load()
    try:
        image.getexif()
    except Exception:  # Pillow tolerates some errors when it opens a file, and raises them here
        return image
    return ImageOps.exif_transpose(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if not image.width or not image.height:
        raise ValueError(
            f"an image must have pixels, got {image.width} x {image.height} (width x height)"
        )
    if image.mode == "La":
        image = image.convert("LA")  # the only conversion that Pillow has
    if image.mode.startswith(("I", "F")):
        return _from_high_range(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _from_high_range(image: Image.Image) -> Image.Image:
    """Convert 16-bit gray ("I;16", or "I" as PNG is read) and floats ("F") to 8 bits."""
    values = np.asarray(image)
    if image.mode == "F":
        return _from_array(values)
    if values.min() < 0 or values.max() > 65_535:
        raise ValueError(
            f"an image of mode {image.mode} must hold 0..65535, not {values.min()}..{values.max()}"
        )
    return _from_array(values.astype(np.uint16))


@dataclass(frozen=True)
class Preprocess:
    """A model's own preprocessing, from images to batches.

    Attributes:
        size: Height and width in pixels.
        mean: Mean of pixels in 0..1, per channel.
        std: Standard deviation of pixels in 0..1, per channel.
        interpolation: "bicubic", "bilinear" or "nearest".
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str

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
            size: Side or (height, width) in pixels; None stands for the model's own.
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

    def unnormalize(self, images: Tensor) -> Tensor:
        """Return batches (..., 3, H, W) as colors for display, clipped to 0..1."""
        mean, std = self._channels(self.mean).to(images), self._channels(self.std).to(images)
        return (images * std + mean).clamp(0, 1)

    def _one(self, image: Image.Image, height: int, width: int, crop: bool) -> Tensor:
        resample = INTERPOLATIONS[self.interpolation]
        if crop:
            image = _crop_center(image, height, width, resample)
        elif image.size != (width, height):
            image = image.resize((width, height), resample)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).to(torch.float32).div_(255)

    @staticmethod
    def _channels(values: tuple[float, float, float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device="cpu").reshape(3, 1, 1)


def _per_channel(values: Any, what: str) -> tuple[float, float, float]:
    """Check that a setting has a finite number for each channel."""
    numbers = tuple(values) if isinstance(values, Sequence) else ()
    if len(numbers) != 3 or not all(isinstance(v, (int, float)) for v in numbers):
        numbers = (math.nan,) * 3
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"preprocessing has {what} {values!r}, expected three finite numbers")
    return numbers


def _crop_center(image: Image.Image, height: int, width: int, resample: Any) -> Image.Image:
    """Resize the shorter side to fit and keep the center, as open_clip's preprocessing does."""
    scale = max(height / image.height, width / image.width)
    # open_clip rounds down for square targets, and to the nearest integer for others.
    to_int = math.floor if height == width else round
    scaled = (
        max(width, to_int(image.width * scale + 1e-6)),
        max(height, to_int(image.height * scale + 1e-6)),
    )
    if image.size != scaled:
        image = image.resize(scaled, resample)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _height_width(size: int | tuple[int, int]) -> tuple[int, int]:
    sides = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(sides) != 2 or not all(hasattr(side, "__index__") for side in sides):
        raise TypeError(f"size {size!r} is neither an int nor (height, width)")
    height, width = (int(side) for side in sides)
    if height < 1 or width < 1:
        raise ValueError(f"size {size!r} must be positive")
    return height, width
