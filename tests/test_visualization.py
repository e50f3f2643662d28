"""Figures: what is drawn, and what is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from captum_clip_surgery.visualization import bar_figure, compare_figure, show_map

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def test_one_row_a_text_and_one_column_a_method() -> None:
    maps = {"first": torch.randn(3, 2, 4, 6), "second": torch.randn(3, 2, 40, 60)}
    figure = compare_figure([PICTURE] * 3, maps, ["dog", "cat"], title="a title")
    assert [axis.get_title() for axis in figure.axes[:3]] == ["image", "first", "second"]
    assert [figure.axes[i].get_ylabel() for i in range(0, 18, 3)] == ["dog", "cat"] * 3
    written = io.BytesIO()
    figure.savefig(written)
    assert Image.open(written).size[0] > 500


def drawn(attribution: Tensor, picture: np.ndarray = PICTURE) -> np.ndarray:
    """The map as an image on the axis; empty if none was laid over the picture."""
    axis = Figure().subplots()
    show_map(axis, picture, attribution)
    images = axis.get_images()
    return np.asarray(images[1].get_array()) if len(images) > 1 else np.zeros(0)


def test_a_map_is_enlarged_bilinearly_to_the_picture() -> None:
    attribution = torch.randn(4, 6)
    size = torch.nn.functional.interpolate(attribution[None, None], (40, 60), mode="bilinear")
    np.testing.assert_allclose(drawn(attribution), size[0, 0].numpy(), atol=1e-6)


def test_pictures_of_floats_and_bytes_draw_alike() -> None:
    axes = Figure().subplots(1, 2)
    show_map(axes[0], PICTURE, torch.zeros(2, 2))
    show_map(axes[1], PICTURE / 255, torch.zeros(2, 2))
    first, second = (axis.get_images()[0].get_array() for axis in axes)
    np.testing.assert_allclose(first, second)


@pytest.mark.parametrize("value", [0.0, -3.0, 1e30])
def test_a_constant_map_shows_the_picture_and_says_so(value: float) -> None:
    axis = Figure().subplots()
    show_map(axis, PICTURE, torch.full((4, 6), value))
    assert len(axis.get_images()) == 1
    assert axis.get_xlabel() == "the same everywhere"


@pytest.mark.parametrize("scale", [1e-30, 1.0, -1.0, 1e30])
def test_maps_of_any_scale_draw(scale: float) -> None:
    attribution = torch.arange(24.0).reshape(4, 6) * scale
    figure = compare_figure([PICTURE], {"map": attribution[None, None]}, ["dog"])
    figure.savefig(io.BytesIO())


def test_a_single_pixel_is_not_cut_off_as_an_outlier() -> None:
    attribution = torch.zeros(40, 60)
    attribution[3, 4] = 1
    axis = Figure().subplots()
    show_map(axis, PICTURE, attribution)
    assert axis.get_images()[1].get_clim() == (0, 1)


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        drawn(torch.full((2, 2), torch.nan))


def limits(figure: Figure, columns: int) -> list[tuple[float, float]]:
    """Of the maps' colours, panel by panel."""
    maps = [axis for i, axis in enumerate(figure.axes) if i % columns]
    return [axis.get_images()[1].get_clim() for axis in maps]


def test_scales_of_ones_own_or_shared() -> None:
    maps = {"first": torch.stack([torch.rand(1, 40, 60), 10 * torch.rand(1, 40, 60)])}
    own = limits(compare_figure([PICTURE] * 2, maps, ["dog"]), 2)
    assert own[0][1] < 1 < 9 < own[1][1] < 10
    shared = limits(compare_figure([PICTURE] * 2, maps, ["dog"], shared=True), 2)
    assert shared[0] == shared[1]
    assert shared[0][1] > 9


def test_signed_maps_diverge_around_zero_where_both_signs_matter() -> None:
    signed, hardly = torch.rand(1, 1, 40, 60) * 3 - 1, torch.rand(1, 1, 40, 60) - 0.05
    maps = {"signed": signed, "hardly": hardly}
    figure = compare_figure([PICTURE], maps, ["dog"], diverging=True)
    (low, high), (other, _) = limits(figure, 3)
    assert low == -high
    assert other > -0.1
    colours = [axis.get_images()[1].get_cmap().name for axis in figure.axes[1:]]
    assert colours == ["RdBu_r", "inferno"]
    plain = compare_figure([PICTURE], maps, ["dog"])
    assert {axis.get_images()[1].get_cmap().name for axis in plain.axes[1:]} == {"inferno"}


def test_notes_stand_below_their_panels() -> None:
    maps = {"first": torch.stack([torch.rand(1, 4, 6), torch.zeros(1, 4, 6)])}
    notes = {"image": [["a"], ["b"]], "first": [["c"], ["d"]]}
    figure = compare_figure([PICTURE] * 2, maps, ["dog"], notes=notes)
    assert [axis.get_xlabel() for axis in figure.axes] == ["a", "c", "b", "d, the same everywhere"]


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
