"""Measures of explanations: functions, accumulators over many pairs, and torchmetrics classes.

`metrics.functional` has the functions of plain tensors, re-exported here. The torchmetrics classes
are in `metrics.modules`, which is not imported here because torchmetrics is optional.
"""

from captum_clip_surgery.metrics._alone import Specificity, draw_absent
from captum_clip_surgery.metrics._dependence import specificity
from captum_clip_surgery.metrics._faithfulness import insertion_deletion
from captum_clip_surgery.metrics._pairs import Localization, PairMeasures, localization
from captum_clip_surgery.metrics._points import PointMeasures, PointResult
from captum_clip_surgery.metrics._sanity import Randomization, flag_insensitive, randomization
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
