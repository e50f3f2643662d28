"""Figures of the tasks, of pictures of any shape."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text

from captum_clip_surgery.tasks import (
    Prompt,
    Recognition,
    Segmentation,
    WordMaps,
    figures,
)
from captum_clip_surgery.tasks._segmenter import label_colors
from captum_clip_surgery.visualization import (
    _labels,
    compare_figure,
    visualize_attribution,
    winner_figure,
)
from captum_clip_surgery.visualization._images import MAX_PIXELS
from tests._helpers.cases import each

SIZES = [(40, 60), (1, 1), (4000, 2), (2, 4000), (1500, 2500)]


def drawn(figure: Figure) -> tuple[int, int]:
    """Pixels of the figure as drawn at 100 to the inch."""
    figure.set_dpi(100)
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    width, height = canvas.get_width_height()
    return width, height


def largest(figure: Figure) -> int:
    return max(max(i.get_array().shape[:2]) for axis in figure.axes for i in axis.images)


@pytest.mark.slow
@each("size", SIZES)
def test_images_of_any_shape_fit(size: tuple[int, int]) -> None:
    height, width = size
    picture = np.zeros((height, width, 3), np.uint8)
    truth = torch.zeros(size, dtype=torch.long)
    points = np.array([[0, 0], [width - 1, height - 1]], np.float32)
    box = np.array([0, 0, width - 1, height - 1], np.float32)
    prompt = Prompt("dog", points, np.array([1, 0]), box, None, 0.5)
    words = WordMaps(("dog", "runs"), torch.rand(2, 3, 4), size, torch.rand(2))
    made = [
        figures.segmentation_figure(picture, Segmentation(truth, ("dog", "sky"))),
        figures.recognition_figure(picture, Recognition(torch.rand(3), ("a", "b", "c"))),
        figures.points_figure(picture, [prompt], [np.ones(size, bool)]),
        figures.words_figure(picture, words),
    ]
    for figure in made:
        assert max(drawn(figure)) < 2500
        assert largest(figure) < 2 * MAX_PIXELS


def test_points_stay_where_they_are_on_a_image_that_is_shrunk() -> None:
    picture = np.zeros((3000, 4500, 3), np.uint8)
    prompt = Prompt("dog", np.array([[4000, 500]], np.float32), np.array([1]), None, None, 0.5)
    axis = figures.points_figure(picture, [prompt]).axes[1]
    assert axis.images[0].get_extent() == [-0.5, 4499.5, 2999.5, -0.5]
    assert axis.get_xlim() == (-0.5, 4499.5)
    assert [line.get_xydata().tolist() for line in axis.lines if len(line.get_xdata())] == [
        [[4000, 500]]
    ]


def test_points_of_a_text_show_around_those_of_a_later_text() -> None:
    picture = np.zeros((100, 100, 3), np.uint8)
    places = {"dog": [[50.0, 50], [10, 10]], "cat": [[51.0, 50]]}
    prompts = [
        Prompt(text, np.array(points), np.ones(len(points), int), None, None, 0.4)
        for text, points in places.items()
    ]
    below, alone, above = figures.points_figure(picture, prompts).axes[1].lines
    assert below.get_markersize() >= above.get_markersize() + 4  # a ring of two points
    assert alone.get_markersize() == above.get_markersize()


def test_points_of_one_kind_leave_the_image_its_size() -> None:
    picture = np.zeros((128, 128, 3), np.uint8)
    prompt = Prompt("dog", np.array([[30.0, 97]]), np.array([1]), None, None, 0.4)
    figure = figures.points_figure(picture, [prompt])
    whole, _ = drawn(figure)
    assert figure.axes[1].get_window_extent().width > whole / 4


def test_points_at_the_border_leave_the_panel_its_size() -> None:
    picture = np.zeros((96, 128, 3), np.uint8)
    extents = []
    for point in ([64.0, 48.0], [0.0, 0.0], [127.0, 95.0]):
        prompt = Prompt("dog", np.array([point]), np.array([1]), None, None, 0.4)
        figure = figures.points_figure(picture, [prompt])
        drawn(figure)
        extents.append(figure.axes[1].get_window_extent().bounds)
    for bounds in extents[1:]:
        assert bounds == pytest.approx(extents[0])


def test_segments_have_outlines() -> None:
    """A color as gray as the image would not show otherwise."""
    labels = torch.zeros(300, 400, dtype=torch.long)
    labels[100:200, 100:250] = 1
    figure = figures.segmentation_figure(
        np.full((300, 400, 3), 128, np.uint8), Segmentation(labels, ("background", "car"))
    )
    outlines = figure.axes[1].images[-1].get_array()[..., 3]
    expected = np.zeros((300, 400))
    expected[100:200, 100:250] = 1
    expected[101:199, 101:249] = 0
    assert np.array_equal(outlines, expected)


def test_a_class_has_its_color_whatever_else_an_image_shows() -> None:
    """The one in the label image, in `classes.json` and in the figure."""
    names = ("background", "dog", "sky", "car")
    colors = {row["name"]: row["color"] for row in label_colors(names)}
    for labels in ([[0, 3, 3, 1]], [[2, 2, 2, 3]]):
        picture = np.zeros((1, 4, 3), np.uint8)
        figure = figures.segmentation_figure(picture, Segmentation(torch.tensor(labels), names))
        legend = figure.axes[1].get_legend()
        for patch, text in zip(legend.get_patches(), legend.get_texts(), strict=True):
            name = text.get_text().split()[0]
            assert [round(255 * each) for each in patch.get_facecolor()[:3]] == colors[name]


def test_a_legend_names_the_largest_classes_and_counts_the_rest() -> None:
    names = ("background", *(f"class {i}" for i in range(20)))
    truth = torch.arange(21).repeat_interleave(torch.arange(21, 0, -1))[None]
    figure = figures.segmentation_figure(
        np.zeros((1, truth.shape[1], 3), np.uint8), Segmentation(truth, names)
    )
    texts = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert texts[0].startswith("background  9.1%")
    assert len(texts) == _labels.MAX_NAMES + 1
    assert texts[-1].startswith("9 more")


@pytest.mark.parametrize("text", [r"cost $\frac{x$", "a $x$ b"])
def test_dollars_are_no_mathematics(text: str) -> None:
    """They would be set as such, or end in an error of Matplotlib's parser."""
    picture = np.zeros((40, 60, 3), np.uint8)
    truth = torch.zeros((40, 60), dtype=torch.long)
    prompt = Prompt(text, np.array([[1, 1]], np.float32), np.array([1]), None, None, 0.5)
    words = WordMaps((text, "runs"), torch.rand(2, 3, 4), (40, 60), torch.rand(2))
    maps = torch.rand(1, 1, 3, 4)
    made = [
        figures.segmentation_figure(picture, Segmentation(truth, (text, "sky"))),
        figures.recognition_figure(picture, Recognition(torch.rand(2), (text, "b"))),
        figures.points_figure(picture, [prompt]),
        figures.words_figure(picture, words),
        winner_figure(picture, maps[0], [text]),
        visualize_attribution(maps[0, 0], picture, title=text)[0],
        compare_figure([picture], {text: maps}, [text], title=text, notes={text: [[text]]}),
    ]
    for figure in made:
        drawn(figure)
        shown = [part for part in figure.findobj(Text) if part.get_text().startswith(text[:6])]
        assert shown
        assert not any(part.get_parse_math() for part in shown)
