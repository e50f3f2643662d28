"""One map over one image: compared with Captum's own figures where there are any."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from captum.attr import visualization as captum
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from captum_clip_surgery.visualization import (
    overlay,
    save_figure,
    show,
    visualize_attribution,
    winner_figure,
)
from captum_clip_surgery.visualization._attribution import show_map
from captum_clip_surgery.visualization._images import MAX_PIXELS
from captum_clip_surgery.visualization._labels import label_color
from captum_clip_surgery.visualization._scales import COLORS, SIGNS, ScaledMap, as_map, limits_for
from captum_clip_surgery.visualization._views import VIEWS
from tests._helpers.cases import each
from tests._helpers.tiny import quick_on

GENERATOR = np.random.default_rng(0)
IMAGE = GENERATOR.integers(0, 256, (40, 60, 3), dtype=np.uint8)
ATTRIBUTION = GENERATOR.standard_normal((40, 60)) ** 3
CAPTUM_SIGNS = [sign for sign in SIGNS if sign != "range"]


def last(figure: Figure) -> np.ndarray:
    """The pixels or values on top."""
    return np.asarray(figure.axes[0].images[-1].get_array())


@each("outlier_perc", [0, 2, 30])
@pytest.mark.parametrize("sign", CAPTUM_SIGNS)
def test_maps_are_normalized_as_captum_does(sign: str, outlier_perc: float) -> None:
    _, axis = captum.visualize_image_attr(
        ATTRIBUTION, sign=sign, outlier_perc=outlier_perc + 1e-9, use_pyplot=False
    )
    expected = np.asarray(axis.images[0].get_array())
    limits = limits_for(ATTRIBUTION, sign, outlier_perc + 1e-9, None)
    scaled = ScaledMap.of(ATTRIBUTION, sign, limits)
    np.testing.assert_allclose(scaled.strengths(), expected, atol=1e-12)
    assert expected.std() > 0.05
    figure, _ = visualize_attribution(
        ATTRIBUTION, method="heat_map", sign=sign, outlier_perc=outlier_perc + 1e-9
    )
    image = figure.axes[0].images[0]
    # In the attribution's own units: the limit is where Captum's normalized value is 1.
    unit = max(np.abs(image.get_clim()))
    part = np.clip(np.asarray(image.get_array()) / unit, -1, 1)
    np.testing.assert_allclose(-part if sign == "negative" else part, expected, atol=1e-12)


@pytest.mark.parametrize("method", ["masked_image", "alpha_scaling"])
@each("sign", ["positive", "negative", "absolute_value"])
def test_views_of_one_sign_are_captums(method: str, sign: str) -> None:
    _, axis = captum.visualize_image_attr(ATTRIBUTION, IMAGE, method, sign, use_pyplot=False)
    ours = last(visualize_attribution(ATTRIBUTION, IMAGE, method, sign)[0])
    theirs = np.asarray(axis.images[0].get_array())
    np.testing.assert_allclose(ours, theirs, atol=1)


def test_the_original_image_and_the_blend() -> None:
    original, _ = visualize_attribution(ATTRIBUTION, IMAGE, "original_image")
    np.testing.assert_array_equal(last(original), IMAGE)
    blend, _ = visualize_attribution(ATTRIBUTION, IMAGE, alpha_overlay=0.4)
    under, over = blend.axes[0].images
    assert over.get_alpha() == 0.4
    gray = np.asarray(under.get_array())
    assert under.get_cmap().name == "gray"
    pale = 255 * 0.25 + 0.75 * IMAGE.mean(-1)
    np.testing.assert_allclose(under.norm(gray) * 255, pale, atol=1)  # Captum's are whole bytes


SHAPES = [(4, 6), (1, 4, 6), (1, 1, 4, 6), (3, 40, 60), (1, 3, 40, 60)]


@each("shape", SHAPES)
@pytest.mark.parametrize("tensor", [True, False])
def test_attributions_of_any_shape(shape: tuple[int, ...], tensor: bool) -> None:
    values = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    given = values if tensor else values.detach().numpy()
    shown = last(visualize_attribution(given, Image.fromarray(IMAGE))[0])
    summed = values.detach().reshape(-1, *shape[-2:]).sum(0)
    expected = torch.nn.functional.interpolate(summed[None, None], (40, 60), mode="bilinear")
    np.testing.assert_allclose(shown, expected[0, 0].numpy(), atol=1e-6)


def test_attributions_of_captums_shape() -> None:
    """Its functions take channels last, as they come out of `np.transpose(..., (1, 2, 0))`."""
    values = GENERATOR.standard_normal((40, 60, 3))
    for given in (values, values[..., :1]):
        shown = last(visualize_attribution(given, IMAGE)[0])
        np.testing.assert_allclose(shown, given.sum(-1), atol=1e-12)


@each("sign", SIGNS)
def test_overlay_is_what_the_figure_shows_pixel_for_pixel(sign: str) -> None:
    figure = Figure(figsize=(0.6, 0.4), dpi=100)
    axis = figure.add_axes((0, 0, 1, 1))
    coarse = ATTRIBUTION[::8, ::6]
    visualize_attribution(coarse, IMAGE, sign=sign, alpha_overlay=0.6, axis=axis)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    drawn = np.asarray(Image.open(buffer).convert("RGB")).astype(int)
    found = overlay(coarse, Image.fromarray(IMAGE), sign, alpha_overlay=0.6)
    assert found.dtype == np.uint8
    assert np.abs(found - drawn).max() <= 3
    assert found.std() > 20


def test_overlay_of_a_map_of_any_size_and_of_nothing(tmp_path: Path) -> None:
    large = np.zeros((2 * MAX_PIXELS + 100, 30, 3), np.uint8)
    drawn = overlay(torch.eye(4)[None, None], large)
    assert drawn.shape == large.shape
    assert tuple(drawn[0, 0]) != tuple(drawn[-1, 0])
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    empty = overlay(np.zeros((4, 6)), tmp_path / "a.png")
    np.testing.assert_allclose(empty[..., 0], 255 * 0.25 + 0.75 * IMAGE.mean(-1), atol=1)
    low, high = (overlay(np.eye(2), IMAGE, scale=(0, top)) for top in (1, 100))
    assert low.max() > high.max()


def test_show_opens_a_figure_with_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib import pyplot as plt

    monkeypatch.setattr(plt, "show", lambda: None)
    plt.close("all")
    show(ATTRIBUTION, IMAGE, title="a dog")
    axis, bar = plt.gcf().axes
    assert axis.get_title() == "a dog"
    assert axis.images[-1].get_cmap().name == COLORS["all"]
    assert bar.get_ylim() == pytest.approx(axis.images[-1].get_clim())
    plt.close("all")


@each(
    ("given", "error", "message"),
    [
        (torch.zeros(2, 4, 6), ValueError, r"shape \(2, 4, 6\), expected \(h, w\)"),
        (torch.zeros(2, 1, 4, 6), ValueError, "one map"),
        (np.zeros((4, 6, 2)), ValueError, r"shape \(4, 6, 2\), expected .*\(H, W, 3\): one map"),
        (np.zeros((0, 6)), ValueError, r"shape \(0, 6\)"),
        (np.zeros((4, 6), complex), TypeError, "real numbers, got complex128"),
        ([[1.0]], TypeError, "a tensor or an array of real numbers, got list"),
        (torch.tensor([[1.0, torch.nan]]), ValueError, "NaN or infinity at 1 of 2 places"),
        (torch.tensor([[1.0, -torch.inf]]), ValueError, "NaN or infinity"),
    ],
)
def test_what_is_no_map_is_refused(given: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        visualize_attribution(given, IMAGE)  # type: ignore[arg-type]


@each(
    ("options", "message"),
    [
        ({"method": "heatmap"}, "method must be one of heat_map, blended.*, got 'heatmap'"),
        ({"sign": "both"}, "sign must be one of all, .*, got 'both'"),
        ({"method": "mask"}, "'mask' cannot show two signs; use sign=positive"),
        ({"image": None}, "needs an image; pass one, or method='heat_map'"),
        ({"outlier_perc": 100}, "outlier_perc must be from 0 to below 100, got 100"),
        ({"alpha_overlay": 1.5}, r"alpha_overlay must be in 0\.\.1, got 1.5"),
        ({"threshold": -1}, r"threshold must be in 0\.\.1, got -1"),
        ({"scale": 0}, "scale of sign 'all' must be one number above 0, got 0"),
        ({"scale": (0, 1)}, r"scale of sign 'all' must be one number above 0, got \(0, 1\)"),
        ({"scale": 1, "sign": "range"}, r"scale of sign 'range' must be \(low, high\) .*, got 1"),
        ({"method": "contour", "show_colorbar": True}, "got 'contour', which has no colors"),
        ({"axis": Figure().subplots(), "width": 3}, "width is for new figures, got width=3"),
        ({"width": 0}, "width must be inches above 0 .*, got 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        visualize_attribution(ATTRIBUTION, **({"image": IMAGE} | options))  # type: ignore[arg-type]


MAPS = {
    "all zero": np.zeros((4, 6)),
    "above": np.abs(ATTRIBUTION) + 1,
    "below": -np.abs(ATTRIBUTION) - 1,
    "constant": np.full((4, 6), 0.3),
    "huge": 1e38 * np.float32(ATTRIBUTION / np.abs(ATTRIBUTION).max()),
    "tiny": 1e-300 * ATTRIBUTION,
    "one pixel": np.ones((1, 1)),
}


@pytest.mark.parametrize("name", quick_on(("constant", "huge", "one pixel"), MAPS))
def test_any_finite_map_draws_in_any_view_without_a_warning(name: str) -> None:
    figure = Figure(figsize=(7, 5), dpi=40)
    axes = figure.subplots(len(SIGNS), len(VIEWS))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for line, sign in zip(axes, SIGNS, strict=True):
            for axis, method in zip(line, VIEWS, strict=True):
                if sign == "all" and method in ("masked_image", "alpha_scaling", "mask"):
                    continue
                visualize_attribution(MAPS[name], IMAGE, method, sign, axis=axis)
                assert axis.images
                for image in axis.images:
                    assert np.isfinite(np.asarray(image.get_array())).all()
        figure.savefig(io.BytesIO())


@pytest.mark.parametrize("name", ["huge", "tiny"])
def test_maps_of_any_magnitude_have_the_same_colors(name: str) -> None:
    def pixels(attribution: np.ndarray) -> np.ndarray:
        figure, _ = visualize_attribution(attribution, IMAGE, width=2)
        written = io.BytesIO()
        figure.savefig(written, dpi=50)
        return np.asarray(Image.open(written).convert("RGB")).astype(int)

    np.testing.assert_allclose(pixels(MAPS[name]), pixels(ATTRIBUTION), atol=2)


@each(
    ("name", "sign", "note"),
    [
        ("all zero", "all", "all zero"),
        ("below", "positive", "nothing above zero"),
        ("above", "negative", "nothing below zero"),
        ("above", "all", ""),
        ("constant", "positive", "the same everywhere"),
    ],
)
def test_empty_maps_say_so_below_the_image(name: str, sign: str, note: str) -> None:
    figure, _ = visualize_attribution(MAPS[name], IMAGE, sign=sign, show_colorbar=True)
    assert figure.axes[0].get_xlabel() == note
    empty = note.startswith(("all", "nothing"))
    assert len(figure.axes[0].images) == (1 if empty else 2)
    assert len(figure.axes) == (1 if empty else 2)  # nothing for a bar to explain


def test_scales_bars_titles_and_axes() -> None:
    figure, _ = visualize_attribution(ATTRIBUTION, IMAGE, scale=3, show_colorbar=True, title="$x")
    axis, bar = figure.axes
    assert axis.images[1].get_clim() == (-3, 3)
    assert bar.get_ylim() == (-3, 3)
    assert axis.get_title() == "$x"
    ranged, _ = visualize_attribution(ATTRIBUTION, IMAGE, sign="range", scale=(-1, 2))
    assert ranged.axes[0].images[1].get_clim() == (-1, 2)
    colored, _ = visualize_attribution(ATTRIBUTION, IMAGE, cmap="PuOr")
    assert colored.axes[0].images[1].get_cmap().name == "PuOr"
    mine = Figure()
    axes = mine.subplots(1, 2)
    assert visualize_attribution(ATTRIBUTION, IMAGE, axis=axes[1]) == (mine, axes[1])
    assert not axes[0].images
    assert len(axes[1].images) == 2


@pytest.mark.parametrize("pixels", [IMAGE, IMAGE // 255], ids=["usual", "nearly black"])
def test_a_weak_map_on_a_given_scale_stays_weak_in_every_view(pixels: np.ndarray) -> None:
    """Captum alone would stretch it to its own strongest value."""
    ramp = np.tile(np.linspace(0, 1, 60), (40, 1))
    masked = last(visualize_attribution(ramp, pixels, "masked_image", "positive", scale=4)[0])
    np.testing.assert_allclose(masked, pixels * ramp[..., None] / 4, atol=2)  # cut off twice
    figure, _ = visualize_attribution(ramp, pixels, "alpha_scaling", "positive", scale=4)
    opacity = figure.axes[0].images[0].get_alpha()
    np.testing.assert_allclose(last(figure)[..., 3] * opacity, 255 * ramp / 4, atol=1)
    np.testing.assert_allclose(last(figure)[..., :3], pixels, atol=1)


def test_the_mask_shows_the_image_where_the_map_is_strong() -> None:
    ramp = np.tile(np.linspace(0, 1, 60), (40, 1))
    figure, _ = visualize_attribution(ramp, IMAGE, "mask", "positive", 0, threshold=0.75)
    shown = last(figure)
    inside = ramp >= 0.75
    np.testing.assert_allclose(shown[inside], IMAGE[inside] / 255)
    assert np.ptp(shown[~inside], axis=-1).max() < 1e-12
    (outline,) = figure.axes[0].collections
    points = np.concatenate([path.vertices for path in outline.get_paths()])
    np.testing.assert_allclose(points[:, 0], np.argmax(inside[0]) - 0.5)


def test_contours_run_where_the_map_has_their_values() -> None:
    ramp = np.tile(np.linspace(-1, 1, 60), (40, 1))
    figure, _ = visualize_attribution(ramp, IMAGE, "contour", outlier_perc=0)
    below, above = figure.axes[0].collections
    for lines, sign in ((below, -1), (above, 1)):
        found = [path.vertices[:, 0].mean() for path in lines.get_paths()]
        expected = [29.5 + sign * level * 29.5 for level in (0.25, 0.5, 0.75)]
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert to_rgb(below.get_edgecolor()[0]) != to_rgb(above.get_edgecolor()[0])
    assert below.get_linestyle()[0][1] is not None  # dashed, for greyscale prints
    assert above.get_linestyle()[0][1] is None


def test_maps_keep_the_coordinates_of_a_image_that_is_shrunk() -> None:
    large = np.zeros((2 * MAX_PIXELS + 1, 3 * MAX_PIXELS, 3), np.uint8)
    for method in ("blended_heat_map", "heat_map", "mask", "masked_image"):
        axis = Figure().subplots()
        visualize_attribution(ATTRIBUTION, large, method, "positive", axis=axis)
        for image in axis.images:
            assert image.get_extent() == [-0.5, 3 * MAX_PIXELS - 0.5, 2 * MAX_PIXELS + 0.5, -0.5]
            assert max(image.get_array().shape) < 2 * MAX_PIXELS
    axis = Figure().subplots()
    show_map(axis, large, np.zeros((2, 2)))
    assert axis.images[0].get_extent()[1] == 3 * MAX_PIXELS - 0.5


def test_images_from_files(tmp_path: Path) -> None:
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    figure, _ = visualize_attribution(ATTRIBUTION, tmp_path / "a.png", "original_image")
    np.testing.assert_array_equal(last(figure), IMAGE)


def test_as_map_leaves_what_it_is_given() -> None:
    given = ATTRIBUTION.copy()
    visualize_attribution(given, IMAGE, sign="positive")
    np.testing.assert_array_equal(given, ATTRIBUTION)
    assert as_map(given).dtype == np.float64


# --- winners -------------------------------------------------------------------------------------


def test_the_winner_is_the_highest_enlarged_map() -> None:
    maps = torch.randn(3, 4, 6, dtype=torch.float64)
    figure = winner_figure(IMAGE, maps, ["dog", "cat", "owl"])
    enlarged = torch.nn.functional.interpolate(maps[None], (40, 60), mode="bilinear")[0]
    overlay = np.asarray(figure.axes[1].images[1].get_array())
    best = enlarged.argmax(0).numpy()
    for index in range(3):
        np.testing.assert_allclose(
            overlay[best == index][:, :3], [label_color(index)] * (best == index).sum(), atol=1e-6
        )
    shares = {name: (best == i).mean() for i, name in enumerate(["dog", "cat", "owl"])}
    legend = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    order = sorted(shares, key=lambda name: -shares[name])
    assert legend == [f"{name}  {shares[name]:.1%}" for name in order]


def test_nobody_wins_below_the_threshold() -> None:
    maps = torch.tensor([[[1.0, 0.0]], [[0.0, 0.2]]])
    figure = winner_figure(np.zeros((8, 2, 3)), maps, ["dog", "cat"], threshold=0.5)
    legend = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert legend == ["dog  50.0%", "cat  0.0%", "no text  50.0%"]
    overlay = np.asarray(figure.axes[1].images[1].get_array())
    assert (overlay[:, 0, 3] > 0).all()
    assert (overlay[:, 1, 3] == 0).all()


def test_winners_among_maps_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 4, 6\), expected \(1, h, w\), one per text"):
        winner_figure(IMAGE, torch.zeros(2, 4, 6), ["dog"])
    with pytest.raises(ValueError, match="NaN or infinity at 24 of 24 places"):
        winner_figure(IMAGE, torch.full((1, 4, 6), torch.nan), ["dog"])


# --- colors -------------------------------------------------------------------------------------

# Machado, Oliveira and Fernandes, "A Physiologically-based Model for Simulation of Color Vision
# Deficiency" (2009), at full severity, on linear RGB.
DEFICIENT = {
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colors: np.ndarray, deficiency: str | None = None) -> np.ndarray:
    """CIELAB under D65 of sRGB (N, 3), as a reader with a deficiency sees it."""
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    if deficiency:
        linear = np.clip(linear @ np.array(DEFICIENT[deficiency]).T, 0, 1)
    xyz = linear @ TO_XYZ.T / TO_XYZ.sum(1)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.stack(
        [116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1
    )


def ramp_of(sign: str, count: int = 33) -> np.ndarray:
    return np.asarray(colormaps[COLORS[sign]](np.linspace(0, 1, count)))[:, :3]


def test_lab_is_cielab() -> None:
    red, white = lab(np.array([[1.0, 0, 0], [1, 1, 1]]))
    np.testing.assert_allclose(red, [53.24, 80.09, 67.20], atol=0.1)
    np.testing.assert_allclose(white, [100, 0, 0], atol=0.1)


@each("deficiency", [None, *DEFICIENT])
@each("sign", ["positive", "negative", "absolute_value", "range"])
def test_sequential_colors_grow_lighter_with_strength(sign: str, deficiency: str | None) -> None:
    lightness = lab(ramp_of(sign), deficiency)[:, 0]
    steps = np.diff(lightness[::-1] if sign == "negative" else lightness)
    assert steps.min() > 0
    assert steps.sum() > 60


@each("deficiency", [None, *DEFICIENT])
def test_diverging_colors_tell_signs_and_strengths_apart(deficiency: str | None) -> None:
    found = lab(ramp_of("all"), deficiency)
    middle = len(found) // 2
    assert np.diff(found[: middle + 1, 0]).min() > 0  # darker on either side
    assert np.diff(found[middle:, 0]).max() < 0
    for distance in range(4, middle + 1):
        apart = np.linalg.norm(found[middle - distance] - found[middle + distance])
        assert apart > 20


@each("deficiency", [None, "protanopia", "deuteranopia"])
def test_hues_of_texts_are_told_apart(deficiency: str | None) -> None:
    assert len({label_color(index) for index in range(256)}) == 256
    found = lab(np.array([label_color(index) for index in range(7)]), deficiency)
    apart = np.linalg.norm(found[:, None] - found[None], axis=-1)
    assert apart[~np.eye(7, dtype=bool)].min() > 10


def test_texts_that_xml_cannot_hold(tmp_path):
    figure, _ = visualize_attribution(np.eye(4), method="heat_map", title="a\x00b\x1bc")
    path = save_figure(figure, tmp_path / "map.svg")
    texts = "".join(ElementTree.parse(path).getroot().itertext())
    assert "a\ufffdb\ufffdc" in texts


def test_complex_maps_have_no_colors():
    with pytest.raises(TypeError, match=r"attribution must be real, got torch\.complex64"):
        visualize_attribution(torch.ones(4, 4, dtype=torch.complex64), method="heat_map")
