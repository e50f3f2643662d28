"""CLIP Surgery for Captum: explain what CLIP sees, and where.

`ZeroShotClassifier` is a CLIP and its texts as an image classifier, `CLIPSurgery` and
`LayerCLIPSurgery` are its attributions, and `compare` shows methods side by side. Names are
imported on first use, so that importing the package is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from captum_clip_surgery.models import ModelEntry, list_models
    from captum_clip_surgery.models.text import TEMPLATES

__version__ = "0.1.0"

#: The module of every public name but `functional`, which is one.
_MODULES = {
    "AttentionRelevance": "attr.attention",
    "AttentionRollout": "attr.attention",
    "CLIPSimilarity": "attr.clip_surgery",
    "CLIPSurgery": "attr.clip_surgery",
    "ClearCLIP": "attr.dense",
    "Comparison": "comparison",
    "FeatureCLIPSurgery": "attr.clip_surgery",
    "GEM": "attr.dense",
    "GradECLIP": "attr.gradient",
    "LayerAttentionRelevance": "attr.attention",
    "LayerAttentionRollout": "attr.attention",
    "LayerCLIPSimilarity": "attr.clip_surgery",
    "LayerCLIPSurgery": "attr.clip_surgery",
    "LayerClearCLIP": "attr.dense",
    "LayerFeatureCLIPSurgery": "attr.clip_surgery",
    "LayerGEM": "attr.dense",
    "LayerGradECLIP": "attr.gradient",
    "LayerLeGrad": "attr.gradient",
    "LayerMaskCLIP": "attr.dense",
    "LayerNACLIP": "attr.dense",
    "LayerRawAttention": "attr.attention",
    "LayerSCLIP": "attr.dense",
    "LayerTokenGradCam": "attr.gradient",
    "LeGrad": "attr.gradient",
    "METHODS": "attr.registry",
    "MaskCLIP": "attr.dense",
    "ModelEntry": "models",
    "NACLIP": "attr.dense",
    "RawAttention": "attr.attention",
    "SCLIP": "attr.dense",
    "TEMPLATES": "models.text",
    "TokenGradCam": "attr.gradient",
    "TowerReport": "diagnostics",
    "WordScores": "attr.words",
    "ZeroShotClassifier": "classifier",
    "compare": "comparison",
    "list_models": "models",
    "tower_report": "diagnostics",
    "word_scores": "attr.words",
}

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


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name == "functional":
        return import_module(f"{__name__}.functional")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value  # later look-ups do not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
