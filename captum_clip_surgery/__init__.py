"""CLIP Surgery for Captum: explain what CLIP sees, and where.

See `ZeroShotClassifier` for a CLIP and its texts as an image classifier, `ClipSurgery` and
`LayerClipSurgery` for the attributions, `compare` for methods side by side.
"""

from captum_clip_surgery import functional
from captum_clip_surgery.catalog import ModelEntry, list_models
from captum_clip_surgery.checkup import TowerReport, tower_report
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.comparison import Comparison, compare
from captum_clip_surgery.methods.attention import (
    AttentionRelevance,
    AttentionRollout,
    GradEclip,
    LayerAttentionRelevance,
    LayerAttentionRollout,
    LayerGradEclip,
    LayerLeGrad,
    LayerRawAttention,
    LayerTokenGradCam,
    LeGrad,
    RawAttention,
    TokenGradCam,
)
from captum_clip_surgery.methods.dense import (
    ClearClip,
    Gem,
    LayerClearClip,
    LayerGem,
    LayerMaskClip,
    LayerNaClip,
    LayerSclip,
    MaskClip,
    NaClip,
    Sclip,
)
from captum_clip_surgery.methods.words import WordScores, word_scores
from captum_clip_surgery.registry import METHODS
from captum_clip_surgery.surgery import (
    ClipSimilarity,
    ClipSurgery,
    FeatureClipSurgery,
    LayerClipSimilarity,
    LayerClipSurgery,
    LayerFeatureClipSurgery,
)
from captum_clip_surgery.texts import TEMPLATES

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "TEMPLATES",
    "AttentionRelevance",
    "AttentionRollout",
    "ClearClip",
    "ClipSimilarity",
    "ClipSurgery",
    "Comparison",
    "FeatureClipSurgery",
    "Gem",
    "GradEclip",
    "LayerAttentionRelevance",
    "LayerAttentionRollout",
    "LayerClearClip",
    "LayerClipSimilarity",
    "LayerClipSurgery",
    "LayerFeatureClipSurgery",
    "LayerGem",
    "LayerGradEclip",
    "LayerLeGrad",
    "LayerMaskClip",
    "LayerNaClip",
    "LayerRawAttention",
    "LayerSclip",
    "LayerTokenGradCam",
    "LeGrad",
    "MaskClip",
    "ModelEntry",
    "NaClip",
    "RawAttention",
    "Sclip",
    "TokenGradCam",
    "TowerReport",
    "WordScores",
    "ZeroShotClassifier",
    "compare",
    "functional",
    "list_models",
    "tower_report",
    "word_scores",
]
