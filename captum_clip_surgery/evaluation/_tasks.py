"""The tasks that can be evaluated."""

from __future__ import annotations

from collections.abc import Mapping

from captum_clip_surgery.evaluation._evaluators import (
    Evaluator,
    LocalizationEvaluator,
    PointEvaluator,
    RecognitionEvaluator,
    SegmentationEvaluator,
)
from captum_clip_surgery.evaluation._faithfulness import FaithfulnessEvaluator
from captum_clip_surgery.evaluation._grids import GridEvaluator
from captum_clip_surgery.evaluation._specificity import SpecificityEvaluator

#: The tasks that can be evaluated, by name.
EVALUATORS: Mapping[str, type[Evaluator]] = {
    "localization": LocalizationEvaluator,
    "segmentation": SegmentationEvaluator,
    "recognition": RecognitionEvaluator,
    "points": PointEvaluator,
    "faithfulness": FaithfulnessEvaluator,
    "grid": GridEvaluator,
    "specificity": SpecificityEvaluator,
}
