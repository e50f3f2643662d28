"""Evaluation of methods against ground truth: on data sets, and on scenes of the embedded model."""

from captum_clip_surgery.evaluation._store import StatisticsStore
from captum_clip_surgery.evaluation.protocol import TASKS, Protocol, View
from captum_clip_surgery.evaluation.results import (
    ALL_COLUMNS,
    DEFAULT_COLUMNS,
    Result,
    chart,
    read,
    to_markdown,
    write,
    write_details,
)
from captum_clip_surgery.evaluation.runner import Evaluation, evaluate
from captum_clip_surgery.evaluation.scenes import MEASURES, evaluate_scenes

__all__ = [
    "ALL_COLUMNS",
    "DEFAULT_COLUMNS",
    "MEASURES",
    "TASKS",
    "Evaluation",
    "Protocol",
    "Result",
    "StatisticsStore",
    "View",
    "chart",
    "evaluate",
    "evaluate_scenes",
    "read",
    "to_markdown",
    "write",
    "write_details",
]
