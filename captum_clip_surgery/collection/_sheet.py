"""The images that a search found, with their maps, on one sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from captum_clip_surgery.attr import LayerCLIPSurgery
from captum_clip_surgery.attr._coverage import cover_image
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.collection._search import Hit
from captum_clip_surgery.visualization._attribution import show_map
from captum_clip_surgery.visualization._images import panel_aspect, show_image
from captum_clip_surgery.visualization._layout import add_bar, fit_text, panel_grid, panel_width
from captum_clip_surgery.visualization._style import MapStyle
from captum_clip_surgery.visualization._views import View

#: Number of images in a row, and of images that are explained at once.
COLUMNS, BATCH_SIZE = 5, 8


def contact_sheet(
    clip: ZeroShotClassifier, hits: Sequence[Hit], images: Sequence[Image.Image]
) -> Figure:
    """Draw images in order of rank, each above its map; all maps share one color scale.

    Args:
        clip: A classifier of the query alone.
        hits: The images' names and scores, best first.
        images: The images.

    Returns:
        A figure that is not registered with pyplot; `visualization.save_figure` writes it.
    """
    surgery = LayerCLIPSurgery(clip)
    maps = []
    with torch.no_grad():
        for start in range(0, len(images), BATCH_SIZE):
            batch = clip.preprocess(images[start : start + BATCH_SIZE])
            maps += list(cover_image(clip, surgery.attribute_all(batch), batch)[:, 0].cpu())
    pixels = [np.asarray(image) for image in images]
    columns = min(COLUMNS, len(images))
    rows = -(-len(images) // columns)
    aspect = max(map(panel_aspect, pixels))
    style = MapStyle.of(torch.cat([each.flatten() for each in maps]), View(), "range")
    figure, axes = panel_grid(2 * rows, columns, aspect, titled=True, noted=True, bars="right")
    for axis in axes.flat:
        axis.set_axis_off()
    for place, (hit, image, attribution) in enumerate(zip(hits, pixels, maps, strict=True)):
        row, column = divmod(place, columns)
        upper, lower = axes[2 * row : 2 * row + 2, column]
        show_image(upper, image)
        title = f"{place + 1}. {PurePath(hit.name).name} {hit.score:+.3f}"
        text, size = fit_text(title, panel_width(upper), 8)
        upper.set_title(text, fontsize=size, parse_math=False, pad=2)
        show_map(lower, image, attribution, style.view, style.scale)
    if (colors := style.colors()) is not None:
        add_bar(axes[1, -1], colors, "right")
    return figure
