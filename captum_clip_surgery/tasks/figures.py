"""Figures of the results of tasks, to look at and to save."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from captum_clip_surgery.preprocessing import ImageInput, load_image
from captum_clip_surgery.tasks._prompts import Prompt
from captum_clip_surgery.tasks._segmenter import Segmentation
from captum_clip_surgery.tasks._vocabulary import BACKGROUND
from captum_clip_surgery.tasks.captions import WordMaps
from captum_clip_surgery.tasks.pairs import PairExplanation
from captum_clip_surgery.tasks.recognition import Recognition
from captum_clip_surgery.tasks.words_by_patches import Interactions
from captum_clip_surgery.visualization._attribution import show_map
from captum_clip_surgery.visualization._grids import shared_scale
from captum_clip_surgery.visualization._images import (
    downsample,
    extent,
    pale_gray,
    panel_aspect,
    show_image,
)
from captum_clip_surgery.visualization._labels import (
    add_legend,
    label_color,
    labels_figure,
    winner_figure,
)
from captum_clip_surgery.visualization._layout import (
    add_bar,
    LEGEND,
    MIN_SIDE,
    PAIR,
    fit_text,
    image_pair,
    inches,
    panel_grid,
    panel_width,
    title_size,
)
from captum_clip_surgery.visualization._scales import AUTO
from captum_clip_surgery.visualization._style import MapStyle
from captum_clip_surgery.visualization._views import View

__all__ = [
    "interactions_figure",
    "pair_figure",
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
    """Draw an image beside its classes, with a legend of their shares of the pixels.

    Args:
        image: The image (H, W, 3), uint8 or floats in 0..1.
        segmentation: Its segmentation.
        width: Width of the figure in inches, or "column", "page", "notebook" or "slide".

    Returns:
        A figure independent of pyplot; `save_figure` writes it.
    """
    labels = {name: label for label, name in enumerate(segmentation.classes)}
    shares = [(labels[name], name, share) for name, share in segmentation.shares().items()]
    named = [label for label, name, _ in shares if name != BACKGROUND]
    colors = {label: label_color(index) for index, label in enumerate(named)}
    return labels_figure(image, segmentation.labels.cpu().numpy(), shares, colors, width)


def recognition_figure(
    image: np.ndarray, recognition: Recognition, count: int = 10, width: float | str | None = None
) -> Figure:
    """Draw an image beside the scores of its highest-scoring classes.

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
            stands for two inches per panel.
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
            stands for two inches per panel.
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


def pair_figure(
    pair: PairExplanation,
    query_image: ImageInput | None = None,
    image: ImageInput | None = None,
    count: int = 3,
    width: float | str | None = None,
    *,
    maps: bool = True,
) -> Figure:
    """Draw two images with lines between the regions that match most, and their maps below.

    Args:
        pair: The explanation of both images, as `tasks.explain_pair` returns it.
        query_image: The query image; None stands for the part of it that the model saw.
        image: The other image likewise.
        count: Largest number of pairs of regions.
        width: Width of the figure in inches, or "column", "page", "notebook" or "slide"; None
            stands for 10.2 inches.
        maps: Whether to draw the maps, on one scale.

    Returns:
        A figure independent of pyplot; `save_figure` writes it.

    Raises:
        ValueError: If `count` is below 1, or a map is not finite.
    """
    given = (query_image, image)
    pictures = [
        seen if picture is None else np.asarray(load_image(picture))
        for picture, seen in zip(given, pair.pixels, strict=True)
    ]
    whole = PAIR if width is None else inches(width)
    side = max(MIN_SIDE, (whole - max(1.4, whole * LEGEND / PAIR)) / 2)
    height = (1 + maps) * side * max(map(panel_aspect, pictures)) + 0.4
    figure = Figure(figsize=(whole, height), layout="constrained")
    axes = figure.subplots(1 + maps, 2, squeeze=False)
    titles = "query", f"image, cosine {float(pair.cosine):.3f}"
    for axis, picture, title in zip(axes[0], pictures, titles, strict=True):
        show_image(axis, pale_gray(picture), picture)
        axis.set_title(title, fontsize=title_size(side), pad=4)
    matches = pair.pairs(count)
    for number, match in enumerate(matches):
        color, masks = label_color(number), (match.query_region, match.region)
        ends = [
            _draw_region(axis, picture, mask.cpu().numpy(), color)
            for axis, picture, mask in zip(axes[0], pictures, masks, strict=True)
        ]
        _connect(axes[0], ends, color, 1 + 3 * match.contribution / matches[0].contribution)
    entries = [(f"{match.contribution:+.3f}", label_color(i)) for i, match in enumerate(matches)]
    add_legend(axes[0, 1], entries)
    if maps:
        _draw_on_one_scale(axes[1], pictures, pair.maps())
    return figure


def _draw_on_one_scale(
    axes: Sequence[Axes], images: Sequence[np.ndarray], maps: Sequence[Tensor]
) -> None:
    """Draw a map over each image, with one color bar for all."""
    view = View(sign="all")
    values = torch.cat([each.flatten() for each in maps])
    scale = shared_scale(values[None], view)
    bars = [show_map(*row, view, scale) for row in zip(axes, images, maps, strict=True)]
    if bars[-1] is not None:
        axes[-1].figure.colorbar(bars[-1], ax=list(axes), shrink=0.8, ticks=MaxNLocator(5))


def _draw_region(
    axis: Axes, image: np.ndarray, mask: np.ndarray, color: tuple[float, float, float]
) -> tuple[float, float]:
    """Draw a region (h, w) of an image in a color, and return its center in the image's pixels."""
    shade = np.zeros((*mask.shape, 4), dtype=np.float32)
    shade[mask] = (*color, 0.55)
    axis.imshow(shade, extent=extent(image), interpolation="nearest")
    y, x = np.argwhere(mask).mean(0) + 0.5
    return x * image.shape[1] / mask.shape[1] - 0.5, y * image.shape[0] / mask.shape[0] - 0.5


def _connect(
    axes: Sequence[Axes],
    ends: Sequence[tuple[float, float]],
    color: tuple[float, float, float],
    thickness: float,
) -> None:
    """Draw a line from a place in one panel to one in another."""
    for line, linewidth in (("white", thickness + 2), (color, thickness)):
        connection = ConnectionPatch(
            ends[0],
            ends[1],
            "data",
            "data",
            axesA=axes[0],
            axesB=axes[1],
            color=line,
            linewidth=linewidth,
        )
        connection.set_in_layout(False)
        axes[1].add_artist(connection)
    for axis, (x, y) in zip(axes, ends, strict=True):
        axis.plot(x, y, "o", color=color, ms=6, mec="white", mew=1.2)


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
