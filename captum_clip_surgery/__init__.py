"""CLIP Surgery for Captum: explain what CLIP sees, and where.

See `ZeroShotClassifier` for a CLIP and its texts as an image classifier, `CLIPSurgery` and
`LayerCLIPSurgery` for the attributions, `compare` for methods side by side.
"""

from captum_clip_surgery import functional
from captum_clip_surgery.attr.attention import (
    AttentionRelevance,
    AttentionRollout,
    LayerAttentionRelevance,
    LayerAttentionRollout,
    LayerRawAttention,
    RawAttention,
)
from captum_clip_surgery.attr.clip_surgery import (
    CLIPSimilarity,
    CLIPSurgery,
    FeatureCLIPSurgery,
    LayerCLIPSimilarity,
    LayerCLIPSurgery,
    LayerFeatureCLIPSurgery,
)
from captum_clip_surgery.attr.dense import (
    GEM,
    NACLIP,
    SCLIP,
    ClearCLIP,
    LayerClearCLIP,
    LayerGEM,
    LayerMaskCLIP,
    LayerNACLIP,
    LayerSCLIP,
    MaskCLIP,
)
from captum_clip_surgery.attr.gradient import (
    GradECLIP,
    LayerGradECLIP,
    LayerLeGrad,
    LayerTokenGradCam,
    LeGrad,
    TokenGradCam,
)
from captum_clip_surgery.attr.registry import METHODS
from captum_clip_surgery.attr.words import WordScores, word_scores
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.comparison import Comparison, compare
from captum_clip_surgery.diagnostics import TowerReport, tower_report
from captum_clip_surgery.models.catalog import ModelEntry, list_models
from captum_clip_surgery.models.text.templates import TEMPLATES

__version__ = "0.1.0"

__all__ = [
    "GEM",
    "METHODS",
    "NACLIP",
    "SCLIP",
    "TEMPLATES",
    "AttentionRelevance",
    "AttentionRollout",
    "CLIPSimilarity",
    "CLIPSurgery",
    "ClearCLIP",
    "Comparison",
    "FeatureCLIPSurgery",
    "GradECLIP",
    "LayerAttentionRelevance",
    "LayerAttentionRollout",
    "LayerCLIPSimilarity",
    "LayerCLIPSurgery",
    "LayerClearCLIP",
    "LayerFeatureCLIPSurgery",
    "LayerGEM",
    "LayerGradECLIP",
    "LayerLeGrad",
    "LayerMaskCLIP",
    "LayerNACLIP",
    "LayerRawAttention",
    "LayerSCLIP",
    "LayerTokenGradCam",
    "LeGrad",
    "MaskCLIP",
    "ModelEntry",
    "RawAttention",
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
