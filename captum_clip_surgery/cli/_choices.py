"""Choices that the options offer.

They are repeated here because the rooms that own them import torch, which takes seconds, and
`--help` must answer at once. A test holds every one equal to its room's own list.
"""

from __future__ import annotations

from typing import Literal

Dataset = Literal[
    "scenes",
    "voc21",
    "voc20",
    "context60",
    "context59",
    "coco",
    "coco-stuff171",
    "coco-stuff27",
    "coco-object",
    "imagenet-s50",
    "imagenet-s300",
    "imagenet-s919",
    "cityscapes",
    "ade20k",
    "nus-wide",
    "voc2007",
    "coco2014",
    "open-images",
    "folder",
    "huggingface",
]
FeatureSurgery = Literal["release", "paper", "empty", "none"]
AutoFeatureSurgery = Literal["auto", "release", "paper", "empty", "none"]
FigureFormat = Literal["png", "svg", "pdf"]
Engine = Literal["processes", "ray"]
Precision = Literal["fp32", "bf16", "fp16"]
Device = Literal["cuda", "mps", "cpu"]
Instances = Literal["one", "components", "peaks"]
Refinement = Literal["guided", "pamr"]
Repair = Literal["auto", "neighbors", "likeness", "registers"]
Positions = Literal["bilinear", "bicubic"]
WordMethod = Literal["interactions", "surgery"]
Sign = Literal["auto", "all", "positive", "negative", "absolute_value", "range"]
Scales = Literal["method", "figure", "map"]

METHODS = (
    "CLIP",
    "CLIPSurgery",
    "CLIPSurgeryFine",
    "ArchitectureSurgery",
    "FeatureSurgery",
    "MaskCLIP",
    "SCLIP",
    "CLIPtrase",
    "ClearCLIP",
    "NACLIP",
    "GEM",
    "ResCLIP",
    "SCCLIP",
    "SFP",
    "DirectEffect",
    "LeGrad",
    "AttentionRelevance",
    "AttentionRelevanceAll",
    "AttentionRollout",
    "RawAttention",
    "GradECLIP",
    "GradECLIPHeads",
    "GradCam",
    "GuidedGradCam",
    "Saliency",
    "InputXGradient",
    "IntegratedGradients",
    "Occlusion",
    "KernelShap",
)
DEFAULT_METHODS = "CLIP,CLIPSurgery,IntegratedGradients,GradCam"
MEASURES = ("localization", "faithfulness", "grid", "specificity")
PROTOCOLS = (
    "clearclip",
    "dense",
    "faithfulness",
    "imagenet-segmentation",
    "paper",
    "present",
    "sclip",
    "specificity",
)
TASKS = (
    "localization",
    "segmentation",
    "recognition",
    "points",
    "faithfulness",
    "grid",
    "specificity",
)

#: Maximum side in pixels of the images the model sees.
MAX_SIDE = 2**14
#: Seconds that the processes of a run wait for each other.
TIMEOUT_S = 1800.0
