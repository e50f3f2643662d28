"""Figures of attributions: a thin layer over `captum.attr.visualization`.

Captum draws its own views of a map. This package adds contours and masks, grids of maps on shared
scales, legends, color-blind-safe palettes, and files that are reproducible byte for byte.
"""

from captum_clip_surgery.visualization._attribution import show_map, visualize_attribution
from captum_clip_surgery.visualization._charts import bar_figure
from captum_clip_surgery.visualization._grids import compare_figure
from captum_clip_surgery.visualization._images import (
    downsample,
    pale_gray,
    panel_aspect,
    show_image,
)
from captum_clip_surgery.visualization._labels import (
    add_legend,
    label_color,
    labels_figure,
    show_labels,
    winner_figure,
)
from captum_clip_surgery.visualization._layout import (
    WIDTHS,
    fit_text,
    image_pair,
    panel_grid,
    panel_width,
    title_size,
)
from captum_clip_surgery.visualization._saving import FORMATS, save_figure
from captum_clip_surgery.visualization._scales import COLORS, SIGNS
from captum_clip_surgery.visualization._views import VIEWS, View

__all__ = [
    "COLORS",
    "FORMATS",
    "SIGNS",
    "VIEWS",
    "WIDTHS",
    "View",
    "add_legend",
    "bar_figure",
    "compare_figure",
    "downsample",
    "fit_text",
    "image_pair",
    "label_color",
    "labels_figure",
    "pale_gray",
    "panel_aspect",
    "panel_grid",
    "panel_width",
    "save_figure",
    "show_image",
    "show_labels",
    "show_map",
    "title_size",
    "visualize_attribution",
    "winner_figure",
]
