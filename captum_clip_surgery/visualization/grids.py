"""Maps side by side: texts against methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from torch import Tensor

from captum_clip_surgery.preprocessing import ImageInput, load_image
from captum_clip_surgery.visualization.layout import add_bar, fit, side_of, tight_grid, type_size
from captum_clip_surgery.visualization.overlays import show_map
from captum_clip_surgery.visualization.pictures import drawn_aspect, show_picture
from captum_clip_surgery.visualization.scales import (
    Limits,
    around_zero,
    limits_of,
    refuse_undrawable,
)
from captum_clip_surgery.visualization.views import ONE_SIGN, View

IMAGE = "image"  # the panels that hold the pictures themselves


def compare_figure(
    pictures: Sequence[ImageInput],
    maps: Mapping[str, Tensor],
    texts: Sequence[str],
    title: str = "",
    shared: bool = False,
    diverging: bool = False,
    notes: Mapping[str, Sequence[Sequence[str]]] | None = None,
    *,
    sign: str = "range",
    method: str = "blended_heat_map",
    outlier_perc: float = 2.0,
    cmap: str | Colormap | None = None,
    alpha_overlay: float = 0.7,
    transpose: bool = False,
    width: float | str | None = None,
) -> Figure:
    """One row for each picture and text, one column for each method; or the reverse.

    Each map has a scale of its own: by default from its lowest values (dark) to its highest
    (bright), with one percent of the pixels cut off at either end.

    Args:
        pictures: N PIL images, arrays (H, W, 3) of uint8 or of floats in 0..1, or paths.
        maps: for each method of attribution the maps (N, K, h, w) of the K texts.
        texts: the K texts.
        title: above everything.
        shared: one scale for all maps of a method instead, with a bar of its values.
        diverging: with sign "range", maps of methods that give values of both signs are drawn with
            sign "all": two colours around zero, and a scale as wide on either side.
        notes: what stands below panels: for "image" and methods, a note for each picture and text.
        sign: see `visualize_attribution`; "range" suits methods that differ in where zero is.
        method: of drawing, see `visualize_attribution`.
        outlier_perc: see `visualize_attribution`.
        cmap: see `visualize_attribution`.
        alpha_overlay: see `visualize_attribution`.
        transpose: rows are methods, columns pictures and texts.
        width: of the figure, in inches or by its name in `WIDTHS`; None is two inches a panel.

    Returns:
        A figure, free of pyplot: `save_figure` writes it.

    Raises:
        ValueError: no picture, text or method; maps of another shape than (N, K, h, w), or not
            finite; an option that is not known; a width that does not hold the columns.
    """
    _check(len(pictures), texts, maps)
    shown = [np.asarray(load_image(picture)) for picture in pictures]
    view = View(method, sign, outlier_perc, cmap, alpha_overlay)
    views = {name: _view_of(values, view, diverging) for name, values in maps.items()}
    scales = {name: _scale(values, views[name]) for name, values in maps.items()} if shared else {}
    pairs = [(image, text) for image in range(len(shown)) for text in range(len(texts))]
    rows, columns = [texts[text] for _, text in pairs], [IMAGE, *maps]
    bars = "below" if scales else ""
    if transpose:
        rows, columns, bars = columns, rows, bars and "right"
    aspect = max(map(drawn_aspect, shown))
    noted = bool(notes)
    figure, axes = tight_grid(len(rows), len(columns), aspect, bool(title), noted, width, bars)
    panels = axes.T if transpose else axes
    for (image, text), line in zip(pairs, panels, strict=True):
        show_picture(line[0], shown[image])
        for axis, (name, values) in zip(line[1:], maps.items(), strict=True):
            show_map(axis, shown[image], values[image, text], views[name], scales.get(name))
        for axis, name in zip(line, [IMAGE, *maps], strict=True):
            _add_note(axis, notes[name][image][text] if notes and name in notes else "")
    _add_names(axes, rows, columns, aspect)
    for axis, name in zip(panels[-1, 1:], scales, strict=False):
        _add_bar(axis, views[name], scales[name], bars)
    if title:
        above, size = fit(title, figure.get_figwidth(), 12)
        figure.suptitle(above, fontsize=size, parse_math=False)
    return figure


def _check(images: int, texts: Sequence[str], maps: Mapping[str, Tensor]) -> None:
    if not (images and texts and maps):
        raise ValueError(
            f"{images} pictures, {len(texts)} texts and {len(maps)} methods make no figure; "
            "give at least one of each"
        )
    for name, values in maps.items():
        if values.ndim != 4 or values.shape[:2] != (images, len(texts)):
            raise ValueError(
                f"maps of {name} have shape {tuple(values.shape)}, expected "
                f"({images}, {len(texts)}, h, w): pictures, texts, height and width"
            )


def _limits(values: Tensor, view: View) -> Limits:
    """Of all maps of a method."""
    array = values.detach().cpu().double().numpy()
    refuse_undrawable(array)
    return limits_of(array, view.sign, view.outlier_perc)


def _view_of(values: Tensor, view: View, diverging: bool) -> View:
    """Two colours around zero where both signs matter: neither side is under a fifth."""
    low, high = _limits(values, view)
    both = low < 0 < high and min(-low, high) >= 0.2 * max(-low, high)
    wanted = diverging and view.sign == "range" and view.method not in ONE_SIGN
    return replace(view, sign="all") if wanted and both else view


def _scale(values: Tensor, view: View) -> float | Limits | None:
    """What `show_map` takes for all maps of a method; None where they are all the same."""
    low, high = _limits(values, view)
    if low == high:
        return None
    return (low, high) if view.sign == "range" else max(-low, high)


def _add_note(axis: Axes, note: str) -> None:
    """Below a panel, before what it says already."""
    text = ", ".join(filter(None, [note, axis.get_xlabel()]))
    label, size = fit(text, side_of(axis), min(8.0, type_size(side_of(axis))))
    axis.set_xlabel(label, fontsize=size, labelpad=2, parse_math=False)


def _add_names(
    axes: np.ndarray, rows: Sequence[str], columns: Sequence[str], aspect: float
) -> None:
    side = side_of(axes[0, 0])
    for axis, name in zip(axes[0], columns, strict=True):
        text, size = fit(name, side, type_size(side))
        axis.set_title(text, fontsize=size, pad=4, parse_math=False)
    for axis, name in zip(axes[:, 0], rows, strict=True):
        text, size = fit(name, side * aspect, min(12.0, type_size(side)))
        axis.set_ylabel(text, fontsize=size, labelpad=2, parse_math=False)


def _add_bar(axis: Axes, view: View, scale: float | Limits | None, place: str) -> None:
    if scale is None:
        return
    limits = scale if isinstance(scale, tuple) else around_zero(scale, view.sign)
    colours = view.colours(limits)
    if colours is not None:
        add_bar(axis, colours, place)
