"""Methods by name, as the command line and comparisons offer them.

Register a method of your own with one line: `METHODS["Mine"] = LayerMine`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
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

from captum_clip_surgery._utils.tensors import tensor_digest
from captum_clip_surgery._utils.text import did_you_mean, join_reasons
from captum_clip_surgery.attr._attention import (
    LayerAttentionRelevance,
    LayerAttentionRollout,
    LayerRawAttention,
)
from captum_clip_surgery.attr._augmentation import TestTimeAugmentation
from captum_clip_surgery.attr._base import Method
from captum_clip_surgery.attr._calibrated import LayerResCLIP, LayerSCCLIP, LayerSFP
from captum_clip_surgery.attr._clip_surgery import (
    LayerCLIPSimilarity,
    LayerCLIPSurgery,
    LayerFeatureCLIPSurgery,
)
from captum_clip_surgery.attr._dense import (
    LayerClearCLIP,
    LayerCLIPtrase,
    LayerGEM,
    LayerMaskCLIP,
    LayerNACLIP,
    LayerSCLIP,
)
from captum_clip_surgery.attr._direct_effect import LayerDirectEffect
from captum_clip_surgery.attr._gradient_methods import (
    LayerGradECLIP,
    LayerLeGrad,
    LayerTokenGradCam,
)
from captum_clip_surgery.attr._passes import images_per_pass
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.models._guards import assert_parameters_unchanged
from captum_clip_surgery.models._validation import resolve_indices
from captum_clip_surgery.models.image._resnet import ModifiedResNetTower

KERNEL_SHAP_SAMPLES = 100
#: Seed of the samples that KernelShap draws.
SEED = 0
#: Occluded cells per side of the image, at most.
MAX_CELLS = 7


class RememberedLogits:
    """Logits of a classifier for all texts, computed once for each batch of images.

    Captum perturbs an image anew for every text, but in the same way.

    Args:
        clip: The classifier, whose texts and weights must stay as they are.
    """

    def __init__(self, clip: ZeroShotClassifier) -> None:
        self._clip = clip
        self._logits: dict[str, Tensor] = {}

    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits (N, K) of images, without gradients."""
        digest = tensor_digest(images)
        if digest not in self._logits:
            with torch.no_grad():
                self._logits[digest] = self._clip(images)
        return self._logits[digest]


class CaptumMethod:
    """One of Captum's methods with the interface of ours.

    Args:
        clip: The classifier.
        make: Function that creates the method for a classifier.
        perturbs: Whether the method only compares logits of perturbed images. They are then
            computed once for all texts.
        **options: Keyword arguments of its `attribute`; a callable is called with the classifier
            and the image.
    """

    def __init__(
        self,
        clip: ZeroShotClassifier,
        make: Callable[[Any], Any],
        perturbs: bool = False,
        **options: Any,
    ) -> None:
        self.forward_func = clip
        self._make = make
        self._captum = make(clip)
        self._perturbs = perturbs
        self._options = options

    def attribute_all(self, inputs: Tensor, targets: Sequence[int] | None = None) -> Tensor:
        """Return maps (N, K, H, W), summed over channels; see `PatchAttribution.attribute_all`."""
        clip = self.forward_func
        chosen = range(len(clip.texts)) if targets is None else targets
        indices = resolve_indices(chosen, len(clip.texts), inputs.device).tolist()
        # One by one: Captum's own batches multiply images by passes.
        with assert_parameters_unchanged(clip.model):
            maps = [self._explain_image(image, indices) for image in inputs.split(1)]
        return torch.cat(maps).to(inputs.dtype)

    def get_name(self) -> str:
        """Return the method's name as Captum spells it."""
        return str(self._captum.get_name())

    def has_convergence_delta(self) -> bool:
        """Return whether `attribute` can return how far attributions are from complete."""
        return bool(self._captum.has_convergence_delta())

    def attribute(
        self, inputs: Tensor, target: int | None = None, return_convergence_delta: bool = False
    ) -> Any:
        """Return Captum's attributions (N, 3, H, W), and their convergence delta if requested."""
        delta = {"return_convergence_delta": True} if return_convergence_delta else {}
        with assert_parameters_unchanged(self.forward_func.model), self._ready(inputs) as ready:
            image, options = ready
            return self._captum.attribute(image, target=target, **options, **delta)

    def _explain_image(self, image: Tensor, targets: list[int]) -> Tensor:
        captum = self._captum
        if self._perturbs and len(targets) > 1:
            captum = self._make(RememberedLogits(self.forward_func))
        attributions = []
        for target in targets:
            with self._ready(image) as (ready, options):  # so that every text has the same samples
                attributions.append(captum.attribute(ready, target=target, **options).detach())
        return torch.stack(attributions, dim=1).sum(2)

    @contextmanager
    def _ready(self, images: Tensor) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """Yield images and options as Captum's methods need them."""
        clip = self.forward_func
        # Captum makes tensors on the default device.
        with torch.inference_mode(False), torch.random.fork_rng(), torch.device(images.device):
            torch.manual_seed(SEED)
            # Without requires_grad Captum would warn and set it.
            images = images.detach().clone().requires_grad_()
            yield (
                images,
                {k: v(clip, images) if callable(v) else v for k, v in self._options.items()},
            )


def _captum(make: Callable[..., Any], **options: Any) -> Method:
    return partial(CaptumMethod, make=make, **options)


def _cell(clip: ZeroShotClassifier, images: Tensor) -> tuple[int, int]:
    """Return the sides in pixels of an occluded cell: whole patches, at most MAX_CELLS per side."""
    sizes = zip(clip.tower.grid(*images.shape[-2:]), clip.tower.patch_size, strict=True)
    height, width = (patch * -(-count // MAX_CELLS) for count, patch in sizes)
    return height, width


def _window(clip: ZeroShotClassifier, images: Tensor) -> tuple[int, int, int]:
    return (3, *_cell(clip, images))


def _cells(clip: ZeroShotClassifier, images: Tensor) -> Tensor:
    """Return the index of every pixel's cell, (1, 1, H, W)."""
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


def _kernel_shap(clip: Any) -> Any:
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise ImportError("KernelShap needs scikit-learn: pip install scikit-learn") from error
    return KernelShap(clip)


def fine(method: Method) -> Method:
    """Return a method whose maps are averaged by `TestTimeAugmentation` with its defaults.

    Args:
        method: Function that creates the method for a classifier.
    """

    @wraps(method)  # the same options, as `inspect.signature` sees them
    def make(clip: ZeroShotClassifier, **options: Any) -> TestTimeAugmentation:
        explainer = method(clip, **options)
        if isinstance(explainer, TestTimeAugmentation):
            return explainer
        return TestTimeAugmentation(explainer)

    return make


#: Every method to compare, by name; calling one with a classifier returns its attribution.
METHODS: dict[str, Method] = {
    "CLIP": LayerCLIPSimilarity,
    "CLIPSurgery": LayerCLIPSurgery,
    "CLIPSurgeryFine": fine(LayerCLIPSurgery),
    "ArchitectureSurgery": partial(LayerCLIPSurgery, feature_surgery=None),
    "FeatureSurgery": LayerFeatureCLIPSurgery,
    "MaskCLIP": LayerMaskCLIP,
    "SCLIP": LayerSCLIP,
    "CLIPtrase": LayerCLIPtrase,
    "ClearCLIP": LayerClearCLIP,
    "NACLIP": LayerNACLIP,
    "GEM": LayerGEM,
    "ResCLIP": LayerResCLIP,
    "SCCLIP": LayerSCCLIP,
    "SFP": LayerSFP,
    "DirectEffect": LayerDirectEffect,
    "LeGrad": LayerLeGrad,
    "AttentionRelevance": LayerAttentionRelevance,
    "AttentionRelevanceAll": partial(LayerAttentionRelevance, blocks="all"),
    "AttentionRollout": LayerAttentionRollout,
    "RawAttention": LayerRawAttention,
    "GradECLIP": LayerGradECLIP,
    "GradECLIPHeads": partial(LayerGradECLIP, per_head=True),
    "GradCam": LayerTokenGradCam,
    "GuidedGradCam": _captum(_guided_grad_cam),
    "Saliency": _captum(Saliency),
    "InputXGradient": _captum(InputXGradient),
    "IntegratedGradients": _captum(IntegratedGradients, internal_batch_size=images_per_pass),
    "Occlusion": _captum(
        Occlusion,
        perturbs=True,
        sliding_window_shapes=_window,
        strides=_window,
        perturbations_per_eval=images_per_pass,
    ),
    "KernelShap": _captum(
        _kernel_shap,
        perturbs=True,
        feature_mask=_cells,
        n_samples=KERNEL_SHAP_SAMPLES,
        perturbations_per_eval=images_per_pass,
    ),
}
#: Methods whose variant of feature surgery can be chosen.
SURGERY_METHODS: dict[str, type[LayerCLIPSurgery | LayerFeatureCLIPSurgery]] = {
    "CLIPSurgery": LayerCLIPSurgery,
    "FeatureSurgery": LayerFeatureCLIPSurgery,
}
#: Other names of some methods.
ALIASES = {"surgery": "CLIPSurgery"}
#: The first methods to look at: CLIP, its repair, and the two that people would otherwise use.
DEFAULT_METHODS = ("CLIP", "CLIPSurgery", "IntegratedGradients", "GradCam")


def resolve_names(names: Iterable[str]) -> list[str]:
    """Return the names in `METHODS` that names stand for, each once.

    Args:
        names: Names in `METHODS`, in any case, or in `ALIASES`; "all" stands for every method.

    Raises:
        TypeError: If `names` is a string.
        ValueError: If a name is unknown.
    """
    if isinstance(names, str):
        raise TypeError(f"names must be a list, got the string {names!r}; pass [{names!r}]")
    known = {name.lower(): name for name in METHODS} | ALIASES
    resolved: dict[str, None] = {}
    for name in names:
        own = known.get(name.lower(), name)
        if name != "all" and own not in METHODS:
            raise ValueError(
                f"unknown method {name!r}; known: {', '.join(METHODS)}, or all"
                f"{did_you_mean(name, METHODS)}"
            )
        resolved |= dict.fromkeys(METHODS if name == "all" else [own])
    return list(resolved)


def choose(
    clip: ZeroShotClassifier, names: Iterable[str] = DEFAULT_METHODS
) -> tuple[dict[str, Method], dict[str, str]]:
    """Select methods by name, with the reason for each that is not defined on a classifier.

    Args:
        clip: The classifier.
        names: Names in `METHODS`, in any case, or in `ALIASES`; "all" stands for every method.

    Returns:
        Methods by name, and for each of the other names the reason.

    Raises:
        TypeError: If `names` is a string.
        ValueError: If a name is unknown, or no method is defined on the classifier.
    """
    chosen: dict[str, Method] = {}
    left_out: dict[str, str] = {}
    for name in resolve_names(names):
        try:
            METHODS[name](clip)
        except (TypeError, ImportError) as error:
            left_out[name] = str(error)
        else:
            chosen[name] = METHODS[name]
    if not chosen:
        raise ValueError(f"no chosen method is defined on this model: {join_reasons(left_out)}")
    return chosen, left_out
