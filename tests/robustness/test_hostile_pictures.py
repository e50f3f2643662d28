"""Pictures made to break what reads them: each is read exactly, or refused by its name."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from captum_clip_surgery.datasets import open_labels, open_rgb
from captum_clip_surgery.export._sources import open_source
from captum_clip_surgery.preprocessing import load_image
from tests._helpers.decoded import samples

PIXELS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def refused(path: Path, why: str = "") -> None:
    """By all that reads pictures, with the file's name."""
    with pytest.raises(ValueError, match=f"{path.name} cannot be read as an image: .*{why}"):
        load_image(path)
    with pytest.raises(ValueError, match=f"{path.name} cannot be read as "):
        open_rgb(path)
    with pytest.raises(ValueError, match=f"{path.name} cannot be read as labels"):
        open_labels(path)


def written(folder: Path, content: bytes, name: str = "x.png") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


# --- cut short -----------------------------------------------------------------------------------

KINDS = ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "ICO", "TGA", "DDS", "PCX"]
KINDS += ["SGI", "QOI", "IM", "MPO"]
SHARES = [0, 0.01, 0.05, 0.1, 0.3, 0.5, 0.9]


def encodes(kind: str) -> bool:
    Image.init()
    wanted = {"WEBP": "webp", "JPEG2000": "jpg_2000"}.get(kind)
    return kind in Image.SAVE and (wanted is None or bool(features.check(wanted)))


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("kind", KINDS)
def test_images_cut_short(tmp_path: Path, kind: str, share: float) -> None:
    if not encodes(kind):
        assert kind not in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM")  # Pillow's own
        return
    content = encoded(PICTURE, kind)
    refused(written(tmp_path, content[: int(len(content) * share)]))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_whole_images_are_read(tmp_path: Path, kind: str) -> None:
    assert (np.asarray(load_image(written(tmp_path, encoded(PICTURE, kind)))) == PIXELS).all()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF"])
def test_damaged_images_are_read_or_refused(tmp_path: Path, kind: str, seed: int) -> None:
    content = bytearray(encoded(PICTURE, kind))
    generator = np.random.default_rng(seed)
    for place in generator.integers(0, len(content), 8):
        content[place] = generator.integers(256)
    path = written(tmp_path, bytes(content))
    told = ""
    try:
        assert load_image(path).mode == "RGB"
    except ValueError as error:
        told = str(error)
    assert not told or "x.png cannot be read as an image" in told


# --- lies ----------------------------------------------------------------------------------------


def chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png(width: int, height: int, raw: bytes = b"", depth: int = 8, more: bytes = b"") -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, 2 if depth == 8 else 0, 0, 0, 0)
    parts = chunk(b"IHDR", head) + more + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


ROWS = b"\0" * 25 * 8
BOMB = "reduce the image, or raise PIL.Image.MAX_IMAGE_PIXELS"
UNKNOWN = "cannot identify image file"
LIES: dict[str, tuple[bytes, str]] = {
    "bomb of zeros": (png(20_000, 20_000, b"\0" * 2501 * 20_000, depth=1), BOMB),
    "png of 2^31 sides": (png(2**31 - 1, 2**31 - 1), BOMB),
    "gif of 65535 sides": (b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\x80\0\0" + bytes(6)
        + b"," + struct.pack("<HHHH", 0, 0, 65535, 65535) + b"\0\x02\x02L\x01\0;", BOMB),
    "bmp of 30000 sides": (b"BM" + struct.pack("<IHHI", 100, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, 30_000, 30_000, 1, 24, 0, 0, 0, 0, 0, 0), BOMB),
    "ppm of 30000 sides": (b"P6\n30000 30000\n255\n", BOMB),
    "psd of 70000 sides": (b"8BPS\0\x01" + bytes(6) + struct.pack(">HIIHH", 3, 70_000, 70_000, 8, 3)
        + bytes(20), BOMB),
    "png of no sides": (png(0, 0), UNKNOWN),
    "png without data": (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2,
        0, 0, 0)) + chunk(b"IEND", b""), "cannot load this image"),
    "text bomb": (png(8, 8, ROWS, more=chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(10**8)))),
        "Decompressed data too large"),
    "profile bomb": (png(8, 8, ROWS, more=chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(10**8)))),
        "Decompressed data too large"),
    "negative ppm": (b"P6\n-5 10\n255\n", UNKNOWN),
    "ppm of words": (b"P6\nabc 10\n255\n", "invalid literal"),
    "ppm of no levels": (b"P6\n4 4\n0\n" + bytes(48), "maxval must be greater than 0"),
    "floats of NaN": (b"Pf\n1 1\n-1.0\n" + struct.pack("<f", np.nan), "must lie in 0..1"),
    "floats of infinity": (b"Pf\n1 1\n-1.0\n" + struct.pack("<f", np.inf), "must lie in 0..1"),
    "floats of no scale": (b"Pf\n1 1\n0\n" + bytes(4), "scale must be finite"),
    "nothing": (b"", UNKNOWN),
    "zero bytes": (bytes(1000), UNKNOWN),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', UNKNOWN),
    "html": (b"<html><script>alert(1)</script>", UNKNOWN),
    "pdf": (b"%PDF-1.4\n", UNKNOWN),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(40), UNKNOWN),
    "a program in front": (b"MZ" + encoded(PICTURE, "PNG"), UNKNOWN),
    "an archive in front": (b"PK\x03\x04" + encoded(PICTURE, "PNG"), UNKNOWN),
    "a script like a gif": (b"GIF89a=1;alert(1)//", UNKNOWN),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"
        b"(%pipe%touch x) (w) file\n%%EOF\n", "EPS is run by another program"),
    "PostScript of Pillow's": (encoded(PICTURE, "EPS"), "EPS is run by another program"),
}  # fmt: skip


@pytest.mark.parametrize("kind", LIES)
def test_files_that_lie(tmp_path: Path, kind: str) -> None:
    content, why = LIES[kind]
    path = written(tmp_path, content)
    with pytest.raises(ValueError, match=f"x.png cannot be read as an image: .*{why}"):
        load_image(path)
    (piece,) = open_source(tmp_path).pieces
    (sample,) = samples(piece)
    assert sample.picture is None
    assert "cannot be read as an image" in sample.reason


TAILS = {
    "a zip": b"PK\x03\x04",
    "a script": b"<script>",
    "another picture": encoded(PICTURE, "PNG"),
}


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM"])
def test_what_stands_behind_a_image_counts_for_nothing(
    tmp_path: Path, kind: str, tail: str
) -> None:
    path = written(tmp_path, encoded(PICTURE, kind) + TAILS[tail])
    assert (np.asarray(load_image(path)) == PIXELS).all()


FRAMES = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_of_several_frames_the_first_is_taken(tmp_path: Path, kind: str) -> None:
    lossless = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(FRAMES[0], kind, save_all=True, append_images=FRAMES[1:], **lossless)
    found = np.asarray(load_image(written(tmp_path, content)))
    assert (found == [255, 0, 0]).all()


@pytest.mark.parametrize("size", [(1, 100_000), (100_000, 1)])
def test_images_of_one_line(tmp_path: Path, size: tuple[int, int]) -> None:
    path = written(tmp_path, encoded(Image.new("RGB", size, "red"), "PNG"))
    assert load_image(path).size == size


UPRIGHT = {
    1: PIXELS, 2: PIXELS[:, ::-1], 3: PIXELS[::-1, ::-1], 4: PIXELS[::-1],
    5: PIXELS.swapaxes(0, 1), 6: np.rot90(PIXELS, -1), 7: PIXELS[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90(PIXELS),
} | dict.fromkeys((0, 9, 255, 65_535), PIXELS)  # fmt: skip


@pytest.mark.parametrize("note", UPRIGHT)
def test_rotations_noted_in_exif(tmp_path: Path, note: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = note
    path = written(tmp_path, encoded(PICTURE, "PNG", exif=exif))
    assert (np.asarray(load_image(path)) == UPRIGHT[note]).all()


NOTES = {
    "cut": b"MM\0*" + b"\xff" * 40,
    "circle": b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x09\0\0\0\0\0\x08",
    "text": b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x02a\0\0\0\0\0\0\0",
    "head": b"ME\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0",
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("kind", NOTES)
def test_broken_notes_leave_a_image_as_it_lies(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, png(8, 8, ROWS, more=chunk(b"eXIf", NOTES[kind])))
    assert not np.asarray(load_image(path)).any()


@pytest.mark.parametrize("kind", NOTES)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_images_with_broken_notes_are_read_again(tmp_path: Path, kind: str, format: str) -> None:
    """As those are that a caller opened, or that were read before."""
    path = written(tmp_path, encoded(PICTURE, format, exif=b"Exif\0\0" + NOTES[kind]))
    plain = np.asarray(load_image(written(tmp_path, encoded(PICTURE, format), "plain.png")))
    with Image.open(path) as opened:
        for picture in (path, load_image(path), opened):
            assert (np.asarray(load_image(picture)) == plain).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_opened_images_that_are_cut_short(tmp_path: Path, kind: str) -> None:
    content = encoded(PICTURE, kind)
    path = written(tmp_path, content[: int(len(content) * 0.6)])
    try:
        opened = Image.open(path)
    except OSError:  # WebP is decoded at once
        return
    with opened, pytest.raises(ValueError, match="the image cannot be read: "):
        load_image(opened)


MODES: dict[str, tuple[int, int, int]] = {
    "1": (0, 0, 0), "L": (0, 0, 0), "P": (0, 0, 0), "RGB": (0, 0, 0), "RGBX": (0, 0, 0),
    "HSV": (0, 0, 0), "I": (0, 0, 0), "F": (0, 0, 0), "I;16": (0, 0, 0), "I;16B": (0, 0, 0),
    "CMYK": (255, 255, 255), "LA": (255, 255, 255), "PA": (255, 255, 255), "La": (255, 255, 255),
    "RGBA": (255, 255, 255), "RGBa": (255, 255, 255),
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_empty_images_of_every_mode(mode: str) -> None:
    """All zero is black, no ink is white, and what is transparent lies on white."""
    found = np.asarray(load_image(Image.new(mode, (4, 4))))
    assert (found == MODES[mode]).all()


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_images_without_pixels(size: tuple[int, int]) -> None:
    message = f"an image must have pixels, got {size[0]} x {size[1]}"
    with pytest.raises(ValueError, match=message):
        load_image(Image.new("RGB", size))


RANGE = "an image array of floats must lie in 0..1"
SHAPE = r"an image array must be \(H, W\)"
TYPE = "an image array must be uint8, uint16 or float, got "
ARRAYS: dict[str, tuple[np.ndarray, str]] = {
    "no rows": (np.zeros((0, 3)), SHAPE),
    "scalar": (np.zeros(()), SHAPE),
    "two channels": (np.zeros((3, 3, 2), np.uint8), SHAPE),
    "batch": (np.zeros((1, 3, 3, 3), np.uint8), SHAPE),
    "NaN": (np.full((3, 3), np.nan), RANGE),
    "infinity": (np.full((3, 3), np.inf), RANGE),
    "-infinity": (np.full((3, 3), -np.inf), RANGE),
    "above 1": (np.full((3, 3), 1.01), RANGE),
    "complex": (np.zeros((3, 3), complex), TYPE + "complex128"),
    "bool": (np.zeros((3, 3), bool), TYPE + "bool"),
    "int64": (np.zeros((3, 3), np.int64), TYPE + "int64"),
    "objects": (np.zeros((3, 3), object), TYPE + "object"),
    "texts": (np.zeros((3, 3), "U3"), TYPE + "<U3"),
    "times": (np.zeros((3, 3), "M8[s]"), TYPE + "datetime64"),
    "big-endian": (np.zeros((3, 3), ">u2"), TYPE + ">u2"),
    "records": (np.zeros((3, 3), [("a", "u1")]), TYPE),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_that_are_no_images(kind: str) -> None:
    array, message = ARRAYS[kind]
    with pytest.raises(ValueError, match=message):
        load_image(array)


@pytest.mark.parametrize("value", [1e-320, 5e-324, -0.0])
def test_denormals_are_black(value: float) -> None:
    assert not np.asarray(load_image(np.full((3, 3), value))).any()


@pytest.mark.parametrize(
    "path", ["", ".", "a\0b", "/dev/null", "/dev/zero", "~", "\ud800", "file:///x"]
)
def test_paths_that_are_no_files(path: str) -> None:
    with pytest.raises(FileNotFoundError, match="no image file at"):
        load_image(path)


@pytest.mark.parametrize("given", [None, 3, b"x.png", [], {}, object])
def test_things_that_are_no_images(given: Any) -> None:
    with pytest.raises(
        TypeError, match="an image must be a PIL image, a numpy array or a path, got"
    ):
        load_image(given)


def test_pipes_are_no_images(tmp_path: Path) -> None:
    """Opening one would wait for ever."""
    os.mkfifo(tmp_path / "x.png")
    for reader in (open_rgb, open_labels):
        with pytest.raises(ValueError, match=r"x\.png cannot be read as .*expected a file"):
            reader(tmp_path / "x.png")


def test_16_bits_are_rounded_to_8() -> None:
    values = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    found = np.asarray(load_image(values))[..., 0]
    assert (found == (values / 257).round()).all()
