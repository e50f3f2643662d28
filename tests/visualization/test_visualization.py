"""Figures: what is drawn, and what is refused."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from torch import Tensor

from captum_clip_surgery.visualization import (
    compare_figure,
    save_figure,
    visualize_attribution,
)
from captum_clip_surgery.visualization._attribution import show_map
from captum_clip_surgery.visualization._charts import bar_figure
from captum_clip_surgery.visualization._layout import WIDTHS
from tests._helpers.cases import each

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def test_one_row_a_text_and_one_column_a_method() -> None:
    maps = {"first": torch.randn(3, 2, 4, 6), "second": torch.randn(3, 2, 40, 60)}
    figure = compare_figure([IMAGE] * 3, maps, ["dog", "cat"], title="a title")
    assert [axis.get_title() for axis in figure.axes[:2]] == ["first", "second"]
    assert [figure.axes[i].get_ylabel() for i in range(0, 12, 2)] == ["dog", "cat"] * 3
    pictures = figure.axes[12:15]  # each once, beside the first of its rows
    assert [axis.get_title() for axis in pictures] == ["image", "", ""]
    assert all(len(axis.images) == 1 for axis in pictures)
    beside = [figure.axes[i].get_position().y0 for i in range(0, 12, 4)]
    assert [axis.get_position().y0 for axis in pictures] == pytest.approx(beside)
    written = io.BytesIO()
    figure.savefig(written)
    assert Image.open(written).size[0] > 500


def drawn(attribution: Tensor, picture: np.ndarray = IMAGE) -> np.ndarray:
    """The map as an image on the axis; empty if none was laid over the picture."""
    axis = Figure().subplots()
    show_map(axis, picture, attribution)
    images = axis.get_images()
    return np.asarray(images[1].get_array()) if len(images) > 1 else np.zeros(0)


def test_a_map_is_enlarged_bilinearly_to_the_image() -> None:
    attribution = torch.randn(4, 6, dtype=torch.float64)
    size = torch.nn.functional.interpolate(attribution[None, None], (40, 60), mode="bilinear")
    np.testing.assert_allclose(drawn(attribution), size[0, 0].numpy(), atol=1e-6)


def test_images_of_floats_and_bytes_draw_alike() -> None:
    axes = Figure().subplots(1, 2)
    show_map(axes[0], IMAGE, torch.zeros(2, 2))
    show_map(axes[1], IMAGE / 255, torch.zeros(2, 2))
    first, second = (axis.get_images()[0].get_array() for axis in axes)
    np.testing.assert_allclose(first, second)


@each(
    ("value", "note"),
    [(0.0, "all zero"), (-3.0, "the same everywhere"), (1e38, "the same everywhere")],
)
def test_a_constant_map_shows_the_image_and_says_so(value: float, note: str) -> None:
    axis = Figure().subplots()
    show_map(axis, IMAGE, torch.full((4, 6), value))
    assert len(axis.get_images()) == 1
    assert axis.get_xlabel() == note


@each("scale", [1e-300, 1e-30, 1.0, -1.0, 1e30, 1e38])
def test_maps_of_any_scale_draw(scale: float) -> None:
    attribution = torch.arange(24.0).double().reshape(4, 6) * scale
    figure = compare_figure([IMAGE], {"map": attribution[None, None]}, ["dog"])
    figure.savefig(io.BytesIO())


def test_a_single_pixel_is_not_cut_off_as_an_outlier() -> None:
    attribution = torch.zeros(40, 60)
    attribution[3, 4] = 1
    axis = Figure().subplots()
    show_map(axis, IMAGE, attribution)
    assert axis.get_images()[1].get_clim() == (0, 1)


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        drawn(torch.full((2, 2), torch.nan))


def limits(figure: Figure) -> list[tuple[float, float]]:
    """Of the maps' colors, panel by panel."""
    maps = [axis for axis in figure.axes if len(axis.images) > 1]  # no images and color bars
    return [axis.get_images()[1].get_clim() for axis in maps]


def test_texts_share_a_scale_unless_each_map_has_its_own() -> None:
    maps = {"first": torch.stack([torch.rand(40, 60), 10 * torch.rand(40, 60)])[None]}
    maps["second"] = 100 * maps["first"]
    texts = ["absent", "dog"]
    one, _, same, _ = limits(compare_figure([IMAGE], maps, texts))
    assert one == same
    assert 9 < one[1] < 10  # so that the absent text stays dark
    (limit,) = set(limits(compare_figure([IMAGE], maps, texts, scales="figure")))
    assert 900 < limit[1] < 1000
    figure = compare_figure([IMAGE], maps, texts, scales="map")
    own = limits(figure)
    assert own[0][1] < 1 < 9 < own[2][1] < 10 < own[1][1] < 100 < own[3][1]
    stated = [axis.get_xlabel().split(" to ") for axis in figure.axes[:4]]
    assert [float(high) for _, high in stated] == pytest.approx([h for _, h in own], rel=0.01)
    coarse = {"map": torch.eye(3)[None, None] - 0.3}  # upsampling flattens its peaks
    figure = compare_figure([IMAGE], coarse, ["dog"], scales="map")
    assert limits(figure) == [pytest.approx((-0.7, 0.7))]
    assert figure.axes[0].get_xlabel() == "-0.7 to 0.7"
    with pytest.raises(ValueError, match="scales must be one of method, figure, map, got 'all'"):
        compare_figure([IMAGE], maps, texts, scales="all")


def test_maps_of_both_signs_diverge_around_zero() -> None:
    signed, hardly = torch.rand(1, 1, 40, 60) * 3 - 1, torch.rand(1, 1, 40, 60) - 0.04
    maps = {"signed": signed, "hardly": hardly}
    figure = compare_figure([IMAGE], maps, ["dog"])
    (low, high), (other, _) = limits(figure)
    assert low == -high
    assert other > -0.1
    colors = [axis.get_images()[1].get_cmap().name for axis in figure.axes[:2]]
    assert colors == ["RdBu_r", "inferno"]
    plain = compare_figure([IMAGE], maps, ["dog"], sign="range")
    assert {axis.get_images()[1].get_cmap().name for axis in plain.axes[:2]} == {"inferno"}
    masks = compare_figure([IMAGE], maps, ["dog"], method="mask")  # which has no two signs
    masks.savefig(io.BytesIO())


def test_notes_stand_below_their_panels_and_beside_their_texts() -> None:
    maps = {"first": torch.stack([torch.rand(1, 4, 6), torch.zeros(1, 4, 6)])}
    notes, beside = {"first": [["c"], ["d"]]}, [["cosine 0.1"], ["cosine 0.2"]]
    figure = compare_figure([IMAGE] * 2, maps, ["dog"], notes=notes, text_notes=beside)
    assert [axis.get_xlabel() for axis in figure.axes[:2]] == ["c", "d, all zero"]
    assert [axis.texts[0].get_text() for axis in figure.axes[:2]] == ["cosine 0.1", "cosine 0.2"]


def test_shared_scales_have_bars_with_the_maps_own_values() -> None:
    maps = {"first": 4 * torch.rand(1, 2, 40, 60) + 1, "second": torch.zeros(1, 2, 4, 6)}
    for transpose in (False, True):
        figure = compare_figure([IMAGE], maps, ["dog", "cat"], transpose=transpose, outlier_perc=0)
        (bar,) = [axis for axis in figure.axes if not axis.images]  # nothing of zeros to explain
        low, high = bar.get_ylim() if transpose else bar.get_xlim()
        assert low == pytest.approx(maps["first"].min().item())
        assert high == pytest.approx(maps["first"].max().item())
    own = compare_figure([IMAGE], maps, ["dog", "cat"], scales="map")
    assert all(axis.images for axis in own.axes)


def test_transposed_rows_are_methods_and_columns_texts() -> None:
    maps = {"first": torch.rand(1, 3, 4, 6), "second": torch.rand(1, 3, 4, 6)}
    texts = ["dog", "cat", "$x$ owl"]
    upright = compare_figure([IMAGE], maps, texts)
    turned = compare_figure([IMAGE], maps, texts, transpose=True)
    assert [axis.get_title() for axis in turned.axes[:3]] == texts
    assert [axis.get_ylabel() for axis in turned.axes[:7:3]] == ["first", "second", "image"]
    for row in range(3):
        for column in range(2):
            one, other = upright.axes[2 * row + column], turned.axes[3 * column + row]
            np.testing.assert_array_equal(one.images[-1].get_array(), other.images[-1].get_array())


def test_signs_and_methods_of_all_panels() -> None:
    maps = {"first": torch.randn(1, 1, 40, 60)}
    figure = compare_figure([IMAGE], maps, ["dog"], sign="positive", method="heat_map")
    (shown,) = figure.axes[0].images
    np.testing.assert_array_equal(shown.get_array(), maps["first"][0, 0].clamp(min=0))
    with pytest.raises(ValueError, match=r"sign must be one of all, positive, .*, got 'both'"):
        compare_figure([IMAGE], maps, ["dog"], sign="both")


def test_maps_that_do_not_fit_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"maps of first have shape \(1, 1, 4, 6\), expected \(1, 2"
    ):
        compare_figure([IMAGE], {"first": torch.rand(1, 1, 4, 6)}, ["dog", "cat"])
    with pytest.raises(ValueError, match="got 1 images, 0 texts and 0 methods; pass at least one"):
        compare_figure([IMAGE], {}, [])


@pytest.mark.parametrize(
    ("transpose", "widths"),
    [
        pytest.param(False, (*WIDTHS, 5.5), marks=pytest.mark.slow),
        (True, ("column",)),  # in which the least fits
        pytest.param(True, (*WIDTHS, 5.5), marks=pytest.mark.slow),
    ],
)
def test_every_letter_is_legible_and_on_the_figure(
    transpose: bool, widths: tuple[str | float, ...]
) -> None:
    for width in widths:
        check_letters(width, transpose)


def check_letters(width: str | float, transpose: bool) -> None:
    maps = {name: torch.rand(1, 2, 4, 6) for name in ("CLIP", "IntegratedGradients", "GradCam")}
    texts = ["a photograph of a small dog that sleeps beside a large tree", "cat"]
    notes, beside = {"CLIP": [["1234 ms"] * 2]}, [["cosine 0.312"] * 2]
    figure = compare_figure(
        [IMAGE],
        maps,
        texts,
        "A title",
        notes=notes,
        text_notes=beside,
        transpose=transpose,
        width=width,
    )
    assert figure.get_figwidth() == pytest.approx(WIDTHS.get(width, width))  # type: ignore[call-overload]
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = figure.get_tightbbox(canvas.get_renderer())  # of every artist, in inches
    assert min(drawn.x0, drawn.y0) >= 0
    assert drawn.x1 <= figure.get_figwidth()
    assert drawn.y1 <= figure.get_figheight()
    assert min(text.get_size() for text in figure.findobj(Text) if text.get_text()) >= 6
    titles = [
        axis.title.get_window_extent(canvas.get_renderer())
        for axis in figure.axes
        if axis.get_title()
    ]
    assert len(titles) == (2 if transpose else 4)
    for left, right in pairwise(sorted(titles, key=lambda title: title.x0)):
        assert left.x1 < right.x0


def test_widths_that_hold_nothing_are_refused() -> None:
    maps = {str(name): torch.rand(1, 1, 4, 6) for name in range(9)}
    with pytest.raises(ValueError, match=r"10 columns do not fit in 3.4 in; use width=5.3 or more"):
        compare_figure([IMAGE], maps, ["dog"], width="column")
    with pytest.raises(
        ValueError, match=r"width must be inches .* one of column, .*, got 'poster'"
    ):
        compare_figure([IMAGE], maps, ["dog"], width="poster")


# --- files ---------------------------------------------------------------------------------------


def test_figures_are_files_by_their_suffix(tmp_path: Path) -> None:
    def figure() -> Figure:
        return compare_figure([IMAGE], {"first": torch.ones(1, 1, 4, 6)}, ["two words"])

    png = save_figure(figure(), tmp_path / "new" / "a.png", dpi=100)
    with Image.open(png) as image:  # versions of Matplotlib round in two ways
        np.testing.assert_allclose(image.size, figure().get_size_inches() * 100, atol=1)
    svg = save_figure(figure(), str(tmp_path / "a.SVG"))
    words = [
        "".join(node.itertext())
        for node in ElementTree.parse(svg).iter()
        if node.tag.endswith("text")
    ]
    assert {"two words", "first", "the same everywhere"} <= set(words)
    pdf = save_figure(figure(), tmp_path / "a.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert b"/CIDFontType2" in pdf  # TrueType's, which a pdf.fonttype of 3 has not
    assert b"/Type3" not in pdf
    for suffix in ("png", "svg", "pdf"):  # byte for byte, without dates and random names
        first = save_figure(figure(), tmp_path / f"b.{suffix}").read_bytes()
        assert save_figure(figure(), tmp_path / "c" / f"b.{suffix}").read_bytes() == first
    with pytest.raises(ValueError, match=r"must end in .png, .svg, .pdf, got .*a.gif"):
        save_figure(figure(), tmp_path / "a.gif")


def test_bars_are_as_long_as_the_values_with_whiskers() -> None:
    values = {
        "mIoU": {"CLIP": (6.8, (5.0, 9.0)), "Surgery": (52.3, None)},
        "mSC": {"CLIP": (-6.3, (-8.0, -4.0)), "Surgery": (53.2, (50.0, 55.0))},
    }
    figure = bar_figure(values)
    first, second = figure.axes[:2]
    assert [bar.get_width() for bar in first.patches] == [6.8, 52.3]
    assert [bar.get_width() for bar in second.patches] == [-6.3, 53.2]
    segments = second.collections[0].get_segments()
    assert [segment[:, 0].tolist() for segment in segments] == [[-8.0, -4.0], [50.0, 55.0]]
    figure.savefig(io.BytesIO())


@pytest.mark.parametrize("picture", [255.0 * np.ones((4, 4, 3)), np.ones((4, 4, 3), np.int64)])
def test_images_of_another_range_are_refused(picture: np.ndarray) -> None:
    """Matplotlib would draw them white."""
    with pytest.raises(ValueError, match="array"):
        compare_figure([picture], {"map": torch.rand(1, 1, 2, 2)}, ["dog"])


def test_values_whose_differences_overflow_are_refused() -> None:
    attribution = torch.tensor([[-1.7e308, 1.7e308]], dtype=torch.float64)
    with pytest.raises(ValueError, match="beyond 1e\\+300, which cannot be drawn; scale it"):
        visualize_attribution(attribution, IMAGE)
    with pytest.raises(ValueError, match="beyond 1e\\+300"):
        compare_figure([IMAGE], {"map": attribution[None, None]}, ["dog"])
