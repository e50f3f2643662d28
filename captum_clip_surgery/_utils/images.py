"""Image files: which formats are read, and how their pixels become RGB.

The whole package reads images by this module, so that a file looks the same to every command.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from os import PathLike
from typing import IO, Any

import numpy as np
from PIL import Image, ImageFile

#: An image file: a path, or a stream of its bytes.
ImageSource = str | PathLike[str] | IO[bytes]

#: Formats that are read: those that Pillow decodes itself, and HEIF where pillow-heif is installed.
#: Others are never opened: Pillow passes EPS to Ghostscript, which runs the program in the file,
#: and IPTC contains another file, which may be EPS.
FORMATS = (
    "PNG", "JPEG", "MPO", "WEBP", "GIF", "TIFF", "BMP", "DIB", "PPM", "AVIF", "HEIF", "JPEG2000",
    "ICO", "TGA", "PSD", "DDS", "PCX", "SGI", "QOI", "IM",
)  # fmt: skip
#: Suffixes of image files in folders and archives. HEIC and JPEG XL are among them, so that files
#: that cannot be read are reported rather than passed over.
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".tif", ".tiff",
    ".bmp", ".dib", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".avif", ".avifs", ".heic", ".heics",
    ".heif", ".heifs", ".hif", ".jxl", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".ico",
    ".tga", ".icb", ".vda", ".vst", ".psd", ".dds", ".pcx", ".sgi", ".rgb", ".rgba", ".bw", ".qoi",
    ".im",
)  # fmt: skip
#: Formats that Pillow has other programs decode, named in the error message.
PROGRAMS = ("EPS", "WMF")
#: Formats whose fourth channel is often padding: all zeros stand for an opaque image.
PADDED_FORMATS = ("BMP", "DIB", "TGA", "ICO")
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
BITS_PER_SAMPLE, PHOTOMETRIC, EXTRA_SAMPLES, ORIENTATION = 258, 262, 338, 274  # TIFF tags


def is_image_name(name: str | PathLike[str]) -> bool:
    """Return whether a file name ends like that of an image."""
    return str(name).lower().endswith(SUFFIXES)


def check_format(image: Image.Image) -> None:
    """Check that a file which is not decoded yet has one of the formats in `FORMATS`.

    Raises:
        ValueError: If it has not.
    """
    if isinstance(image, ImageFile.ImageFile) and image.tile and image.format not in FORMATS:
        if image.format in PROGRAMS:
            raise ValueError(f"{image.format} is run by another program; convert it to PNG first")
        raise ValueError(
            f"it is an opened {image.format} file; formats that are read: {', '.join(FORMATS)}. "
            "Decode it with image.load() first if you trust it"
        )


def orientation(image: Image.Image) -> int:
    """Return an image's EXIF orientation, 1 to 8; damaged EXIF data counts as 1."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow tolerates some errors when it opens a file, and raises them here
        return 1
    return value if value in TRANSPOSITIONS else 1


def turn(image: Image.Image, value: int) -> Image.Image:
    """Apply an EXIF orientation."""
    return image if value == 1 else image.transpose(TRANSPOSITIONS[value])


# --- pixels --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Encoding:
    """Sample format of a file, where Pillow ignores it.

    Attributes:
        bits: Bits per gray sample; 0 if it is unknown.
        inverted: Whether the file has zero for white and Pillow leaves it so.
        key: Transparent color in the scale of Pillow's pixels, or None.
        low_bytes: Lower halves of 16-bit colors with a transparent color, which Pillow drops.
        ignores_alpha: Whether the fourth channel is not alpha.
    """

    bits: int = 0
    inverted: bool = False
    key: Any = None
    low_bytes: np.ndarray | None = None
    ignores_alpha: bool = False


def to_rgb(image: Image.Image) -> Image.Image:
    """Decode an image to RGB in the orientation in which it is stored.

    Gray of any depth is scaled to 8 bits, and transparency is laid on white.

    Raises:
        ValueError: If it has no pixels or values out of range. Decoders raise other errors.
    """
    check_format(image)
    encoding = _encoding_of(image)
    image.load()
    if not image.width or not image.height:
        raise ValueError(
            f"an image must have pixels, got {image.width} x {image.height} (width x height)"
        )
    if image.mode == "La":
        image = image.convert("LA")  # the only conversion that Pillow has
    if image.mode.startswith(("I", "F")):
        rgb = _gray_to_8_bits(image, encoding).convert("RGB")
    elif image.has_transparency_data and encoding.key is None and not _is_padded(image, encoding):
        rgba = image.convert("RGBA")
        rgb = Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgba).convert("RGB")
    else:
        rgb = image.convert("RGB")
    if encoding.key is not None:
        rgb.paste("white", mask=Image.fromarray(_matches_key(image, encoding)))
    rgb.info.clear()  # with the EXIF orientation, which later steps would apply once more
    return rgb


def _is_padded(image: Image.Image, encoding: _Encoding) -> bool:
    """Return whether the fourth channel is padding rather than alpha."""
    if encoding.ignores_alpha:
        return True
    return (
        image.mode == "RGBA"
        and image.format in PADDED_FORMATS
        and image.getchannel("A").getextrema() == (0, 0)
    )


def _encoding_of(image: Image.Image) -> _Encoding:
    """Look up how a file that is not decoded yet stores its samples."""
    key = image.info.get("transparency")
    if image.format == "TIFF" and hasattr(image, "tag_v2"):
        return _tiff_encoding(image)
    if image.mode.startswith("I;16"):
        return _Encoding(16, key=key)
    if image.mode == "I":
        return _Encoding(16 if image.format else 0, key=key)
    if not isinstance(image, ImageFile.ImageFile) or not image.tile:
        return _Encoding()
    if image.format == "TGA" and image.mode == "RGBA":
        assert image.fp is not None
        image.fp.seek(17)
        # The lowest bits of this byte count the bits of alpha.
        return _Encoding(ignores_alpha=not image.fp.read(1)[0] & 0xF)
    if image.format != "PNG" or key is None:
        return _Encoding()
    mode = str(image.tile[0][3])
    if mode == "RGB;16B":
        return _Encoding(key=key, low_bytes=_low_bytes(image))
    scale = {"L;2": 85, "L;4": 17}.get(mode)
    return _Encoding(key=key * scale) if scale else _Encoding()


def _tiff_encoding(image: Any) -> _Encoding:
    tags = image.tag_v2
    bits = tags.get(BITS_PER_SAMPLE, (1,))
    if len(bits) == 4 and EXTRA_SAMPLES not in tags and image.mode == "RGBA":
        warnings.warn(
            f"{image.filename or 'a TIFF image'} has four bands and no ExtraSamples tag; the "
            "fourth is read as alpha and laid on white. If it is not alpha, store three bands",
            stacklevel=2,
        )
    wide = image.mode.startswith(("I", "F"))
    return _Encoding(bits[0], inverted=wide and tags.get(PHOTOMETRIC) == 0)


def _low_bytes(image: ImageFile.ImageFile) -> np.ndarray:
    """Decode the lower halves (H, W, 3) of a PNG's 16-bit colors; Pillow takes the upper ones."""
    assert image.fp is not None
    position = image.fp.tell()
    image.fp.seek(0)
    content = io.BytesIO(image.fp.read())
    image.fp.seek(position)
    with type(image)(content) as again:
        again.tile = [type(tile)(*tile[:3], "RGB;16L") for tile in again.tile]
        return np.asarray(again)


def _matches_key(image: Image.Image, encoding: _Encoding) -> np.ndarray:
    """Return a mask (H, W) of the pixels that have the transparent color."""
    values = np.asarray(image)
    if encoding.low_bytes is not None:
        values = values.astype(np.uint16) * 256 + encoding.low_bytes
    same = np.equal(values, encoding.key)
    return np.asarray(same if same.ndim == 2 else same.all(-1))


def _gray_to_8_bits(image: Image.Image, encoding: _Encoding) -> Image.Image:
    """Scale gray of more than 8 bits, and floats in 0..1, to 8 bits.

    Integers in memory or of 32 bits do not say their range: up to 255 they are taken as 8-bit gray,
    as Pillow does, and otherwise as 16-bit gray.
    """
    values = np.asarray(image)
    lowest, highest = values.min(), values.max()
    if image.mode == "F":
        check_floats(values, "an image of floats", "divide its values, or save it with 8 bits")
        white = 1.0
    else:
        if lowest < 0 or highest > 65_535:
            raise ValueError(
                f"an image of mode {image.mode} must hold 0..65535, not {lowest}..{highest}"
            )
        sure = 8 < encoding.bits <= 16
        white = 2**encoding.bits - 1 if sure else 255 if highest <= 255 else 65_535
    if encoding.inverted:
        values = white - values
    return Image.fromarray(scale_to_8_bits(values, white))


def check_floats(values: np.ndarray, what: str, remedy: str) -> None:
    """Check that pixels are finite numbers in 0..1.

    Raises:
        ValueError: If they are not.
    """
    lowest, highest = values.min(), values.max()
    if not (lowest >= 0 and highest <= 1):  # NaN compares false
        raise ValueError(f"{what} must lie in 0..1, not {lowest:g}..{highest:g}; {remedy}")


def scale_to_8_bits(values: np.ndarray, white: float) -> np.ndarray:
    """Scale 0..`white` to 0..255, rounding to the nearest integer."""
    if white == 255:
        return values.astype(np.uint8)
    if np.issubdtype(values.dtype, np.floating):
        return (values * 255).round().astype(np.uint8)
    wide = values.astype(np.uint32)  # half the memory of float64
    wide *= 255
    wide += int(white) // 2
    wide //= int(white)
    return wide.astype(np.uint8)
