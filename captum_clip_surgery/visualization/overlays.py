"""One map over one picture: the views of Captum, contours and masks."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from captum_clip_surgery.preprocessing import ImageInput, load_image
from captum_clip_surgery.visualization.layout import fit, inches, side_of, type_size
from captum_clip_surgery.visualization.pictures import (
    bare,
    drawn_aspect,
    greyed,
    show_picture,
    shrunk,
)
from captum_clip_surgery.visualization.scales import Limits, as_map, scaled
from captum_clip_surgery.visualization.views import COLOURED, VIEWS, View

PANEL = 4.0  # inches
BAR, TITLE, NOTE = 0.75, 0.3, 0.1  # room for each, in inches


def visualize_attribution(
    attribution: Tensor | np.ndarray,
    picture: ImageInput | None = None,
    method: str = "blended_heat_map",
    sign: str = "all",
    outlier_perc: float = 2.0,
    cmap: str | Colormap | None = None,
    alpha_overlay: float = 0.7,
    scale: float | Limits | None = None,
    show_colorbar: bool = False,
    title: str | None = None,
    axis: Axes | None = None,
    *,
    threshold: float = 0.5,
    width: float | str | None = None,
) -> Figure:
    """An attribution over its picture, by the conventions of `captum.attr.visualization`.

    Args:
        attribution: (h, w), (1, h, w), (1, 1, h, w), (3, H, W) or (1, 3, H, W), channels summed as
            Captum does, then enlarged bilinearly to the picture.
        picture: a PIL image, an array (H, W, 3) of uint8 or of floats in 0..1, or a path. Only
            "heat_map" does without.
        method: Captum's "heat_map", "blended_heat_map" (over the greyed picture), "masked_image"
            (the picture times the map), "alpha_scaling" (the picture as opaque as the map is
            strong), "original_image"; and "contour" (lines at a quarter, a half and three quarters
            of the scale) and "mask" (the picture in colours where the map reaches `threshold`,
            with an outline, and pale grey elsewhere).
        sign: Captum's "all", "positive", "negative" or "absolute_value"; and "range", from the
            lowest value to the highest wherever zero is. The views of one strength, which are
            "masked_image", "alpha_scaling" and "mask", refuse "all".
        outlier_perc: percent, from 0 to below 100. The strongest colour is the absolute value above
            which lies so much of the absolute sum, as in Captum; for "range" half as many percent
            of the pixels may saturate on either side.
        cmap: colours of heat maps; None is diverging for "all" and sequential otherwise, safe for
            colour-blind readers.
        alpha_overlay: of "blended_heat_map", how opaque colours are, 0..1.
        scale: the value drawn strongest, above 0, instead of `outlier_perc`, so that figures
            compare; for "range" (low, high).
        show_colorbar: a bar with the attribution's own values.
        title: above the map.
        axis: where to draw; None is a new figure.
        threshold: of "mask", a share of the scale, 0..1.
        width: of a new figure, in inches or by its name in `WIDTHS`; None is four inches.

    Returns:
        The figure, free of pyplot where it is new. A map without anything to draw, such as an
        all-zero one, shows the picture and says so below it.

    Raises:
        TypeError, ValueError: an attribution of another kind or shape, or with NaN or infinity;
            an option that is not known, out of its range or does not fit the others.

    Source: Kokhlikyan et al., "Captum: A unified and generic model interpretability library for
    PyTorch" (arXiv 2009.07896), `visualize_image_attr`.

    Example::

        >>> import torch
        >>> ramp = torch.arange(6.0).reshape(2, 3) - 2
        >>> figure = visualize_attribution(ramp, method="heat_map", outlier_perc=0)
        >>> figure.axes[0].images[0].get_clim()
        (-3.0, 3.0)
    """
    view = View(method, sign, outlier_perc, cmap, alpha_overlay, threshold)
    if show_colorbar and method not in COLOURED:
        raise ValueError(
            f"method {method!r} has no colours for a bar; {', '.join(COLOURED)} have, or leave "
            "show_colorbar out"
        )
    values = as_map(attribution)
    shown = None if picture is None else np.asarray(load_image(picture))
    if axis is None:
        aspect = drawn_aspect(values if shown is None else shown)
        axis = _new_axis(aspect, width, BAR * show_colorbar, TITLE * bool(title))
    elif width is not None:
        raise ValueError(f"width {width!r} is of a new figure, and an axis was given; give one")
    figure = cast(Figure, axis.figure)
    if shown is None and method != "heat_map":
        raise ValueError(f"method {method!r} needs a picture; give one, or method='heat_map'")
    colours = show_map(axis, shown, values, view, scale)
    if show_colorbar and colours is not None:
        bar = figure.colorbar(colours, ax=axis, shrink=0.8, ticks=MaxNLocator(5))
        bar.ax.tick_params(labelsize=8)
    if title:
        side = side_of(axis)
        text, size = fit(title, side, type_size(side))
        axis.set_title(text, fontsize=size, parse_math=False)
    return figure


def _new_axis(aspect: float, width: float | str | None, right: float, top: float) -> Axes:
    """On a figure with room for a bar on the right and a title on top."""
    whole = PANEL if width is None else inches(width)
    height = max(0.2, whole - right) * aspect + top + NOTE
    figure = Figure(figsize=(whole, height), layout="compressed")
    return figure.subplots()


def show_map(
    axis: Axes,
    picture: np.ndarray | None,
    attribution: Tensor | np.ndarray,
    view: View | None = None,
    scale: float | Limits | None = None,
) -> ScalarMappable | None:
    """A map drawn on an axis; without anything to draw, the picture, and a word below it.

    Args:
        axis: where.
        picture: (H, W, 3), uint8 or floats in 0..1; None for a heat map alone.
        attribution: see `visualize_attribution`.
        view: how; None is from its lowest value (dark) to its highest (bright).
        scale: see `visualize_attribution`.

    Returns:
        The colours, for a bar; None where there are none.

    Raises:
        TypeError, ValueError: see `visualize_attribution`.
    """
    view = view or View()
    values = as_map(attribution)
    if picture is not None:
        small = shrunk(picture)
        values = _enlarged(values, (small.shape[0], small.shape[1]))
    found = scaled(values, view.sign, view.outlier_perc, scale)
    if view.method != "original_image" and found.note:
        axis.set_xlabel(found.note, fontsize=8, labelpad=2)
    if found.empty:
        place = np.ones((*values.shape, 3)) if picture is None else picture
        show_picture(axis, place if view.method == "original_image" else greyed(place), place)
        return None
    VIEWS[view.method](axis, picture, found, view)
    bare(axis)
    return view.colours(found.limits)


def _enlarged(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    grid = torch.from_numpy(values)[None, None]
    larger = F.interpolate(grid, size, mode="bilinear", align_corners=False)[0, 0].numpy()
    # Rounding must not give a constant map a range.
    return np.clip(larger, values.min(), values.max())
