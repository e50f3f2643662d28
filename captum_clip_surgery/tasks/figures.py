"""Results of tasks over their pictures, as figures to look at and to save."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from captum_clip_surgery.tasks.multimodal import WordMaps
from captum_clip_surgery.tasks.points import Prompt
from captum_clip_surgery.tasks.recognition import Recognition
from captum_clip_surgery.tasks.segmentation import Segmentation
from captum_clip_surgery.tasks.vocabulary import BACKGROUND
from captum_clip_surgery.visualization import (
    View,
    add_legend,
    downsample,
    fit_text,
    image_pair,
    label_color,
    labels_figure,
    panel_aspect,
    panel_grid,
    panel_width,
    show_image,
    show_map,
    title_size,
)


def segmentation_figure(
    picture: np.ndarray, found: Segmentation, width: float | str | None = None
) -> Figure:
    """A picture beside its classes, which a legend names with their share of the pixels.

    Args:
        picture: (H, W, 3), uint8 or floats in 0..1.
        found: of this picture.
        width: of the figure, in inches or by its name in `WIDTHS`.

    Returns:
        A figure, free of pyplot: `save_figure` writes it.
    """
    labels = {name: label for label, name in enumerate(found.classes)}
    shares = [(labels[name], name, share) for name, share in found.shares().items()]
    named = [label for label, name, _ in shares if name != BACKGROUND]
    colours = {label: label_color(place) for place, label in enumerate(named)}
    return labels_figure(picture, found.labels.cpu().numpy(), shares, colours, width)


def recognition_figure(
    picture: np.ndarray, found: Recognition, count: int = 10, width: float | str | None = None
) -> Figure:
    """A picture beside the scores of its likeliest classes.

    Args:
        picture: (H, W, 3), uint8 or floats in 0..1.
        found: of this picture.
        count: how many classes, at most.
        width: of the figure, in inches or by its name in `WIDTHS`.

    Returns:
        A figure, free of pyplot: `save_figure` writes it.
    """
    figure, (left, right) = image_pair(picture, width)
    show_image(left, picture)
    names, scores = zip(*found.top(count), strict=True)
    right.barh(range(len(names)), scores, color=label_color(0))
    right.set_yticks(range(len(names)), names, parse_math=False)
    right.invert_yaxis()  # the best on top
    right.axvline(0, color="black", linewidth=0.5)
    right.set_xlabel("score")
    right.spines[["top", "right"]].set_visible(False)
    return figure


def points_figure(
    picture: np.ndarray,
    prompts: Sequence[Prompt],
    masks: Sequence[np.ndarray] | None = None,
    width: float | str | None = None,
) -> Figure:
    """Prompts on a picture: positive points filled, negative ones crossed, boxes and SAM's masks.

    Args:
        picture: (H, W, 3), uint8 or floats in 0..1.
        prompts: of this picture.
        masks: for each prompt (H, W) of bool, what SAM found.
        width: of the figure, in inches or by its name in `WIDTHS`.

    Returns:
        A figure, free of pyplot: `save_figure` writes it.
    """
    texts = list(dict.fromkeys(prompt.text for prompt in prompts))
    figure, (left, right) = image_pair(picture, width)
    show_image(left, picture)
    show_image(right, picture)
    for number, prompt in enumerate(prompts):
        colour = label_color(texts.index(prompt.text))
        if masks is not None:
            shade = np.array([*colour, 0.5], dtype=np.float32)
            mask = downsample(masks[number])[..., None]
            right.imshow(mask * shade, extent=right.images[0].get_extent())
        _draw_points(right, prompt, colour)
        if prompt.box is not None:
            x, y, to_x, to_y = prompt.box
            corner, sides = (x - 0.5, y - 0.5), (to_x - x + 1, to_y - y + 1)
            right.add_patch(Rectangle(corner, *sides, fill=False, color=colour, lw=2))
    # Points at the border keep their whole marks, and the picture its size.
    right.set_xlim(-0.5, picture.shape[1] - 0.5)
    right.set_ylim(picture.shape[0] - 0.5, -0.5)
    add_legend(right, [(text, label_color(index)) for index, text in enumerate(texts)])
    return figure


def words_figure(
    picture: np.ndarray,
    found: WordMaps,
    columns: int = 6,
    width: float | str | None = None,
    *,
    sign: str = "range",
    cmap: str | Colormap | None = None,
    alpha_overlay: float = 0.7,
) -> Figure:
    """The picture, then where it shows each word of its caption, with the word's importance.

    Each map has a scale of its own: words differ by what they score everywhere. How little a word
    has to say is told by its importance.

    Args:
        picture: (H, W, 3), uint8 or floats in 0..1.
        found: what `word_maps` found in it.
        columns: panels in a row, at least 1.
        width: of the figure, in inches or by its name in `WIDTHS`; None is two inches a panel.
        sign: of the values that are drawn, see `visualize_attribution`.
        cmap: see `visualize_attribution`.
        alpha_overlay: how opaque maps are over the picture, 0..1.

    Returns:
        A figure, free of pyplot: `save_figure` writes it.

    Raises:
        ValueError: no column, a map that is not finite, a sign that is not known, or an opacity
            out of its range.
    """
    if columns < 1:
        raise ValueError(f"columns {columns!r} must be at least 1")
    view = View(sign=sign, cmap=cmap, alpha_overlay=alpha_overlay)
    count = 1 + len(found.words)
    columns = min(columns, count)
    rows, aspect = -(-count // columns), panel_aspect(picture)
    figure, axes = panel_grid(rows, columns, aspect, False, True, width)
    side = panel_width(axes[0, 0])
    show_image(axes.flat[0], picture)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    panels = zip(axes.flat[1:], found.words, found.maps, found.importance.tolist(), strict=False)
    for axis, word, attribution, importance in panels:
        show_map(axis, picture, attribution, view)
        title, size = fit_text(f"{word}  {importance:+z.2f}", side, title_size(side) - 1)
        axis.set_title(title, fontsize=size, pad=4, parse_math=False)
    return figure


def _draw_points(axis: Axes, prompt: Prompt, colour: tuple[float, float, float]) -> None:
    on = prompt.labels == 1
    for points, marker, width in ((prompt.points[on], "o", 1.2), (prompt.points[~on], "X", 0.8)):
        if len(points):  # marks of no points would still take room, at the figure's corner
            x, y = points.T
            axis.plot(x, y, marker, color=colour, ms=9, mec="white", mew=width, clip_on=False)
