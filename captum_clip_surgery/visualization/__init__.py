"""Figures of attributions: a thin layer over `captum.attr.visualization`.

Captum draws its own views of a map. This package adds contours and masks, grids of maps on shared
scales, legends, color-blind-safe palettes, and files that are reproducible byte for byte.
"""

from captum_clip_surgery.visualization._attribution import visualize_attribution
from captum_clip_surgery.visualization._grids import compare_figure
from captum_clip_surgery.visualization._labels import winner_figure
from captum_clip_surgery.visualization._overlay import overlay, show
from captum_clip_surgery.visualization._saving import save_figure

__all__ = [
    "compare_figure",
    "overlay",
    "save_figure",
    "show",
    "visualize_attribution",
    "winner_figure",
]
