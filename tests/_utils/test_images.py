"""Image files as they are stored in the wild, against the samples that they hold."""

from __future__ import annotations

import builtins
import io
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captum_clip_surgery._utils.images import FORMATS, SUFFIXES
from captum_clip_surgery.app._images import read_image as read_upload
from captum_clip_surgery.datasets import open_labels, open_rgb
from captum_clip_surgery.preprocessing import load_image, open_image, read_image
from tests._helpers.cases import each
from tests._helpers.written_images import bmp, png, tga, tiff

DATA = Path(__file__).parents[1] / "data" / "images"
RAMP = np.linspace(0, 255, 24)


def read(content: bytes) -> np.ndarray:
    """Pixels (W, 3) of a file's only row."""
    return np.asarray(read_image(io.BytesIO(content), "x"))[0]


def gray(content: bytes) -> list[int]:
    return read(content)[:, 0].tolist()


@each("file", ["t12.tif", "t16.tif", "t8_white0.tif"])
def test_ramps_of_any_depth(file: str) -> None:
    expected = RAMP[::-1] if "white0" in file else RAMP
    for image in (load_image(DATA / file), open_rgb(DATA / file)):
        np.testing.assert_allclose(np.asarray(image)[0, :, 0], expected, atol=1)


WHITE_IS_ZERO = {
    "16 bits": (tiff(3, 16, struct.pack("<3H", 0, 0x8000, 0xFFFF), 0), [255, 127, 0]),
    "16 bits, deflated": (tiff(2, 16, struct.pack("<2H", 0, 0xFFFF), 0, deflated=True), [255, 0]),
    "8 bits, deflated": (tiff(3, 8, bytes([0, 100, 255]), 0, deflated=True), [255, 155, 0]),
    "4 bits": (tiff(2, 4, bytes([0x0F]), 0), [255, 0]),
    "1 bit": (tiff(8, 1, bytes([0x0F]), 0), [255] * 4 + [0] * 4),
    "floats": (tiff(3, 32, struct.pack("<3f", 0, 0.2, 1), 0, sample_format=3), [255, 204, 0]),
}


@each("kind", WHITE_IS_ZERO)
def test_tiff_whose_zero_is_white(kind: str) -> None:
    content, expected = WHITE_IS_ZERO[kind]
    assert gray(content) == expected


def test_integers_that_do_not_say_their_range() -> None:
    for values, expected in (((0, 100, 255), [0, 100, 255]), ((0, 257, 65_535), [0, 1, 255])):
        in_memory = Image.fromarray(np.array([values], np.int32))
        assert np.asarray(load_image(in_memory))[0, :, 0].tolist() == expected
        assert gray(tiff(3, 32, struct.pack("<3I", *values))) == expected
    dark = Image.fromarray(np.array([[0, 255]], np.uint16))
    assert np.asarray(load_image(dark))[0, :, 0].tolist() == [0, 1]  # 16 bits do say it
    assert gray(b"P5 2 1 65535\n" + struct.pack(">2H", 0, 255)) == [0, 1]


KEYS = {
    "16 bits": (png(3, 1, 16, 0, b"\0" + struct.pack(">3H", 20_000, 20_001, 0), [20_000]),
        [255, 78, 0]),
    "4 bits": (png(4, 1, 4, 0, b"\0\x10\x2f", [1]), [255, 0, 34, 255]),
    "2 bits": (png(4, 1, 2, 0, b"\0\x1b", [2]), [0, 85, 255, 255]),
    "1 bit": (png(4, 1, 1, 0, b"\0\x50", [0]), [255] * 4),
    "16 bits of colors": (
        # The second differs from the key in its last bit only.
        png(3, 1, 16, 2, b"\0" + struct.pack(">9H", *[0x1234] * 5, 0x1235, 0x4000, 0, 0),
            [0x1234] * 3), [255, 0x12, 0x40]),
}  # fmt: skip


@each("kind", KEYS)
def test_transparent_colors_of_png_lie_on_white(kind: str) -> None:
    content, expected = KEYS[kind]
    assert gray(content) == expected
    with Image.open(io.BytesIO(content)) as opened:
        assert np.asarray(load_image(opened))[0, :, 0].tolist() == expected


@each("bits", [8, 16])
def test_transparent_colors_of_real_files(bits: int) -> None:
    pixels = np.asarray(load_image(DATA / f"grey{bits}_trns.png"))
    assert (pixels[:, :8] == 255).all()
    np.testing.assert_allclose(pixels[0, 8:, 0], RAMP[8:], atol=1)


COLORS = [(3, 2, 1), (6, 5, 4)]
ON_WHITE = [(255, 255, 255), (6, 5, 4)]


@pytest.mark.parametrize(
    ("fourth", "alpha_said", "expected"),
    [((0, 0), True, COLORS), ((0, 255), True, ON_WHITE), ((0, 255), False, COLORS)],
)
def test_fourth_channels_of_bmp_and_tga(
    fourth: tuple[int, int], alpha_said: bool, expected: list[tuple[int, ...]]
) -> None:
    pixels = [(*color, value) for color, value in zip(COLORS, fourth, strict=True)]
    for content in (bmp(pixels, alpha_said), tga(pixels, 8 * alpha_said)):
        assert [tuple(pixel) for pixel in read(content).tolist()] == expected


def test_a_bmp_without_alpha_is_opaque() -> None:
    pixels = np.asarray(load_image(DATA / "bmp32_rgb_a0.bmp"))
    assert len(np.unique(pixels)) > 10
    assert pixels.min() < 100


def test_four_bands_of_tiff_are_said_to_be_taken_as_alpha() -> None:
    content = tiff(2, 8, bytes([1, 2, 3, 0, 6, 5, 4, 255]), photometric=2, bands=4)
    with pytest.warns(UserWarning, match="four bands and no ExtraSamples.* read as alpha"):
        assert [tuple(pixel) for pixel in read(content).tolist()] == ON_WHITE


def test_orientations_and_first_frames_of_real_files() -> None:
    with Image.open(DATA / "exif3.jpg") as stored:
        expected = np.asarray(stored.convert("RGB"))[::-1, ::-1]
    np.testing.assert_array_equal(np.asarray(load_image(DATA / "exif3.jpg")), expected)
    np.testing.assert_array_equal(np.asarray(open_rgb(DATA / "exif3.jpg")), expected[::-1, ::-1])
    assert load_image(DATA / "a.mpo").size == (64, 48)


def test_every_format_has_a_suffix() -> None:
    """A folder must not pass over what is read when it is named."""
    Image.init()
    named = {s for s, kind in Image.registered_extensions().items() if kind in FORMATS}
    assert named - set(SUFFIXES) == set()


def test_files_that_cannot_be_read_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    floats = tiff(3, 32, struct.pack("<3f", 0, 100, 255), sample_format=3)
    with pytest.raises(ValueError, match=r"in 0\.\.1, not 0\.\.255; .* save it with 8 bits"):
        read(floats)
    with pytest.raises(ValueError, match="JPEG XL is not read; convert it"):
        read(b"\xff\x0a" + bytes(20))
    with pytest.raises(ValueError, match=r"cannot identify image file; formats that are read: PNG"):
        read(b"no picture at all")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    image = Image.new("L", (12, 10))
    image.save(tmp_path / "large.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_image(tmp_path / "large.png")
    image.resize((30, 10)).save(tmp_path / "larger.png")
    with pytest.raises(ValueError, match=r"it has 300 pixels, the limit is 200; reduce"):
        load_image(tmp_path / "larger.png")


def test_heic_is_read_where_pillow_heif_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heif = pytest.importorskip("pillow_heif")
    path = tmp_path / "photo.heic"
    heif.from_pillow(Image.new("RGB", (64, 48), "teal")).save(path, quality=-1)
    image = load_image(path)
    assert image.size == (64, 48)
    assert read_upload(path.read_bytes(), "photo.heic").pixels.size == (64, 48)
    np.testing.assert_allclose(image.getpixel((5, 5)), (0, 128, 128), atol=2)
    # Without the library.
    monkeypatch.delitem(Image.OPEN, "HEIF")
    importing = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("pillow_heif"):
            raise ImportError(name)
        return importing(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr("importlib.import_module", without)
    with pytest.raises(ValueError, match=r"photo\.heic .*install .*captum_clip_surgery\[heif\]"):
        load_image(path)
    with pytest.raises(ValueError, match=r"as an image; .*captum_clip_surgery\[heif\]"):
        read_upload(path.read_bytes(), "photo.heic")
    assert path.suffix in SUFFIXES


def test_draft_keeps_the_size_that_is_asked_for() -> None:
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (64, 32), "red").save(stream, "JPEG", exif=exif)
    image = read_image(stream, "x", at_least=(8, 16))
    assert (image.size, image.info["original_size"]) == ((8, 16), (32, 64))
    assert read_image(stream, "x", at_least=(9, 16)).size == (16, 32)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (png(4, 1, 2, 0, b"\0\x1b"), [0, 1, 2, 3]),
        (png(4, 1, 4, 0, b"\0\x10\x2f"), [1, 0, 2, 15]),
        (tiff(2, 4, bytes([0x1F]), 0), [1, 15]),
        (tiff(3, 8, bytes([0, 1, 255]), 0), [0, 1, 255]),
        (tiff(3, 16, struct.pack("<3H", 0, 1, 300), 0), [0, 1, 300]),
        (tiff(4, 1, bytes([0x50]), 0), [0, 1, 0, 1]),
    ],
)
def test_labels_are_the_stored_values(tmp_path: Path, content: bytes, expected: list[int]) -> None:
    (tmp_path / "x.png").write_bytes(content)
    assert open_labels(tmp_path / "x.png")[0].tolist() == expected


def test_labels_in_a_format_that_changes_them_are_refused(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "x.png", "JPEG")
    with pytest.raises(ValueError, match=r"x\.png cannot be read as labels: .*PNG, TIFF"):
        open_labels(tmp_path / "x.png")
    with open_image(tmp_path / "x.png") as image:
        assert image.format == "JPEG"
