"""Measures of explanations: plain functions, and what accumulates them over many pairs.

`modules` has the same as torchmetrics classes; nothing here imports it, for it needs torchmetrics.
"""

from captum_clip_surgery.metrics.energy import energy_pointing_game, grid_pointing_game
from captum_clip_surgery.metrics.faithfulness import insertion_deletion
from captum_clip_surgery.metrics.localization import iou_curve, pointing_game, score_contrast
from captum_clip_surgery.metrics.maps import prepare
from captum_clip_surgery.metrics.pairs import Localization, PairMeasures, localization
from captum_clip_surgery.metrics.ranking import pixel_auroc, pixel_average_precision
from captum_clip_surgery.metrics.sanity import Randomization, flag_insensitive, randomization
from captum_clip_surgery.metrics.segmentation import confusion, pixel_accuracy, segmentation_miou

__all__ = [
    "Localization",
    "PairMeasures",
    "Randomization",
    "confusion",
    "energy_pointing_game",
    "flag_insensitive",
    "grid_pointing_game",
    "insertion_deletion",
    "iou_curve",
    "localization",
    "pixel_accuracy",
    "pixel_auroc",
    "pixel_average_precision",
    "pointing_game",
    "prepare",
    "randomization",
    "score_contrast",
    "segmentation_miou",
]
