"""CLIP Surgery for Captum: explain what CLIP sees, and where.

`ZeroShotClassifier` is a CLIP and its texts as an image classifier, `CLIPSurgery` and
`LayerCLIPSurgery` are its attributions, and `compare` shows methods side by side. Names are
imported on first use, so that importing the package is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captum_clip_surgery import functional
    from captum_clip_surgery.attr import (
        GEM,
        METHODS,
        NACLIP,
        SCCLIP,
        SCLIP,
        SFP,
        AttentionRelevance,
        AttentionRollout,
        ClearCLIP,
        CLIPSimilarity,
        CLIPSurgery,
        CLIPtrase,
        DirectEffect,
        FeatureCLIPSurgery,
        GradECLIP,
        LayerAttentionRelevance,
        LayerAttentionRollout,
        LayerClearCLIP,
        LayerCLIPSimilarity,
        LayerCLIPSurgery,
        LayerCLIPtrase,
        LayerDirectEffect,
        LayerFeatureCLIPSurgery,
        LayerGEM,
        LayerGradECLIP,
        LayerLeGrad,
        LayerMaskCLIP,
        LayerNACLIP,
        LayerRawAttention,
        LayerResCLIP,
        LayerSCCLIP,
        LayerSCLIP,
        LayerSFP,
        LayerTokenGradCam,
        LeGrad,
        MaskCLIP,
        RawAttention,
        ResCLIP,
        TestTimeAugmentation,
        TokenGradCam,
        WordScores,
        word_scores,
    )
    from captum_clip_surgery.classifier import ZeroShotClassifier
    from captum_clip_surgery.collection import Audit, ImageIndex, audit, search
    from captum_clip_surgery.comparison import Comparison, compare
    from captum_clip_surgery.decomposition import Decomposition, decompose, describe_head
    from captum_clip_surgery.diagnostics import TowerReport, TrustReport, tower_report, trust
    from captum_clip_surgery.models import ModelEntry, list_models
    from captum_clip_surgery.models.text import TEMPLATES
    from captum_clip_surgery.tasks import PairExplanation, explain_pair
    from captum_clip_surgery.visualization import overlay, show

__version__ = "0.1.0"

#: The modules of public names that are not in `attr`.
_MODULES = {
    "Audit": "collection",
    "Comparison": "comparison",
    "Decomposition": "decomposition",
    "ImageIndex": "collection",
    "ModelEntry": "models",
    "PairExplanation": "tasks",
    "TEMPLATES": "models.text",
    "TowerReport": "diagnostics",
    "TrustReport": "diagnostics",
    "ZeroShotClassifier": "classifier",
    "audit": "collection",
    "compare": "comparison",
    "decompose": "decomposition",
    "describe_head": "decomposition",
    "explain_pair": "tasks",
    "list_models": "models",
    "overlay": "visualization",
    "search": "collection",
    "show": "visualization",
    "tower_report": "diagnostics",
    "trust": "diagnostics",
}

__all__ = [
    "GEM",
    "METHODS",
    "NACLIP",
    "SCCLIP",
    "SCLIP",
    "SFP",
    "TEMPLATES",
    "AttentionRelevance",
    "AttentionRollout",
    "Audit",
    "CLIPSimilarity",
    "CLIPSurgery",
    "CLIPtrase",
    "ClearCLIP",
    "Comparison",
    "Decomposition",
    "DirectEffect",
    "FeatureCLIPSurgery",
    "GradECLIP",
    "ImageIndex",
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
    "LayerTokenGradCam",
    "LeGrad",
    "MaskCLIP",
    "ModelEntry",
    "PairExplanation",
    "RawAttention",
    "ResCLIP",
    "TestTimeAugmentation",
    "TokenGradCam",
    "TowerReport",
    "TrustReport",
    "WordScores",
    "ZeroShotClassifier",
    "audit",
    "compare",
    "decompose",
    "describe_head",
    "explain_pair",
    "functional",
    "list_models",
    "overlay",
    "search",
    "show",
    "tower_report",
    "trust",
    "word_scores",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "functional":
        return import_module(f"{__name__}.functional")
    value = getattr(import_module(f"{__name__}.{_MODULES.get(name, 'attr')}"), name)
    globals()[name] = value  # later look-ups do not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
