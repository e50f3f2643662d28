"""Figures of attributions: a thin layer over `captum.attr.visualization`.

Captum draws its own views of a map. This package adds contours and masks, grids of maps on shared
scales, legends, color-blind-safe palettes, and files that are reproducible byte for byte.
"""

from captum_clip_surgery.visualization._attribution import visualize_attribution
from captum_clip_surgery.visualization._grids import compare_figure
from captum_clip_surgery.visualization._labels import winner_figure
from captum_clip_surgery.visualization._layout import WIDTHS
from captum_clip_surgery.visualization._saving import FORMATS, save_figure
from captum_clip_surgery.visualization._scales import SIGNS
from captum_clip_surgery.visualization._views import VIEWS, View

__all__ = [
    "FORMATS",
    "SIGNS",
    "VIEWS",
    "WIDTHS",
    "View",
    "compare_figure",
    "save_figure",
    "visualize_attribution",
    "winner_figure",
]
