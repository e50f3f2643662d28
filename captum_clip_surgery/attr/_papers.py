"""The papers that describe the methods."""

from __future__ import annotations

from typing import NamedTuple


class Paper(NamedTuple):
    """Publication of a method.

    Args:
        authors: Family names, or the first one "et al.".
        title: Title in full.
        arxiv: Number on arXiv; "" if there is none.
        venue: Conference or journal, and year.
    """

    authors: str
    title: str
    arxiv: str
    venue: str

    def to_markdown(self) -> str:
        """Return the reference in the format of docs/methods.md."""
        title = f'"{self.title}"'
        if self.arxiv:
            title = f"[{title}](https://arxiv.org/abs/{self.arxiv})"
        return f"{self.authors}, {title} ({self.venue})"


_SURGERY = Paper(
    "Li, Wang, Duan, Zhang, Li",
    "A Closer Look at the Explainability of Contrastive Language-Image Pre-training",
    "2304.05653",
    "Pattern Recognition 162, 2025",
)
_RELEVANCE = Paper(
    "Chefer, Gur, Wolf",
    "Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder "
    "Transformers",
    "2103.15679",
    "ICCV 2021",
)
_GRAD_CAM = Paper(
    "Selvaraju et al.",
    "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization",
    "1610.02391",
    "ICCV 2017",
)
_GRAD_ECLIP = Paper(
    "Zhao, Wang, Jiang, Chan",
    "Gradient-based Visual Explanation for Transformer-based CLIP",
    "",
    "ICML 2024",
)
#: Paper by name in `METHODS`; RawAttention has none.
PAPERS = {
    "CLIP": Paper(
        "Radford et al.",
        "Learning Transferable Visual Models From Natural Language Supervision",
        "2103.00020",
        "ICML 2021",
    ),
    "CLIPSurgery": _SURGERY,
    "CLIPSurgeryFine": _SURGERY,
    "ArchitectureSurgery": _SURGERY,
    "FeatureSurgery": _SURGERY,
    "MaskCLIP": Paper(
        "Zhou, Loy, Dai", "Extract Free Dense Labels from CLIP", "2112.01071", "ECCV 2022"
    ),
    "SCLIP": Paper(
        "Wang, Mei, Yuille",
        "SCLIP: Rethinking Self-Attention for Dense Vision-Language Inference",
        "2312.01597",
        "ECCV 2024",
    ),
    "CLIPtrase": Paper(
        "Shao, Tian, Zhao, Su",
        "Explore the Potential of CLIP for Training-Free Open Vocabulary Semantic Segmentation",
        "2407.08268",
        "ECCV 2024",
    ),
    "ClearCLIP": Paper(
        "Lan et al.",
        "ClearCLIP: Decomposing CLIP Representations for Dense Vision-Language Inference",
        "2407.12442",
        "ECCV 2024",
    ),
    "NACLIP": Paper(
        "Hajimiri, Ben Ayed, Dolz",
        "Pay Attention to Your Neighbours: Training-Free Open-Vocabulary Semantic Segmentation",
        "2404.08181",
        "WACV 2025",
    ),
    "GEM": Paper(
        "Bousselham, Petersen, Ferrari, Kuehne",
        "Grounding Everything: Emerging Localization Properties in Vision-Language Transformers",
        "2312.00878",
        "CVPR 2024",
    ),
    "ResCLIP": Paper(
        "Yang, Deng, Li, Duan",
        "ResCLIP: Residual Attention for Training-free Dense Vision-language Inference",
        "2411.15851",
        "CVPR 2025",
    ),
    "SCCLIP": Paper(
        "Bai et al.",
        "Self-Calibrated CLIP for Training-Free Open-Vocabulary Segmentation",
        "2411.15869",
        "IEEE TIP 2025",
    ),
    "SFP": Paper(
        "Jin et al.",
        "Feature Purification Matters: Suppressing Outlier Propagation for Training-Free "
        "Open-Vocabulary Semantic Segmentation",
        "",
        "ICCV 2025",
    ),
    "DirectEffect": Paper(
        "Gandelsman, Efros, Steinhardt",
        "Interpreting CLIP's Image Representation via Text-Based Decomposition",
        "2310.05916",
        "ICLR 2024",
    ),
    "LeGrad": Paper(
        "Bousselham, Boggust, Chaybouti, Strobelt, Kuehne",
        "LeGrad: An Explainability Method for Vision Transformers via Feature Formation "
        "Sensitivity",
        "2404.03214",
        "ICCV 2025",
    ),
    "AttentionRelevance": _RELEVANCE,
    "AttentionRelevanceAll": _RELEVANCE,
    "AttentionRollout": Paper(
        "Abnar, Zuidema",
        "Quantifying Attention Flow in Transformers",
        "2005.00928",
        "ACL 2020",
    ),
    "GradECLIP": _GRAD_ECLIP,
    "GradECLIPHeads": _GRAD_ECLIP,
    "GradCam": _GRAD_CAM,
    "GuidedGradCam": _GRAD_CAM,
    "Saliency": Paper(
        "Simonyan, Vedaldi, Zisserman",
        "Deep Inside Convolutional Networks: Visualising Image Classification Models and Saliency "
        "Maps",
        "1312.6034",
        "2013",
    ),
    "InputXGradient": Paper(
        "Shrikumar et al.",
        "Not Just a Black Box: Learning Important Features Through Propagating Activation "
        "Differences",
        "1605.01713",
        "2016",
    ),
    "IntegratedGradients": Paper(
        "Sundararajan, Taly, Yan",
        "Axiomatic Attribution for Deep Networks",
        "1703.01365",
        "ICML 2017",
    ),
    "Occlusion": Paper(
        "Zeiler, Fergus",
        "Visualizing and Understanding Convolutional Networks",
        "1311.2901",
        "ECCV 2014",
    ),
    "KernelShap": Paper(
        "Lundberg, Lee",
        "A Unified Approach to Interpreting Model Predictions",
        "1705.07874",
        "NeurIPS 2017",
    ),
}
