"""Evaluation of methods against ground truth: on data sets, and on scenes of the embedded model."""

from captum_clip_surgery.evaluation._protocol import Protocol, View
from captum_clip_surgery.evaluation._results import (
    Result,
    chart,
    read_results,
    to_markdown,
    write_results,
)
from captum_clip_surgery.evaluation._runner import Evaluation, evaluate
from captum_clip_surgery.evaluation._scenes import evaluate_scenes
from captum_clip_surgery.evaluation._store import StatisticsStore

__all__ = [
    "Evaluation",
    "Protocol",
    "Result",
    "StatisticsStore",
    "View",
    "chart",
    "evaluate",
    "evaluate_scenes",
    "read_results",
    "to_markdown",
    "write_results",
]
