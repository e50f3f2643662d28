"""Every method by name, made ready for a classifier: what the command line and comparisons offer.

A method of one's own is one line: `METHODS["Mine"] = lambda clip: Mine(clip).attribute_all`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from captum.attr import (
    GuidedGradCam,
    InputXGradient,
    IntegratedGradients,
    KernelShap,
    Occlusion,
    Saliency,
)
from torch import Tensor

from captum_clip_surgery.attr._base import Explain, Method
from captum_clip_surgery.attr.attention import (
    LayerAttentionRelevance,
    LayerAttentionRollout,
    LayerRawAttention,
)
from captum_clip_surgery.attr.clip_surgery import (
    LayerCLIPSimilarity,
    LayerCLIPSurgery,
    LayerFeatureCLIPSurgery,
)
from captum_clip_surgery.attr.dense import (
    LayerClearCLIP,
    LayerGEM,
    LayerMaskCLIP,
    LayerNACLIP,
    LayerSCLIP,
)
from captum_clip_surgery.attr.gradient import LayerGradECLIP, LayerLeGrad, LayerTokenGradCam
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.models import _validation
from captum_clip_surgery.models._guards import assert_parameters_unchanged
from captum_clip_surgery.models.image.resnet import ModifiedResNetTower

TOKENS_AT_ONCE = 4096  # in one pass of a method that takes many: ViT-B/16 at 512 px stays small
RESNET_WEIGHT = 4  # its feature maps hold more: RN50x64 at 448 px takes one image a pass
KERNEL_SHAP_SAMPLES = 100
SEED = 0  # of the samples that KernelShap draws
CELLS = 7  # a side of the grid whose cells are hidden, at most


def _tokens(clip: ZeroShotClassifier, images: Tensor) -> int:
    """Of one image, for a transformer; a ResNet's pixels weigh as many as patches of 16 do."""
    height, width = images.shape[-2:]
    if isinstance(clip.tower, ModifiedResNetTower):
        return RESNET_WEIGHT * height * width // 256
    rows, columns = clip.tower.grid(height, width)
    return rows * columns


def images_at_once(clip: ZeroShotClassifier, images: Tensor) -> int:
    """How many images one pass of a Captum method may hold, from their size."""
    return max(1, TOKENS_AT_ONCE // _tokens(clip, images))


def _captum(make: Callable[..., Any], **options: Any) -> Method:
    """A method of Captum's that takes images and a target; options may follow from the images."""

    def method(clip: ZeroShotClassifier) -> Explain:
        captum = make(clip)

        def one(image: Tensor, targets: list[int]) -> Tensor:
            with torch.inference_mode(False), torch.random.fork_rng():
                torch.manual_seed(SEED)
                image = image.detach().clone().requires_grad_()  # or Captum warns that it does so
                given = {k: v(clip, image) if callable(v) else v for k, v in options.items()}
                attributions = [
                    captum.attribute(image, target=target, **given).detach() for target in targets
                ]
            return torch.stack(attributions, dim=1).sum(2)  # over channels

        def explain(images: Tensor, targets: Sequence[int] | None = None) -> Tensor:
            chosen = range(len(clip.texts)) if targets is None else targets
            indices = _validation.resolve_indices(chosen, len(clip.texts), images.device).tolist()
            # One by one: Captum's own batches multiply images by passes.
            with assert_parameters_unchanged(clip.model):
                found = [one(image, indices) for image in images.split(1)]
            return torch.cat(found).to(images.dtype)

        return explain

    return method


def _cell(clip: ZeroShotClassifier, images: Tensor) -> tuple[int, int]:
    """Sides in pixels of the cells that are hidden: whole patches, at most CELLS a side."""
    sizes = zip(clip.tower.grid(*images.shape[-2:]), clip.tower.patch_size, strict=True)
    height, width = (patch * -(-count // CELLS) for count, patch in sizes)
    return height, width


def _window(clip: ZeroShotClassifier, images: Tensor) -> tuple[int, int, int]:
    return (3, *_cell(clip, images))


def _cells(clip: ZeroShotClassifier, images: Tensor) -> Tensor:
    """The cell of every pixel, (1, 1, H, W)."""
    (height, width), (rows, columns) = images.shape[-2:], _cell(clip, images)
    down = torch.arange(height, device=images.device) // rows
    across = torch.arange(width, device=images.device) // columns
    return (down[:, None] * (int(across[-1]) + 1) + across)[None, None]


def _guided_grad_cam(clip: ZeroShotClassifier) -> Any:
    if not isinstance(clip.tower, ModifiedResNetTower):
        raise TypeError(
            f"GuidedGradCam is not defined on {clip.tower.family}: it rectifies the gradients of "
            "ReLUs, which ModifiedResNet has"
        )
    return GuidedGradCam(clip, clip.model.visual.layer4)


def _kernel_shap(clip: ZeroShotClassifier) -> Any:
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise ImportError("KernelShap needs scikit-learn: pip install scikit-learn") from error
    return KernelShap(clip)


METHODS: dict[str, Method] = {
    "CLIP": lambda clip: LayerCLIPSimilarity(clip).attribute_all,
    "CLIPSurgery": lambda clip: LayerCLIPSurgery(clip).attribute_all,
    "ArchitectureSurgery": lambda clip: LayerCLIPSurgery(clip, feature_surgery=None).attribute_all,
    "FeatureSurgery": lambda clip: LayerFeatureCLIPSurgery(clip).attribute_all,
    "MaskCLIP": lambda clip: LayerMaskCLIP(clip).attribute_all,
    "SCLIP": lambda clip: LayerSCLIP(clip).attribute_all,
    "ClearCLIP": lambda clip: LayerClearCLIP(clip).attribute_all,
    "NACLIP": lambda clip: LayerNACLIP(clip).attribute_all,
    "GEM": lambda clip: LayerGEM(clip).attribute_all,
    "LeGrad": lambda clip: LayerLeGrad(clip).attribute_all,
    "AttentionRelevance": lambda clip: LayerAttentionRelevance(clip).attribute_all,
    "AttentionRelevanceAll": lambda clip: LayerAttentionRelevance(clip, "all").attribute_all,
    "AttentionRollout": lambda clip: LayerAttentionRollout(clip).attribute_all,
    "RawAttention": lambda clip: LayerRawAttention(clip).attribute_all,
    "GradECLIP": lambda clip: LayerGradECLIP(clip).attribute_all,
    "GradECLIPHeads": lambda clip: LayerGradECLIP(clip, per_head=True).attribute_all,
    "GradCam": lambda clip: LayerTokenGradCam(clip).attribute_all,
    "GuidedGradCam": _captum(_guided_grad_cam),
    "Saliency": _captum(Saliency),
    "InputXGradient": _captum(InputXGradient),
    "IntegratedGradients": _captum(IntegratedGradients, internal_batch_size=images_at_once),
    "Occlusion": _captum(
        Occlusion,
        sliding_window_shapes=_window,
        strides=_window,
        perturbations_per_eval=images_at_once,
    ),
    "KernelShap": _captum(
        _kernel_shap,
        feature_mask=_cells,
        n_samples=KERNEL_SHAP_SAMPLES,
        perturbations_per_eval=images_at_once,
    ),
}
#: What some are called elsewhere.
ALIASES = {"surgery": "CLIPSurgery"}
#: What people look at first: CLIP itself, the repair, and the two they would have used.
USUAL = ("CLIP", "CLIPSurgery", "IntegratedGradients", "GradCam")


def choose(
    clip: ZeroShotClassifier, names: Iterable[str] = USUAL
) -> tuple[dict[str, Method], dict[str, str]]:
    """The methods of some names that are defined on a classifier, and why others are left out.

    Args:
        clip: the classifier.
        names: of `METHODS`, in capitals or not, or of `ALIASES`; "all" among them stands for every
            one.

    Raises:
        ValueError: a name there is not, or none that is defined here.
        TypeError: one string where a list belongs.
    """
    if isinstance(names, str):
        raise TypeError(f"names is the string {names!r}; pass a list: [{names!r}]")
    known = {name.lower(): name for name in METHODS} | ALIASES
    wanted = [
        n for name in names for n in (METHODS if name == "all" else [known.get(name.lower(), name)])
    ]
    chosen: dict[str, Method] = {}
    left_out: dict[str, str] = {}
    for name in dict.fromkeys(wanted):
        if name not in METHODS:
            raise ValueError(f"there is no method {name!r}; there are {', '.join(METHODS)}, or all")
        try:
            METHODS[name](clip)
        except (TypeError, ImportError) as error:
            left_out[name] = str(error)
        else:
            chosen[name] = METHODS[name]
    if not chosen:
        raise ValueError(f"none of {', '.join(left_out)} is defined here: {left_out}")
    return chosen, left_out
