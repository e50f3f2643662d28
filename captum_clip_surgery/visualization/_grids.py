"""Grids of maps: texts by methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from torch import Tensor

from captum_clip_surgery._utils.tensors import check_real
from captum_clip_surgery.preprocessing import ImageInput, load_image
from captum_clip_surgery.visualization._attribution import show_map
from captum_clip_surgery.visualization._images import panel_aspect, show_image
from captum_clip_surgery.visualization._layout import (
    add_bar,
    fit_text,
    panel_grid,
    panel_width,
    title_size,
)
from captum_clip_surgery.visualization._scales import (
    Limits,
    check_drawable,
    color_limits,
    limits_of_sign,
)
from captum_clip_surgery.visualization._views import ONE_SIGN, View

#: Title of the panels that show the images.
IMAGE = "image"


def compare_figure(
    images: Sequence[ImageInput],
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
    """Draw maps side by side: one row per image and text, one column per method, or transposed.

    Each map has its own scale: by default from its lowest values (dark) to its highest (bright),
    with one percent of the pixels cut off on either side.

    Args:
        images: N PIL images, arrays (H, W, 3) of uint8 or of floats in 0..1, or paths.
        maps: For each method, maps (N, K, h, w) of the K texts.
        texts: The K texts.
        title: Title above the grid.
        shared: Whether all maps of a method share one scale, with a color bar.
        diverging: Whether, with sign "range", maps of methods that give values of both signs are
            drawn with sign "all": two colors around zero, on a symmetric scale.
        notes: Notes below panels: for "image" and for methods, a note for each image and text.
        sign: As for `visualize_attribution`; "range" suits methods that differ in where zero is.
        method: As for `visualize_attribution`.
        outlier_perc: Percentage of outliers, from 0 to below 100, as for `visualize_attribution`.
        cmap: Color map of heat maps; None chooses one by the sign.
        alpha_overlay: Opacity of "blended_heat_map", 0..1.
        transpose: Whether rows are methods, and columns images and texts.
        width: Width of the figure in inches, or "column", "page", "notebook" or "slide"; None
            stands for two inches per panel.

    Returns:
        A figure that is not registered with pyplot; `save_figure` writes it.

    Raises:
        ValueError: If there is no image, text or method, maps are not (N, K, h, w) or not finite,
            an option is unknown, or the width does not hold the columns.
    """
    _check(len(images), texts, maps)
    pixels = [np.asarray(load_image(image)) for image in images]
    view = View(method, sign, outlier_perc, cmap, alpha_overlay)
    views = {name: _view_of(values, view, diverging) for name, values in maps.items()}
    scales = (
        {name: shared_scale(values, views[name]) for name, values in maps.items()} if shared else {}
    )
    pairs = [(image, text) for image in range(len(pixels)) for text in range(len(texts))]
    rows, columns = [texts[text] for _, text in pairs], [IMAGE, *maps]
    bars = "below" if scales else ""
    if transpose:
        rows, columns, bars = columns, rows, bars and "right"
    aspect = max(map(panel_aspect, pixels))
    figure, axes = panel_grid(
        len(rows), len(columns), aspect, bool(title), bool(notes), width, bars
    )
    panels = axes.T if transpose else axes
    for (image, text), line in zip(pairs, panels, strict=True):
        show_image(line[0], pixels[image])
        for axis, (name, values) in zip(line[1:], maps.items(), strict=True):
            show_map(axis, pixels[image], values[image, text], views[name], scales.get(name))
        for axis, name in zip(line, [IMAGE, *maps], strict=True):
            _add_note(axis, notes[name][image][text] if notes and name in notes else "")
    _add_names(axes, rows, columns, aspect)
    for axis, name in zip(panels[-1, 1:], scales, strict=False):
        _add_bar(axis, views[name], scales[name], bars)
    if title:
        text_above, size = fit_text(title, figure.get_figwidth(), 12)
        figure.suptitle(text_above, fontsize=size, parse_math=False)
    return figure


def _check(n_images: int, texts: Sequence[str], maps: Mapping[str, Tensor]) -> None:
    if not (n_images and texts and maps):
        raise ValueError(
            f"got {n_images} images, {len(texts)} texts and {len(maps)} methods; pass at least one "
            "of each"
        )
    for name, values in maps.items():
        check_real(values, f"maps of {name}")
        if values.ndim != 4 or values.shape[:2] != (n_images, len(texts)):
            raise ValueError(
                f"maps of {name} have shape {tuple(values.shape)}, expected "
                f"({n_images}, {len(texts)}, h, w): images, texts, height and width"
            )


def _limits(values: Tensor, view: View) -> Limits:
    """Return the color limits of all maps of a method."""
    array = values.detach().cpu().double().numpy()
    check_drawable(array)
    return color_limits(array, view.sign, view.outlier_perc)


def _view_of(values: Tensor, view: View, diverging: bool) -> View:
    """Return the view with sign "all" if both signs matter: neither limit is below a fifth."""
    low, high = _limits(values, view)
    both = low < 0 < high and min(-low, high) >= 0.2 * max(-low, high)
    wanted = diverging and view.sign == "range" and view.method not in ONE_SIGN
    return replace(view, sign="all") if wanted and both else view


def shared_scale(values: Tensor, view: View) -> float | Limits | None:
    """Return the `scale` of `show_map` for maps that share one; None if they are constant."""
    low, high = _limits(values, view)
    if low == high:
        return None
    return (low, high) if view.sign == "range" else max(-low, high)


def _add_note(axis: Axes, note: str) -> None:
    """Write a note below a panel, before the note that it has."""
    text = ", ".join(filter(None, [note, axis.get_xlabel()]))
    side = panel_width(axis)
    label, size = fit_text(text, side, min(8.0, title_size(side)))
    axis.set_xlabel(label, fontsize=size, labelpad=2, parse_math=False)


def _add_names(
    axes: np.ndarray, rows: Sequence[str], columns: Sequence[str], aspect: float
) -> None:
    side = panel_width(axes[0, 0])
    for axis, name in zip(axes[0], columns, strict=True):
        text, size = fit_text(name, side, title_size(side))
        axis.set_title(text, fontsize=size, pad=4, parse_math=False)
    for axis, name in zip(axes[:, 0], rows, strict=True):
        text, size = fit_text(name, side * aspect, min(12.0, title_size(side)))
        axis.set_ylabel(text, fontsize=size, labelpad=2, parse_math=False)


def _add_bar(axis: Axes, view: View, scale: float | Limits | None, place: str) -> None:
    if scale is None:
        return
    limits = scale if isinstance(scale, tuple) else limits_of_sign(scale, view.sign)
    colors = view.colors(limits)
    if colors is not None:
        add_bar(axis, colors, place)
