"""CLIP Surgery for Captum: explain what CLIP sees, and where.

See `ZeroShotClassifier` for a CLIP and its texts as an image classifier, `ClipSurgery` and
`LayerClipSurgery` for the attributions.
"""

from captum_clip_surgery import functional
from captum_clip_surgery.catalog import ModelEntry, list_models
from captum_clip_surgery.checkup import TowerReport, tower_report
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.prompts import TEMPLATES
from captum_clip_surgery.surgery import (
    ClipSimilarity,
    ClipSurgery,
    FeatureClipSurgery,
    LayerClipSimilarity,
    LayerClipSurgery,
    LayerFeatureClipSurgery,
)

__version__ = "0.1.0"

__all__ = [
    "TEMPLATES",
    "ClipSimilarity",
    "ClipSurgery",
    "FeatureClipSurgery",
    "LayerClipSimilarity",
    "LayerClipSurgery",
    "LayerFeatureClipSurgery",
    "ModelEntry",
    "TowerReport",
    "ZeroShotClassifier",
    "functional",
    "list_models",
    "tower_report",
]
