"""Measures of explanations: functions, accumulators over many pairs, and torchmetrics classes.

`metrics.functional` has the functions of plain tensors, re-exported here. The torchmetrics classes
are in `metrics.modules`, which is not imported here because torchmetrics is optional.
"""

from captum_clip_surgery.metrics.dependence import Specificity, draw_absent, specificity
from captum_clip_surgery.metrics.faithfulness import insertion_deletion
from captum_clip_surgery.metrics.functional import (
    energy_pointing_game,
    grid_pointing_game,
    image_specificity,
    iou_curve,
    pixel_auroc,
    pixel_average_precision,
    pointing_game,
    prepare,
    score_contrast,
    text_specificity,
)
from captum_clip_surgery.metrics.pairs import Localization, PairMeasures, localization
from captum_clip_surgery.metrics.points import PointMeasures, PointResult
from captum_clip_surgery.metrics.sanity import Randomization, flag_insensitive, randomization

__all__ = [
    "Localization",
    "PairMeasures",
    "PointMeasures",
    "PointResult",
    "Randomization",
    "Specificity",
    "draw_absent",
    "energy_pointing_game",
    "flag_insensitive",
    "grid_pointing_game",
    "image_specificity",
    "insertion_deletion",
    "iou_curve",
    "localization",
    "pixel_auroc",
    "pixel_average_precision",
    "pointing_game",
    "prepare",
    "randomization",
    "score_contrast",
    "specificity",
    "text_specificity",
]
