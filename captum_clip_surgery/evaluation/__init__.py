"""Methods measured against ground truth: scenes of the embedded model, and data sets on disk."""

from captum_clip_surgery.evaluation.datasets import Evaluation, evaluate
from captum_clip_surgery.evaluation.protocol import TASKS, Protocol, View
from captum_clip_surgery.evaluation.scenes import MEASURES, evaluate_scenes

__all__ = ["MEASURES", "TASKS", "Evaluation", "Protocol", "View", "evaluate", "evaluate_scenes"]
