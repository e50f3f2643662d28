"""Results of tasks over their pictures, as figures to look at and to save."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from captum_clip_surgery.tasks.multimodal import WordMaps
from captum_clip_surgery.tasks.points import Prompt
from captum_clip_surgery.tasks.recognition import Recognition
from captum_clip_surgery.tasks.segmentation import Segmentation
from captum_clip_surgery.tasks.vocabulary import BACKGROUND
from captum_clip_surgery.visualization import (
    drawn_aspect,
    greyed,
    show_map,
    show_picture,
    shrunk,
    tight_grid,
)

NAMED = 12  # classes that a legend names
HUES = "tab20"  # of classes and texts, largest first; beyond twenty they come again
OVERLAY = 0.65
INCHES = 4.0


def segmentation_figure(picture: np.ndarray, found: Segmentation) -> Figure:
    """A picture beside its classes, which a legend names with their share of the pixels.

    Args:
        picture: (H, W, 3), uint8 or floats in 0..1.
        found: of this picture.

    Returns:
        A figure, free of pyplot: `.savefig(path)` writes it.
    """
    shares = found.shares()
    colours = {name: _hue(i) for i, name in enumerate(n for n in shares if n != BACKGROUND)}
    figure, (left, right) = _pair(picture)
    show_picture(left, picture)
    labels = shrunk(found.labels.cpu().numpy())
    overlay = np.zeros((*labels.shape, 4), dtype=np.float32)
    for index, name in enumerate(found.classes):
        if name in colours:
            overlay[labels == index] = (*colours[name], OVERLAY)
    show_picture(right, greyed(picture))
    right.imshow(overlay, extent=right.images[0].get_extent())
    handles = [
        Patch(color=colours.get(name, "lightgrey"), label=f"{name}  {share:.1%}")
        for name, share in list(shares.items())[:NAMED]
    ]
    if len(shares) > NAMED:
        rest = sum(list(shares.values())[NAMED:])
        handles.append(Patch(alpha=0, label=f"{len(shares) - NAMED} more  {rest:.1%}"))
    right.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return figure


def recognition_figure(picture: np.ndarray, found: Recognition, count: int = 10) -> Figure:
    """A picture beside the scores of its likeliest classes.

    Args:
        picture: (H, W, 3), uint8 or floats in 0..1.
        found: of this picture.
        count: how many classes, at most.

    Returns:
        A figure, free of pyplot: `.savefig(path)` writes it.
    """
    figure, (left, right) = _pair(picture)
    show_picture(left, picture)
    names, scores = zip(*found.top(count), strict=True)
    right.barh(range(len(names)), scores, color=_hue(0))
    right.set_yticks(range(len(names)), names)
    right.invert_yaxis()  # the best on top
    right.axvline(0, color="black", linewidth=0.5)
    right.set_xlabel("score")
    right.spines[["top", "right"]].set_visible(False)
    return figure


def points_figure(
    picture: np.ndarray, prompts: Sequence[Prompt], masks: Sequence[np.ndarray] | None = None
) -> Figure:
    """Prompts on a picture: positive points filled, negative ones crossed, boxes and SAM's masks.

    Args:
        picture: (H, W, 3), uint8 or floats in 0..1.
        prompts: of this picture.
        masks: for each prompt (H, W) of bool, what SAM found.

    Returns:
        A figure, free of pyplot: `.savefig(path)` writes it.
    """
    texts = list(dict.fromkeys(prompt.text for prompt in prompts))
    figure, (left, right) = _pair(picture)
    show_picture(left, picture)
    show_picture(right, picture)
    for number, prompt in enumerate(prompts):
        colour = _hue(texts.index(prompt.text))
        if masks is not None:
            shade = np.array([*colour, 0.5], dtype=np.float32)
            mask = shrunk(masks[number])[..., None]
            right.imshow(mask * shade, extent=right.images[0].get_extent())
        _draw_points(right, prompt, colour)
        if prompt.box is not None:
            x, y, to_x, to_y = prompt.box
            corner, width, height = (x - 0.5, y - 0.5), to_x - x + 1, to_y - y + 1
            right.add_patch(Rectangle(corner, width, height, fill=False, color=colour, lw=2))
    # Points at the border keep their whole marks, and the picture its size.
    right.set_xlim(-0.5, picture.shape[1] - 0.5)
    right.set_ylim(picture.shape[0] - 0.5, -0.5)
    handles = [Patch(color=_hue(index), label=text) for index, text in enumerate(texts)]
    if handles:
        right.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return figure


def words_figure(picture: np.ndarray, found: WordMaps, columns: int = 6) -> Figure:
    """The picture, then where it shows each word of its caption, with the word's importance.

    Each map has a scale of its own: words differ by what they score everywhere. How little a word
    has to say is told by its importance.

    Args:
        picture: (H, W, 3), uint8 or floats in 0..1.
        found: what `word_maps` found in it.
        columns: panels in a row, at least 1.

    Returns:
        A figure, free of pyplot: `.savefig(path)` writes it.

    Raises:
        ValueError: no column, or a map that is not finite.
    """
    if columns < 1:
        raise ValueError(f"columns {columns!r} must be at least 1")
    count = 1 + len(found.words)
    columns = min(columns, count)
    figure, axes = tight_grid(-(-count // columns), columns, drawn_aspect(picture), False, True)
    show_picture(axes.flat[0], picture)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    panels = zip(axes.flat[1:], found.words, found.maps, found.importance.tolist(), strict=False)
    for axis, word, attribution, importance in panels:
        show_map(axis, picture, attribution)
        title = f"{word}  {importance:+z.2f}"
        axis.set_title(title, fontsize=10 if len(title) < 20 else 7, pad=4, parse_math=False)
    return figure


def _draw_points(axis: Axes, prompt: Prompt, colour: tuple[float, float, float]) -> None:
    on = prompt.labels == 1
    for points, marker, width in ((prompt.points[on], "o", 1.2), (prompt.points[~on], "X", 0.8)):
        x, y = points.T
        axis.plot(x, y, marker, color=colour, ms=9, mec="white", mew=width, clip_on=False)


def _hue(index: int) -> tuple[float, float, float]:
    # In pairs of a strong and a pale colour: the strong ones first.
    place = index % 20
    red, green, blue, _ = colormaps[HUES](2 * place if place < 10 else 2 * place - 19)
    return red, green, blue


def _pair(picture: np.ndarray) -> tuple[Figure, np.ndarray]:
    """Two axes of a picture's shape, and room for a legend."""
    height = INCHES * drawn_aspect(picture)
    figure = Figure(figsize=(2 * INCHES + 2.2, max(1.5, height)), layout="constrained")
    axes = figure.subplots(1, 2)
    return figure, axes
