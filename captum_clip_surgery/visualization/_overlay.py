"""A map over its image as an array, and on the screen."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.colors import Colormap
from torch import Tensor

from captum_clip_surgery.preprocessing import ImageInput, load_image
from captum_clip_surgery.visualization._attribution import upsample, visualize_attribution
from captum_clip_surgery.visualization._images import in_pale_gray, panel_aspect
from captum_clip_surgery.visualization._scales import (
    AUTO,
    Limits,
    ScaledMap,
    as_map,
    limits_for,
    sign_of,
)
from captum_clip_surgery.visualization._views import View

#: Sides in inches of a figure on the screen: its width, and what its height adds to the image's.
WIDTH, MARGIN = 5.0, 0.3


def overlay(
    attribution: Tensor | np.ndarray,
    image: ImageInput,
    sign: str = AUTO,
    outlier_perc: float = 2.0,
    cmap: str | Colormap | None = None,
    alpha_overlay: float = 0.7,
    scale: float | Limits | None = None,
) -> np.ndarray:
    """Return the image with the colors of a map over it, pixel for pixel.

    The colors are those of `compare_figure` and of the command line: the image in pale gray, and
    over it the map, by default in two colors around zero if it has both signs and otherwise from
    its lowest value (dark) to its highest (bright).

    Args:
        attribution: One map, of any shape that `visualize_attribution` draws.
        image: A PIL image, an array (H, W, 3) of uint8 or of floats in 0..1, or a path.
        sign: Which values to draw, as for `compare_figure`.
        outlier_perc: Percentage of outliers, from 0 to below 100, as for `visualize_attribution`.
        cmap: Color map; None chooses a color-blind-safe one by the sign.
        alpha_overlay: Opacity of the colors, 0..1.
        scale: The value drawn strongest; for "range" a pair (low, high), so that several maps
            compare.

    Returns:
        Colors (H, W, 3), uint8, at the image's own size. A map with nothing to draw, such as an
        all-zero one, leaves the image in pale gray.

    Raises:
        TypeError: If the attribution is not a real tensor or array.
        ValueError: If the attribution has another shape or is not finite, or an option is unknown
            or out of range.

    Example::

        >>> drawn = overlay(np.eye(2), np.zeros((60, 80, 3), np.uint8))
        >>> drawn.shape, drawn.dtype
        ((60, 80, 3), dtype('uint8'))
    """
    values = as_map(attribution)
    sign = sign_of(values, sign, outlier_perc)
    view = View("blended_heat_map", sign, outlier_perc, cmap, alpha_overlay)
    pixels = np.asarray(load_image(image))
    height, width = pixels.shape[:2]
    limits = limits_for(values, sign, outlier_perc, scale)
    scaled = ScaledMap.of(upsample(values, (height, width)), sign, limits)
    drawn = in_pale_gray(pixels)
    colors = view.colors(scaled.limits)
    if colors is not None and not scaled.is_empty:
        heat = colors.to_rgba(scaled.values)[..., :3]
        drawn = alpha_overlay * heat + (1 - alpha_overlay) * drawn
    return np.rint(255 * drawn).astype(np.uint8)


def show(attribution: Tensor | np.ndarray, image: ImageInput, **options: Any) -> None:
    """Show a map over its image, with a color bar: in a notebook's output or a window.

    Args:
        attribution: One map, of any shape that `visualize_attribution` draws.
        image: A PIL image, an array (H, W, 3) of uint8 or of floats in 0..1, or a path.
        **options: Options of `visualize_attribution`, such as `title`. The default of `sign` is
            "auto", as for `compare_figure`.

    Raises:
        TypeError: If the attribution is not a real tensor or array, or an option is unknown.
        ValueError: If the attribution has another shape or is not finite, or an option is out of
            range.

    Example::

        >>> from captum_clip_surgery import LayerCLIPSurgery, ZeroShotClassifier
        >>> from captum_clip_surgery.demo import Scenes
        >>> scene = Scenes("test", 1, size=64)[0]
        >>> clip = ZeroShotClassifier.demo(scene.nouns)
        >>> maps = LayerCLIPSurgery(clip).attribute_all(clip.preprocess(scene.image))
        >>> show(maps[0, 0], scene.image, title=scene.nouns[0])  # doctest: +SKIP
    """
    from matplotlib import pyplot as plt  # chooses a backend, which other functions leave alone

    pixels = load_image(image)
    height = WIDTH * panel_aspect(np.asarray(pixels)) + MARGIN
    axis = plt.figure(figsize=(WIDTH, height), layout="compressed").subplots()
    settings: dict[str, Any] = {"sign": AUTO, "show_colorbar": True} | options
    percent = settings.get("outlier_perc", 2.0)
    settings["sign"] = sign_of(as_map(attribution), settings["sign"], percent)
    visualize_attribution(attribution, pixels, axis=axis, **settings)
    plt.show()
