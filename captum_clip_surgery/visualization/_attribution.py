"""One map over one image."""

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
from captum_clip_surgery.visualization._images import (
    downsample,
    hide_frame,
    pale_gray,
    panel_aspect,
    show_image,
)
from captum_clip_surgery.visualization._layout import fit_text, inches, panel_width, title_size
from captum_clip_surgery.visualization._scales import Limits, ScaledMap, as_map, limits_for
from captum_clip_surgery.visualization._views import HEAT_MAPS, VIEWS, View

#: Width of a figure, and room for a color bar, a title and a note, in inches.
PANEL, BAR, TITLE, NOTE = 4.0, 0.75, 0.3, 0.1


def visualize_attribution(
    attribution: Tensor | np.ndarray,
    image: ImageInput | None = None,
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
) -> tuple[Figure, Axes]:
    """Draw an attribution over its image, by the conventions of `captum.attr.visualization`.

    Args:
        attribution: Attribution (h, w), (1, h, w), (1, 1, h, w), (3, H, W), (1, 3, H, W), or as
            Captum's functions take it, (H, W, 1) or (H, W, 3). Channels are summed as Captum does,
            then the map is upsampled bilinearly to the image.
        image: A PIL image, an array (H, W, 3) of uint8 or of floats in 0..1, or a path. Optional
            for "heat_map" only.
        method: Captum's "heat_map", "blended_heat_map" (over the image in pale gray),
            "masked_image" (the image times the map), "alpha_scaling" (the map as the image's
            opacity) or "original_image"; "contour" (lines at a quarter, a half and three quarters
            of the scale) or "mask" (the image where the map reaches `threshold`, outlined, and pale
            gray elsewhere).
        sign: Captum's "all", "positive", "negative" or "absolute_value"; or "range", from the
            lowest value to the highest wherever zero is. "masked_image", "alpha_scaling" and "mask"
            cannot show "all".
        outlier_perc: Percentage from 0 to below 100. The strongest color stands for the absolute
            value above which this percentage of the absolute sum lies, as in Captum; for "range",
            half this percentage of the pixels may saturate on either side.
        cmap: Color map of heat maps; None chooses a color-blind-safe one, diverging for "all" and
            sequential otherwise.
        alpha_overlay: Opacity of the colors of "blended_heat_map", 0..1.
        scale: The value drawn strongest, above 0, instead of `outlier_perc`, so that figures
            compare; for "range" a pair (low, high).
        show_colorbar: Whether to add a color bar with the attribution's own values.
        title: Title above the map.
        axis: The axis to draw on; None creates a figure.
        threshold: Lower bound of "mask" as a share of the scale, 0..1.
        width: Width of a new figure in inches, or "column", "page", "notebook" or "slide"; None
            means four inches.

    Returns:
        The figure and the axis, as Captum's function does; a new figure is not registered with
        pyplot. For a map with nothing to draw, such as an all-zero one, it shows the image with a
        note.

    Raises:
        TypeError: If the attribution is not a real tensor or array.
        ValueError: If the attribution has another shape or is not finite, or an option is unknown,
            out of range or does not fit the others.

    References:
        Kokhlikyan et al.: Captum: A unified and generic model interpretability library for PyTorch
        (arXiv 2009.07896), `visualize_image_attr`.

    Example::

        >>> import torch
        >>> ramp = torch.arange(6.0).reshape(2, 3) - 2
        >>> figure, axis = visualize_attribution(ramp, method="heat_map", outlier_perc=0)
        >>> axis.images[0].get_clim()
        (-3.0, 3.0)
    """
    view = View(method, sign, outlier_perc, cmap, alpha_overlay, threshold)
    if show_colorbar and method not in HEAT_MAPS:
        raise ValueError(
            f"show_colorbar needs method {' or '.join(HEAT_MAPS)}, got {method!r}, which has no "
            "colors"
        )
    values = as_map(attribution)
    pixels = None if image is None else np.asarray(load_image(image))
    if axis is None:
        aspect = panel_aspect(values if pixels is None else pixels)
        axis = _new_axis(aspect, width, BAR * show_colorbar, TITLE * bool(title))
    elif width is not None:
        raise ValueError(f"width is for new figures, got width={width!r} with an axis; pass one")
    figure = cast(Figure, axis.figure)
    if pixels is None and method != "heat_map":
        raise ValueError(f"method {method!r} needs an image; pass one, or method='heat_map'")
    colors = show_map(axis, pixels, values, view, scale)
    if show_colorbar and colors is not None:  # Captum's bar shows normalized values
        bar = figure.colorbar(colors, ax=axis, shrink=0.8, ticks=MaxNLocator(5))
        bar.ax.tick_params(labelsize=8)
    if title:
        side = panel_width(axis)
        text, size = fit_text(title, side, title_size(side))
        axis.set_title(text, fontsize=size, parse_math=False)
    return figure, axis


def _new_axis(aspect: float, width: float | str | None, right: float, top: float) -> Axes:
    """Create a figure with room for a bar on the right and a title on top."""
    whole = PANEL if width is None else inches(width)
    height = max(0.2, whole - right) * aspect + top + NOTE
    figure = Figure(figsize=(whole, height), layout="compressed")
    return figure.subplots()


def show_map(
    axis: Axes,
    image: np.ndarray | None,
    attribution: Tensor | np.ndarray,
    view: View | None = None,
    scale: float | Limits | None = None,
) -> ScalarMappable | None:
    """Draw a map on an axis; for a map with nothing to draw, the image and a note below it.

    Args:
        axis: The axis to draw on.
        image: The image (H, W, 3), uint8 or floats in 0..1; None for a heat map only.
        attribution: An attribution of any shape that `visualize_attribution` draws.
        view: How to draw it; None means a blended heat map from the lowest value (dark) to the
            highest (bright).
        scale: The value drawn strongest, above 0; for sign "range" a pair (low, high).

    Returns:
        The colors, for a bar, or None if there are none.

    Raises:
        TypeError: If the attribution is not a real tensor or array.
        ValueError: If the attribution has another shape or is not finite, or the scale does not fit
            the sign.
    """
    view = view or View()
    values = as_map(attribution)
    limits = limits_for(values, view.sign, view.outlier_perc, scale)
    if image is not None:
        height, width = downsample(image).shape[:2]
        values = upsample(values, (height, width))
    scaled = ScaledMap.of(values, view.sign, limits)
    if view.method != "original_image" and scaled.note:
        axis.set_xlabel(scaled.note, fontsize=8, labelpad=2)
    if scaled.is_empty:
        frame = np.ones((*values.shape, 3)) if image is None else image
        show_image(axis, frame if view.method == "original_image" else pale_gray(frame), frame)
        return None
    VIEWS[view.method](axis, image, scaled, view)
    hide_frame(axis)
    return view.colors(scaled.limits)


def upsample(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a map (h, w) of float64 at a (height, width), bilinearly upsampled."""
    grid = torch.from_numpy(values)[None, None]
    larger = F.interpolate(grid, size, mode="bilinear", align_corners=False)[0, 0].numpy()
    # Rounding must not give a constant map a range.
    return np.clip(larger, values.min(), values.max())
