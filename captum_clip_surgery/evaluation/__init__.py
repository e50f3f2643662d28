"""Evaluation of methods against ground truth: on data sets, and on scenes of the embedded model."""

from captum_clip_surgery.evaluation._store import StatisticsStore
from captum_clip_surgery.evaluation.protocol import Protocol, View
from captum_clip_surgery.evaluation.results import Result, chart, to_markdown
from captum_clip_surgery.evaluation.runner import Evaluation, evaluate
from captum_clip_surgery.evaluation.scenes import evaluate_scenes

__all__ = [
    "Evaluation",
    "Protocol",
    "Result",
    "StatisticsStore",
    "View",
    "chart",
    "evaluate",
    "evaluate_scenes",
    "to_markdown",
]
