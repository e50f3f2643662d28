"""Measures of explanations as functions of plain tensors.

Most take a map as `prepare` returns it, min-max normalized and resized to its mask.
"""

from captum_clip_surgery.metrics.functional._energy import energy_pointing_game, grid_pointing_game
from captum_clip_surgery.metrics.functional._localization import (
    iou_curve,
    pointing_game,
    score_contrast,
)
from captum_clip_surgery.metrics.functional._maps import prepare
from captum_clip_surgery.metrics.functional._ranking import pixel_auroc, pixel_average_precision
from captum_clip_surgery.metrics.functional._specificity import image_specificity, text_specificity

__all__ = [
    "energy_pointing_game",
    "grid_pointing_game",
    "image_specificity",
    "iou_curve",
    "pixel_auroc",
    "pixel_average_precision",
    "pointing_game",
    "prepare",
    "score_contrast",
    "text_specificity",
]
