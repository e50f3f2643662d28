"""Figures: what is drawn, and what is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from captum_clip_surgery.visualization import compare_figure, show_map

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def test_one_row_a_text_and_one_column_a_method() -> None:
    maps = {"first": torch.randn(2, 4, 6), "second": torch.randn(2, 40, 60)}
    figure = compare_figure(PICTURE, maps, ["dog", "cat"], title="a title")
    assert [axis.get_title() for axis in figure.axes[:3]] == ["image", "first", "second"]
    assert [figure.axes[i].get_ylabel() for i in (0, 3)] == ["dog", "cat"]
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
    figure = compare_figure(PICTURE, {"map": attribution[None]}, ["dog"])
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
