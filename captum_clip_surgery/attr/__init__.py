"""Attribution methods: CLIP Surgery, and those to compare it with.

Every method is a Captum `Attribution`. Derive from `DualPathAttribution` to write a dense method of
your own, or from `PatchAttribution` to write any other.
"""

from captum_clip_surgery.attr._attention import (
    AttentionRelevance,
    AttentionRollout,
    LayerAttentionRelevance,
    LayerAttentionRollout,
    LayerRawAttention,
    RawAttention,
)
from captum_clip_surgery.attr._augmentation import TestTimeAugmentation
from captum_clip_surgery.attr._base import (
    InputShapeMixin,
    LayerShapeMixin,
    Method,
    PatchAttribution,
)
from captum_clip_surgery.attr._calibrated import (
    SCCLIP,
    SFP,
    LayerResCLIP,
    LayerSCCLIP,
    LayerSFP,
    ResCLIP,
)
from captum_clip_surgery.attr._clip_surgery import (
    CLIPSimilarity,
    CLIPSurgery,
    FeatureCLIPSurgery,
    LayerCLIPSimilarity,
    LayerCLIPSurgery,
    LayerFeatureCLIPSurgery,
)
from captum_clip_surgery.attr._dense import (
    GEM,
    NACLIP,
    SCLIP,
    ClearCLIP,
    CLIPtrase,
    LayerClearCLIP,
    LayerCLIPtrase,
    LayerGEM,
    LayerMaskCLIP,
    LayerNACLIP,
    LayerSCLIP,
    MaskCLIP,
)
from captum_clip_surgery.attr._direct_effect import DirectEffect, LayerDirectEffect
from captum_clip_surgery.attr._dual_path import DualPathAttribution
from captum_clip_surgery.attr._engine import attribute_many
from captum_clip_surgery.attr._gradient_methods import (
    GradECLIP,
    LayerGradECLIP,
    LayerLeGrad,
    LayerTokenGradCam,
    LeGrad,
    TokenGradCam,
)
from captum_clip_surgery.attr._gradients import TowerAttribution
from captum_clip_surgery.attr._registry import METHODS
from captum_clip_surgery.attr._words import WordScores, word_scores
from captum_clip_surgery.models.image import PathConfig

__all__ = [
    "GEM",
    "METHODS",
    "NACLIP",
    "SCCLIP",
    "SCLIP",
    "SFP",
    "AttentionRelevance",
    "AttentionRollout",
    "CLIPSimilarity",
    "CLIPSurgery",
    "CLIPtrase",
    "ClearCLIP",
    "DirectEffect",
    "DualPathAttribution",
    "FeatureCLIPSurgery",
    "GradECLIP",
    "InputShapeMixin",
    "LayerAttentionRelevance",
    "LayerAttentionRollout",
    "LayerCLIPSimilarity",
    "LayerCLIPSurgery",
    "LayerCLIPtrase",
    "LayerClearCLIP",
    "LayerDirectEffect",
    "LayerFeatureCLIPSurgery",
    "LayerGEM",
    "LayerGradECLIP",
    "LayerLeGrad",
    "LayerMaskCLIP",
    "LayerNACLIP",
    "LayerRawAttention",
    "LayerResCLIP",
    "LayerSCCLIP",
    "LayerSCLIP",
    "LayerSFP",
    "LayerShapeMixin",
    "LayerTokenGradCam",
    "LeGrad",
    "MaskCLIP",
    "Method",
    "PatchAttribution",
    "PathConfig",
    "RawAttention",
    "ResCLIP",
    "TestTimeAugmentation",
    "TokenGradCam",
    "TowerAttribution",
    "WordScores",
    "attribute_many",
    "word_scores",
]
