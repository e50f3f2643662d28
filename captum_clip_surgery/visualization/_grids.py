"""Grids of maps: texts by methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from torch import Tensor

from captum_clip_surgery._utils.tensors import check_real
from captum_clip_surgery.preprocessing import ImageInput, load_image
from captum_clip_surgery.visualization._attribution import show_map
from captum_clip_surgery.visualization._images import panel_aspect, show_image
from captum_clip_surgery.visualization._layout import (
    LINE,
    POINTS,
    RIGHT,
    add_bar,
    add_lead,
    fit_text,
    panel_grid,
    panel_height,
    panel_width,
    title_size,
)
from captum_clip_surgery.visualization._scales import AUTO, format_limits
from captum_clip_surgery.visualization._style import MapStyle
from captum_clip_surgery.visualization._views import View

#: Title of the panels that show the images.
IMAGE = "image"
#: Which maps share a color scale: those of a method, those of the figure, or none.
SCALES = ("method", "figure", "map")
#: Size of notes in points.
NOTE_SIZE = 8.0


def compare_figure(
    images: Sequence[ImageInput],
    maps: Mapping[str, Tensor],
    texts: Sequence[str],
    title: str = "",
    notes: Mapping[str, Sequence[Sequence[str]]] | None = None,
    *,
    text_notes: Sequence[Sequence[str]] | None = None,
    scales: str = "method",
    sign: str = AUTO,
    method: str = "blended_heat_map",
    outlier_perc: float = 2.0,
    cmap: str | Colormap | None = None,
    alpha_overlay: float = 0.7,
    transpose: bool = False,
    width: float | str | None = None,
) -> Figure:
    """Draw maps side by side: one row per image and text, one column per method, or transposed.

    All maps of a method have one color scale, so that a text that the image does not show stays
    pale; a color bar shows its values.

    Args:
        images: N PIL images, arrays (H, W, 3) of uint8 or of floats in 0..1, or paths.
        maps: For each method, maps (N, K, h, w) of the K texts.
        texts: The K texts.
        title: Title above the grid.
        notes: For methods, a note below the panel of each image and text.
        text_notes: For each image and text, a note next to the text's name, such as its cosine.
        scales: "method" for one color scale for all maps of a method, "figure" for one for all
            maps, or "map" for one for each map, whose limits are noted below it.
        sign: As for `visualize_attribution`; or "auto": methods whose maps have both signs are
            drawn with "all", two colors around zero, and others with "range", from the lowest value
            to the highest. One percent of the pixels is cut off on either side of "range".
        method: As for `visualize_attribution`.
        outlier_perc: Percentage of outliers, from 0 to below 100, as for `visualize_attribution`.
        cmap: Color map of heat maps; None chooses one by the sign.
        alpha_overlay: Opacity of "blended_heat_map", 0..1.
        transpose: Whether rows are methods, and columns images and texts.
        width: Width of the figure in inches, or "column", "page", "notebook" or "slide"; None
            means two inches per panel.

    Returns:
        A figure that is not registered with pyplot; `save_figure` writes it.

    Raises:
        ValueError: If there is no image, text or method, maps are not (N, K, h, w) or not finite,
            an option is unknown, or the width does not hold the columns.
    """
    _check(len(images), texts, maps)
    pixels = [np.asarray(load_image(image)) for image in images]
    view = View(method, outlier_perc=outlier_perc, cmap=cmap, alpha_overlay=alpha_overlay)
    styles = _styles(maps, view, sign, scales)
    pairs = [(image, text) for image in range(len(pixels)) for text in range(len(texts))]
    lead, bars = ("above", "right") if transpose else ("left", "below")
    figure, axes = panel_grid(
        *((len(maps), len(pairs)) if transpose else (len(pairs), len(maps))),
        max(map(panel_aspect, pixels)),
        bool(title),
        bool(notes) or scales == "map",
        width,
        bars if scales != "map" else "",
        lead,
    )
    panels = axes.T if transpose else axes
    for (image, text), line in zip(pairs, panels, strict=True):
        for axis, (name, values) in zip(line, maps.items(), strict=True):
            one, style = values[image, text], styles[name]
            show_map(axis, pixels[image], one, style.view, style.scale)
            limits = format_limits(style.limits(one)) if scales == "map" else ""
            note = notes[name][image][text] if notes and name in notes else ""
            _add_note(axis, note, limits)
    beside = [text_notes[i][t] if text_notes else "" for i, t in pairs]
    names = [texts[text] for _, text in pairs]
    _name_columns(list(axes[0]), names if transpose else list(maps), beside if transpose else ())
    _name_rows(list(axes[:, 0]), list(maps) if transpose else names, () if transpose else beside)
    for image, line in enumerate(panels[:: len(texts)]):
        axis = add_lead(line[0], lead)
        show_image(axis, pixels[image])
        if image == 0:
            _name_rows([axis], [IMAGE]) if transpose else _name_columns([axis], [IMAGE])
    for axis, name in zip(panels[-1], maps, strict=True):
        if scales == "method" or (scales == "figure" and axis is panels[-1, -1]):
            colors = styles[name].colors()
            if colors is not None:
                add_bar(axis, colors, bars)
    if title:
        text_above, size = fit_text(title, figure.get_figwidth(), 12)
        top = 1 - RIGHT / figure.get_figheight()
        figure.suptitle(text_above, y=top, fontsize=size, parse_math=False)
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


def _styles(maps: Mapping[str, Tensor], view: View, sign: str, scales: str) -> dict[str, MapStyle]:
    """Return the style of each method's maps."""
    if scales not in SCALES:
        raise ValueError(f"scales must be one of {', '.join(SCALES)}, got {scales!r}")
    if scales == "figure":
        together = torch.cat([values.detach().cpu().double().flatten() for values in maps.values()])
        return dict.fromkeys(maps, MapStyle.of(together, view, sign))
    shared = scales == "method"
    return {name: MapStyle.of(values, view, sign, shared) for name, values in maps.items()}


def _add_note(axis: Axes, *notes: str) -> None:
    """Write notes below a panel, before the note that it has."""
    text = ", ".join(filter(None, [*notes, axis.get_xlabel()]))
    side = panel_width(axis)
    label, size = fit_text(text, side, min(NOTE_SIZE, title_size(side)))
    axis.set_xlabel(label, fontsize=size, labelpad=2, parse_math=False)


def _name_columns(axes: Sequence[Axes], names: Sequence[str], notes: Sequence[str] = ()) -> None:
    """Write names above panels, over notes if there are any."""
    side = panel_width(axes[0])
    for index, (axis, name) in enumerate(zip(axes, names, strict=True)):
        note = notes[index] if notes else ""
        text, size = fit_text(name, side, title_size(side))
        pad = 4 + LINE * POINTS * bool(note)
        axis.set_title(text, fontsize=size, pad=pad, parse_math=False)
        if note:
            _annotate(axis, note, side, (0.5, 1), (0, 3), ha="center", va="bottom")


def _name_rows(axes: Sequence[Axes], names: Sequence[str], notes: Sequence[str] = ()) -> None:
    """Write names to the left of panels, before notes if there are any."""
    side = panel_width(axes[0])
    height = panel_height(axes[0])
    for index, (axis, name) in enumerate(zip(axes, names, strict=True)):
        note = notes[index] if notes else ""
        text, size = fit_text(name, height, min(12.0, title_size(side)))
        pad = 2 + LINE * POINTS * bool(note)
        axis.set_ylabel(text, fontsize=size, labelpad=pad, parse_math=False)
        if note:
            place = {"ha": "right", "va": "center", "rotation": 90}
            _annotate(axis, note, height, (0, 0.5), (-2, 0), **place)


def _annotate(
    axis: Axes,
    note: str,
    length: float,
    at: tuple[float, float],
    offset: tuple[float, float],
    **options: Any,
) -> None:
    """Write a note at a place of a panel (0..1), off it by an offset in points."""
    text, size = fit_text(note, length, NOTE_SIZE)
    drawn = axis.annotate(
        text, at, offset, "axes fraction", "offset points", fontsize=size, **options
    )
    drawn.set_parse_math(False)
