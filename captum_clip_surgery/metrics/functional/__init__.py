"""Measures of explanations as functions of plain tensors.

Most take a map as `prepare` returns it, min-max normalized and resized to its mask.
"""

from captum_clip_surgery.metrics.functional._maps import prepare
from captum_clip_surgery.metrics.functional.energy import energy_pointing_game, grid_pointing_game
from captum_clip_surgery.metrics.functional.localization import (
    iou_curve,
    pointing_game,
    score_contrast,
)
from captum_clip_surgery.metrics.functional.points import point_confusion, point_iou
from captum_clip_surgery.metrics.functional.ranking import pixel_auroc, pixel_average_precision
from captum_clip_surgery.metrics.functional.segmentation import (
    confusion,
    pixel_accuracy,
    segmentation_miou,
)

__all__ = [
    "confusion",
    "energy_pointing_game",
    "grid_pointing_game",
    "iou_curve",
    "pixel_accuracy",
    "pixel_auroc",
    "pixel_average_precision",
    "point_confusion",
    "point_iou",
    "pointing_game",
    "prepare",
    "score_contrast",
    "segmentation_miou",
]
