"""Figures of the results of tasks, to look at and to save."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from captum_clip_surgery.tasks._interactions import Interactions
from captum_clip_surgery.tasks._prompts import Prompt
from captum_clip_surgery.tasks._recognition import Recognition
from captum_clip_surgery.tasks._segmenter import Segmentation
from captum_clip_surgery.tasks._word_maps import WordMaps
from captum_clip_surgery.visualization._attribution import show_map
from captum_clip_surgery.visualization._images import downsample, panel_aspect, show_image
from captum_clip_surgery.visualization._labels import (
    add_legend,
    label_color,
    labels_figure,
    winner_figure,
)
from captum_clip_surgery.visualization._layout import (
    add_bar,
    fit_text,
    image_pair,
    panel_grid,
    panel_width,
    title_size,
)
from captum_clip_surgery.visualization._scales import AUTO
from captum_clip_surgery.visualization._style import MapStyle
from captum_clip_surgery.visualization._views import View

__all__ = [
    "interactions_figure",
    "points_figure",
    "recognition_figure",
    "segmentation_figure",
    "words_figure",
]

#: Distance at which points of two texts hide each other, as a share of the longer side.
NEAR = 0.03
#: Smallest map in a word's region, as a share of the highest value of all words.
REGION_SHARE = 0.1


def segmentation_figure(
    image: np.ndarray, segmentation: Segmentation, width: float | str | None = None
) -> Figure:
    """Draw an image next to its classes, with a legend of their shares of the pixels.

    Args:
        image: The image (H, W, 3), uint8 or floats in 0..1.
        segmentation: Its segmentation.
        width: Width of the figure in inches, or "column", "page", "notebook" or "slide".

    Returns:
        A figure independent of pyplot; `save_figure` writes it.
    """
    labels = {name: label for label, name in enumerate(segmentation.classes)}
    shares = [(labels[name], name, share) for name, share in segmentation.shares().items()]
    colors = {labels[name]: color for name, color in segmentation.colors().items()}
    return labels_figure(image, segmentation.labels.cpu().numpy(), shares, colors, width)


def recognition_figure(
    image: np.ndarray, recognition: Recognition, count: int = 10, width: float | str | None = None
) -> Figure:
    """Draw an image next to the scores of its highest-scoring classes.

    Args:
        image: The image (H, W, 3), uint8 or floats in 0..1.
        recognition: Its scores.
        count: Maximum number of classes.
        width: Width of the figure in inches, or "column", "page", "notebook" or "slide".

    Returns:
        A figure independent of pyplot; `save_figure` writes it.
    """
    figure, (left, right) = image_pair(image, width)
    show_image(left, image)
    names, scores = zip(*recognition.top(count), strict=True)
    right.barh(range(len(names)), scores, color=label_color(0))
    right.set_yticks(range(len(names)), names, parse_math=False)
    right.invert_yaxis()  # the best on top
    right.axvline(0, color="black", linewidth=0.5)
    right.set_xlabel("score")
    right.spines[["top", "right"]].set_visible(False)
    return figure


def points_figure(
    image: np.ndarray,
    prompts: Sequence[Prompt],
    masks: Sequence[np.ndarray] | None = None,
    width: float | str | None = None,
) -> Figure:
    """Draw prompts on an image: positive points as dots, negative ones as crosses, boxes and masks.

    Where points of several texts lie close together, marks drawn earlier are larger, so that each
    shows as a ring around the later ones.

    Args:
        image: The image (H, W, 3), uint8 or floats in 0..1.
        prompts: Its prompts.
        masks: SAM's mask (H, W) of bool for each prompt.
        width: Width of the figure in inches, or "column", "page", "notebook" or "slide".

    Returns:
        A figure independent of pyplot; `save_figure` writes it.
    """
    texts = list(dict.fromkeys(prompt.text for prompt in prompts))
    figure, (left, right) = image_pair(image, width)
    show_image(left, image)
    show_image(right, image)
    near = NEAR * max(image.shape[:2])
    for number, prompt in enumerate(prompts):
        color = label_color(texts.index(prompt.text))
        if masks is not None:
            shade = np.array([*color, 0.5], dtype=np.float32)
            mask = downsample(masks[number])[..., None]
            right.imshow(mask * shade, extent=right.images[0].get_extent())
        _draw_points(right, prompt, color, _marks_above(prompt, prompts[number + 1 :], near))
        if prompt.box is not None:
            x, y, to_x, to_y = prompt.box
            corner, sides = (x - 0.5, y - 0.5), (to_x - x + 1, to_y - y + 1)
            right.add_patch(Rectangle(corner, *sides, fill=False, color=color, lw=2))
    # Points at the border keep their whole marks, and the image its size.
    right.set_xlim(-0.5, image.shape[1] - 0.5)
    right.set_ylim(image.shape[0] - 0.5, -0.5)
    add_legend(right, [(text, label_color(index)) for index, text in enumerate(texts)])
    return figure


def words_figure(
    image: np.ndarray,
    word_maps: WordMaps,
    columns: int = 6,
    width: float | str | None = None,
    *,
    sign: str = AUTO,
    cmap: str | Colormap | None = None,
    alpha_overlay: float = 0.7,
) -> Figure:
    """Draw an image, and over it the map of each word of its caption, with the word's importance.

    All maps share one scale, so that words that match nothing stay pale; a color bar shows it.

    Args:
        image: The image (H, W, 3), uint8 or floats in 0..1.
        word_maps: Its maps, as `tasks.word_maps` returns them.
        columns: Maximum number of panels in a row, at least 1.
        width: Width of the figure in inches, or "column", "page", "notebook" or "slide"; None
            means two inches per panel.
        sign: Sign of the values to draw, see `compare_figure`.
        cmap: Colormap, see `visualize_attribution`.
        alpha_overlay: Opacity of the maps over the image, 0..1.

    Returns:
        A figure independent of pyplot; `save_figure` writes it.

    Raises:
        ValueError: If `columns` is below 1, a map is not finite, the sign is unknown, or the
            opacity is out of range.
    """
    style = MapStyle.of(word_maps.maps, View(cmap=cmap, alpha_overlay=alpha_overlay), sign)
    importances = [f"{value:+z.2f}" for value in word_maps.importance.tolist()]
    return _words_grid(
        image, word_maps.words, word_maps.maps, importances, style, columns=columns, width=width
    )


def interactions_figure(
    image: np.ndarray,
    interactions: Interactions,
    columns: int = 6,
    width: float | str | None = None,
    *,
    regions: bool = False,
    centered: bool = True,
) -> Figure:
    """Draw an image, and over it the map of each word, with what the word adds to the cosine.

    All maps share one scale around zero, because contributions compare between words; a color bar
    shows it.

    Args:
        image: The image (H, W, 3), uint8 or floats in 0..1.
        interactions: Its interactions, as `tasks.interactions` returns them.
        columns: Maximum number of panels in a row, at least 1.
        width: Width of the figure in inches, or "column", "page", "notebook" or "slide"; None
            means two inches per panel.
        regions: Whether to draw the regions of words instead: each pixel has the color of the word
            with the highest map, or none where no map reaches a tenth of the highest value.
        centered: Whether to draw the maps without what the words have in common.

    Returns:
        A figure independent of pyplot; `save_figure` writes it.

    Raises:
        ValueError: If `columns` is below 1, a map is not finite, or the width does not hold the
            columns.
    """
    if regions:
        threshold = REGION_SHARE * max(0.0, float(interactions.maps.max()))
        return winner_figure(image, interactions.maps, interactions.words, threshold, width)
    maps = interactions.centered() if centered else interactions.maps
    contributions = [f"{value:+z.3f}" for value in interactions.by_word().tolist()]
    return _words_grid(
        image,
        interactions.words,
        maps,
        contributions,
        MapStyle.of(maps, View(), "all"),
        columns=columns,
        width=width,
    )


def _words_grid(
    image: np.ndarray,
    words: Sequence[str],
    maps: Tensor,
    notes: Sequence[str],
    style: MapStyle,
    *,
    columns: int,
    width: float | str | None,
) -> Figure:
    """Draw an image, and over it the map of each word on one scale, with a note behind the word."""
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns!r}")
    count = 1 + len(words)
    rows, aspect = -(-count // columns), panel_aspect(image)
    columns = -(-count // rows)  # so that the last row is about as long as the others
    figure, axes = panel_grid(rows, columns, aspect, False, True, width, "right")
    side = panel_width(axes[0, 0])
    show_image(axes.flat[0], image)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    for axis, word, attribution, note in zip(axes.flat[1:], words, maps, notes, strict=False):
        show_map(axis, image, attribution, style.view, style.scale)
        title, size = fit_text(f"{word}  {note}", side, title_size(side) - 1)
        axis.set_title(title, fontsize=size, pad=4, parse_math=False)
    colors = style.colors()
    if colors is not None:
        add_bar(axes[0, -1], colors, "right")
    return figure


def _marks_above(prompt: Prompt, later: Sequence[Prompt], near: float) -> np.ndarray:
    """Count for each point the prompts drawn later with a point closer than `near` pixels."""
    count = np.zeros(len(prompt.points), dtype=int)
    for other in later:
        if len(other.points) and len(count):
            distances = np.linalg.norm(prompt.points[:, None] - other.points, axis=-1)
            count += (distances < near).any(1)
    return count


def _draw_points(
    axis: Axes, prompt: Prompt, color: tuple[float, float, float], above: np.ndarray
) -> None:
    """Draw the points of a prompt, larger by the number of marks that are drawn above each."""
    for (x, y), label, count in zip(prompt.points, prompt.labels, above, strict=True):
        marker, width = ("o", 1.2) if label == 1 else ("X", 0.8)
        size = 9 + 5 * min(int(count), 4)
        (mark,) = axis.plot(
            x, y, marker, color=color, ms=size, mec="white", mew=width, clip_on=False
        )
        mark.set_in_layout(False)  # marks at the border would shrink the panel
