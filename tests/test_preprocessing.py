"""Pictures of every kind to batches: against open_clip's own transform, and by definition."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor

from captum_clip_surgery import ZeroShotClassifier
from tests._helpers.cases import each
from tests._helpers.tiny import tiny_model

SIDE = 32  # of the tiny model, with patches of 8
MEAN, STD = (0.1, 0.3, 0.6), (0.2, 0.4, 0.5)  # nobody's defaults
COLOURS = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
GREY = COLOURS[..., 0]
ALPHA = COLOURS[..., 2]
# What PIL's own conversions round.
ONE_LEVEL = 1.01


def classifier(interpolation: str = "bicubic") -> ZeroShotClassifier:
    model = tiny_model("vit")
    model.visual.preprocess_cfg |= dict(mean=MEAN, std=STD, interpolation=interpolation)
    return ZeroShotClassifier(model, ["a dog"], templates=())


@pytest.fixture(scope="module")
def clip() -> ZeroShotClassifier:
    return classifier()


@pytest.fixture(scope="module", params=["bicubic", "bilinear"])
def interpolation(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def interpolating(interpolation: str) -> ZeroShotClassifier:
    return classifier(interpolation)


def theirs(
    image: Image.Image, resize_mode: str, interpolation: str, size: int | tuple[int, int] = SIDE
) -> Tensor:
    transform = open_clip.image_transform(
        size, False, MEAN, STD, resize_mode=resize_mode, interpolation=interpolation
    )
    return transform(image)[None]


def picture(width: int, height: int) -> Image.Image:
    """Noise on a slope: every pixel and every side matters."""
    generator = np.random.default_rng(width * 1000 + height)
    slope = np.linspace(0, 1, width)[None, :, None] * np.linspace(1, 0.3, height)[:, None, None]
    values = slope * [255, 200, 120] * generator.uniform(0.5, 1, (height, width, 3))
    return Image.fromarray(values.astype(np.uint8))


def levels(clip: ZeroShotClassifier, given: object, size: object = None) -> np.ndarray:
    """What the model is shown of a picture of its own size, as 0..255."""
    batch = clip.preprocess(given, size=size)
    return clip.unnormalize(batch)[0].permute(1, 2, 0).double().numpy() * 255


def stacked(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey.astype(float)[..., None], 3, axis=2)


def on_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha.astype(float)[..., None] / 255
    return colours * share + 255 * (1 - share)


# --- size ----------------------------------------------------------------------------------------

SIZES = [(64, 48), (48, 64), (32, 32), (33, 47), (301, 37), (32, 100), (5, 3), (1, 1), (7, 64)]


@each("size", SIZES)
@pytest.mark.parametrize(("crop", "resize_mode"), [(True, "shortest"), (False, "squash")])
def test_pixels_are_those_of_open_clip(interpolating, interpolation, size, crop, resize_mode):
    image = picture(*size)
    batch = interpolating.preprocess(image, crop=crop)
    expected = theirs(image, resize_mode, interpolation)
    assert batch.dtype == torch.float32
    torch.testing.assert_close(batch, expected, atol=1e-6, rtol=0)


def test_nearest():
    expected = np.kron(COLOURS[:16, :16], np.ones((2, 2, 1), dtype=np.uint8))
    np.testing.assert_allclose(
        levels(classifier("nearest"), Image.fromarray(COLOURS[:16, :16])), expected, atol=1e-3
    )


@each("size", SIZES)
@pytest.mark.parametrize("asked", [64, (24, 64), (64, 24)])
def test_other_sizes(clip, size, asked):
    image = picture(*size)
    height, width = (asked, asked) if isinstance(asked, int) else asked
    squashed = clip.preprocess(image, size=asked)
    assert squashed.shape == (1, 3, height, width)
    expected = theirs(image, "squash", "bicubic", (height, width))
    torch.testing.assert_close(squashed, expected, atol=1e-6, rtol=0)
    cropped = clip.preprocess(image, size=asked, crop=True)
    expected = theirs(image, "shortest", "bicubic", (height, width))
    torch.testing.assert_close(cropped, expected, atol=1e-6, rtol=0)


@each("size", [(500, 375), (64, 48), (33, 47), (32, 32), (5, 3)])
def test_fast_resizing_differs_by_a_level_at_most(interpolating, size):
    exact = interpolating.preprocessing
    for crop in (False, True):
        fast, slow = (
            interpolating.unnormalize(preprocess(picture(*size), crop=crop)) * 255
            for preprocess in (replace(exact, fast=True), exact)
        )
        assert (fast - slow).abs().max() < ONE_LEVEL
        assert ((fast - slow).abs() > 0.5).float().mean() < 0.05


def test_defaults_of_torch_change_nothing(clip):
    expected = clip.preprocess(COLOURS)
    torch.set_default_dtype(torch.bfloat16)
    torch.set_default_device("meta")
    try:
        assert torch.equal(clip.preprocess(COLOURS), expected)
        shown = clip.unnormalize(expected)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert torch.equal(shown, clip.unnormalize(expected))


def test_a_crop_keeps_the_middle_undistorted(clip):
    white = Image.new("RGB", (96, 32), "black")
    white.paste("white", (32, 0, 64, 32))
    assert clip.unnormalize(clip.preprocess(white, crop=True)).min() > 0.99
    squashed = clip.unnormalize(clip.preprocess(white))
    assert squashed[..., [2, -3]].max() < 0.01
    assert squashed[..., 16].min() > 0.99


# --- kinds of pictures ---------------------------------------------------------------------------


def paletted() -> tuple[Image.Image, np.ndarray]:
    """Sixteen colours by rows, their values known beforehand."""
    index = np.tile(np.arange(SIDE, dtype=np.uint8)[:, None] // 2, (1, SIDE))
    palette = COLOURS[0, :16]
    image = Image.frombytes("P", (SIDE, SIDE), index.tobytes())
    image.putpalette(palette.tobytes())
    return image, palette[index]


def see_through(image: Image.Image, key: object) -> Image.Image:
    image.info["transparency"] = key
    return image


MODES = {
    "RGB": (Image.fromarray(COLOURS), COLOURS),
    "L": (Image.fromarray(GREY), stacked(GREY)),
    "LA": (
        Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)]),
        on_white(stacked(GREY), ALPHA),
    ),
    "RGBA": (
        Image.fromarray(np.dstack([COLOURS, GREY])),
        on_white(COLOURS, GREY),
    ),
    "P": paletted(),
    "P, one transparent": (
        see_through(paletted()[0], 3),
        np.where(np.arange(SIDE)[:, None, None] // 2 == 3, 255, paletted()[1]),
    ),
    "P, alphas": (
        see_through(paletted()[0], bytes(range(0, 160, 10))),
        on_white(paletted()[1], np.tile(np.arange(SIDE)[:, None] // 2 * 10, (1, SIDE))),
    ),
    "L, one transparent": (
        see_through(Image.fromarray(GREY // 64 * 64), 64),
        stacked(np.where(GREY // 64 == 1, 255, GREY // 64 * 64)),
    ),
    "CMYK": (
        Image.frombytes("CMYK", (SIDE, SIDE), np.dstack([COLOURS, GREY]).tobytes()),
        (255.0 - COLOURS) * (255.0 - stacked(GREY)) / 255,
    ),
    "1": (Image.fromarray(GREY > 127), stacked(np.where(GREY > 127, 255, 0))),
    "I;16": (Image.fromarray(GREY.astype(np.uint16) * 257), stacked(GREY)),
    "I": (Image.fromarray(GREY.astype(np.int32) * 257), stacked(GREY)),
    "F": (Image.fromarray(GREY.astype(np.float32) / 255), stacked(GREY)),
}


@each("mode", MODES)
def test_modes(clip, tmp_path, mode):
    image, expected = MODES[mode]
    assert image.mode == mode.partition(",")[0]
    np.testing.assert_allclose(levels(clip, image), expected, atol=ONE_LEVEL)
    path = tmp_path / ("image.tiff" if mode in ("CMYK", "F", "I") else "image.png")
    image.save(path)
    with Image.open(path) as opened:
        assert opened.mode == image.mode  # the file holds what is meant to be tested
    np.testing.assert_allclose(levels(clip, path), expected, atol=ONE_LEVEL)


def test_ycbcr(clip):
    """By ITU-R BT.601, written out."""
    y, cb, cr = (COLOURS[..., i].astype(float) for i in range(3))
    red, blue = y + 1.402 * (cr - 128), y + 1.772 * (cb - 128)
    green = y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128)
    image = Image.frombytes("YCbCr", (SIDE, SIDE), COLOURS.tobytes())
    expected = np.dstack([red, green, blue]).clip(0, 255)
    np.testing.assert_allclose(levels(clip, image), expected, atol=1.5)


UPRIGHT = COLOURS[:24]
# How the file stores a picture that its orientation turns upright (EXIF 2.3, tag 0x0112).
STORED = {
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: np.rot90(x.swapaxes(0, 1), 2),
    8: lambda x: np.rot90(x, -1),
}


@each("orientation", STORED)
def test_exif_orientation_is_turned_upright(clip, tmp_path, orientation):
    image = Image.fromarray(np.ascontiguousarray(STORED[orientation](UPRIGHT)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_allclose(levels(clip, tmp_path / "turned.png", (24, 32)), UPRIGHT, atol=1e-3)
    with Image.open(tmp_path / "turned.png") as opened:
        np.testing.assert_allclose(levels(clip, opened, (24, 32)), UPRIGHT, atol=1e-3)
        assert opened.getexif()[0x0112] == orientation  # the caller's own stays as it is


ARRAYS = {
    "(H, W)": (GREY, stacked(GREY)),
    "(H, W, 1)": (GREY[..., None], stacked(GREY)),
    "(H, W, 3)": (COLOURS, COLOURS),
    "(H, W, 4)": (np.dstack([COLOURS, GREY]), on_white(COLOURS, GREY)),
    "a view": (COLOURS[::-1, ::-1], COLOURS[::-1, ::-1]),
}
DTYPES = {
    "uint8": lambda array: array,
    "uint16": lambda array: array.astype(np.uint16) * 257,
    "float16": lambda array: (array / 255).astype(np.float16),
    "float32": lambda array: (array / 255).astype(np.float32),
    "float64": lambda array: array / 255,
}


@each("dtype", DTYPES)
@pytest.mark.parametrize("shape", ARRAYS)
def test_arrays(clip, shape, dtype):
    array, expected = ARRAYS[shape]
    given = DTYPES[dtype](array)
    before = given.copy()
    np.testing.assert_allclose(levels(clip, given), expected, atol=ONE_LEVEL)
    np.testing.assert_array_equal(given, before)


@each("many", [list, tuple])
def test_one_or_many_of_any_kind(clip, tmp_path, many):
    Image.fromarray(COLOURS).save(tmp_path / "colours.png")
    path = tmp_path / "colours.png"
    batch = clip.preprocess(many([path, str(path), Image.fromarray(COLOURS), COLOURS, GREY]))
    assert batch.shape == (5, 3, SIDE, SIDE)
    for row in batch[:4]:
        assert torch.equal(row, batch[0])
    for index, one in enumerate([path, str(path), Image.fromarray(COLOURS), COLOURS, GREY]):
        assert torch.equal(clip.preprocess(one), batch[index : index + 1])
    assert torch.isfinite(clip(batch)).all()


def test_unnormalize_inverts(clip):
    images = torch.rand(2, 3, 5, 4, dtype=torch.float64)
    mean, std = (torch.tensor(x, dtype=torch.float64).reshape(3, 1, 1) for x in (MEAN, STD))
    torch.testing.assert_close(clip.unnormalize((images - mean) / std), images, atol=1e-6, rtol=0)
    assert torch.equal(clip.unnormalize(torch.full((3, 2, 2), 99.0)), torch.ones(3, 2, 2))
    assert torch.equal(clip.unnormalize(torch.full((3, 2, 2), -99.0)), torch.zeros(3, 2, 2))


# --- what is refused -----------------------------------------------------------------------------


def no_image(folder: Path) -> Path:
    (folder / "notes.txt").write_text("not an image")
    return folder / "notes.txt"


def half_an_image(folder: Path, suffix: str) -> Path:
    picture(200, 100).save(folder / f"whole.{suffix}")
    data = (folder / f"whole.{suffix}").read_bytes()
    (folder / f"half.{suffix}").write_bytes(data[: len(data) // 2])
    return folder / f"half.{suffix}"


def wide_pixels() -> Image.Image:
    return Image.fromarray(np.full((SIDE, SIDE), 70_000, dtype=np.int32))


REFUSED = {
    "missing": (lambda f: f / "a.png", FileNotFoundError, r"no image file at .*a\.png"),
    "missing in a list": (
        lambda f: [COLOURS, str(f / "b.png")],
        FileNotFoundError,
        r"no image file at .*b\.png",
    ),
    "folder": (lambda f: f, FileNotFoundError, "no image file at"),
    "no image": (no_image, ValueError, r"notes\.txt cannot be read as an image"),
    "truncated png": (
        lambda f: half_an_image(f, "png"),
        ValueError,
        r"half\.png cannot be read as an image: .*truncated",
    ),
    "truncated jpg": (
        lambda f: half_an_image(f, "jpg"),
        ValueError,
        r"half\.jpg cannot be read as an image: .*truncated",
    ),
    "NaN": (lambda f: np.full((8, 8), np.nan), ValueError, r"must lie in 0\.\.1"),
    "bright": (lambda f: COLOURS.astype(float), ValueError, r"use uint8 for 0\.\.255"),
    "negative": (lambda f: np.full((8, 8, 3), -0.1), ValueError, r"floats must lie in 0\.\.1"),
    "int64": (lambda f: COLOURS.astype(int), ValueError, "uint8, uint16 or float, got int64"),
    "bool": (lambda f: GREY > 9, ValueError, "uint8, uint16 or float, got bool"),
    "wide I": (lambda f: wide_pixels(), ValueError, r"mode I must hold 0\.\.65535, not 70000"),
    "two channels": (lambda f: COLOURS[..., :2], ValueError, r"got \(32, 32, 2\)"),
    "channels first": (lambda f: COLOURS.T, ValueError, r"\(H, W\), or .* got \(3, 32, 32\)"),
    "batch": (lambda f: COLOURS[None], ValueError, r"got \(1, 32, 32, 3\)"),
    "one row": (lambda f: GREY[0], ValueError, r"got \(32,\)"),
    "no pixels": (lambda f: COLOURS[:0], ValueError, r"got \(0, 32, 3\)"),
    "no images": (lambda f: [], ValueError, "no images to preprocess"),
    "tensor": (lambda f: torch.zeros(1, 3, 8, 8), TypeError, "got Tensor; .* no preprocessing"),
    "tensors": (lambda f: [torch.zeros(3, 8, 8)], TypeError, "got Tensor; .* no preprocessing"),
    "bytes": (lambda f: [b"png"], TypeError, "a PIL image, a numpy array or a path, got bytes"),
    "None": (lambda f: [None], TypeError, "a numpy array or a path, got NoneType"),
}


@each("kind", REFUSED)
def test_refused_images(clip, tmp_path, kind):
    make, error, message = REFUSED[kind]
    with pytest.raises(error, match=message):
        clip.preprocess(make(tmp_path))


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (30, r"30 x 30 pixels \(height x width\) do not divide .* 8 x 8; .* such as 32 x 32"),
        ((32, 44), "32 x 44 pixels .* do not divide into patches of 8 x 8; .* such as 32 x 48"),
        ((44, 32), "44 x 32 pixels .* such as 48 x 32"),
        (0, "size 0 must be positive"),
        ((32, -8), r"size \(32, -8\) must be positive"),
    ],
)
@each("crop", [False, True])
def test_refused_sizes(clip, size, message, crop):
    with pytest.raises(ValueError, match=message):
        clip.preprocess(COLOURS, size=size, crop=crop)
