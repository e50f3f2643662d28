"""CLIP Surgery, and what it repairs, as Captum attributions.

`CLIPSurgery` repairs both the tower (architecture surgery) and the scores (feature surgery),
`FeatureCLIPSurgery` only the scores, and `CLIPSimilarity` is the baseline: CLIP's own patch scores.
The `Layer...` classes return maps on the patch grid.
"""

from __future__ import annotations

from torch import Tensor, nn

from captum_clip_surgery import functional
from captum_clip_surgery.attr._base import InputShapeMixin, LayerShapeMixin, check_classifier
from captum_clip_surgery.attr._dual_path import DualPathAttribution, resolve_num_blocks
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.models.image import AttentionInputs, PathConfig
from captum_clip_surgery.models.image._surgery import (
    default_num_blocks,
    released_num_blocks,
    vv_attention,
)


def _normalized_vv_attention(inputs: AttentionInputs) -> Tensor:
    return functional.normalized_vv_attention(inputs.v)


class _SurgeryPath(DualPathAttribution):
    method_name = "CLIP Surgery"

    def __init__(
        self,
        forward_func: ZeroShotClassifier,
        num_blocks: int | None = None,
        feature_surgery: str | None = "auto",
        inverse_temperature: float = functional.INVERSE_TEMPERATURE,
        normalize_values: bool = False,
        layer: nn.Module | None = None,
        repair: str | None = None,
    ) -> None:
        tower = check_classifier(forward_func).tower
        if num_blocks is None and layer is None:
            num_blocks = default_num_blocks(tower)
            if num_blocks != released_num_blocks(tower):
                self._chosen_because = " (default for towers pooled by attention)"
        path_config = PathConfig(
            resolve_num_blocks(forward_func, num_blocks, layer),
            _normalized_vv_attention if normalize_values else vv_attention,
            values_only=True,
        )
        super().__init__(forward_func, path_config, feature_surgery, inverse_temperature, repair)


class LayerCLIPSurgery(_SurgeryPath, LayerShapeMixin):
    """CLIP Surgery on the patch grid: attributions (N, 1, h, w).

    Beside the last `num_blocks` blocks, a second path adds v-v self-attention of the original path
    and skips the feed-forward layers; the model itself is not changed (paper, Sec. 3.2). Feature
    surgery then subtracts from the patch scores what all texts share (Sec. 3.3).

    Args:
        forward_func: The classifier.
        layer: The first block that the second path spans, instead of `num_blocks`.
        num_blocks: The number of last blocks it spans. None means 6 as released, or all where
            the tower has fewer; a ResNet has one, its attention pooling. For towers pooled by
            learned queries (SigLIP, CoCa, PE-Core), None means 0, CLIP's own tokens: on the
            one that was measured, surgery made maps worse (docs/models.md).
        feature_surgery: "release", "paper" or "empty" (see `functional.feature_surgery`), None for
            plain cosines, or "auto": "empty" below 8 texts, distractors included, "release" from 8
            on. With few texts, the release variant only contrasts the given texts: with two, one
            map is the negative of the other.
        inverse_temperature: Inverse temperature of the softmax that weights the texts.
        normalize_values: Weight values by their direction only, as the paper states for ResNets;
            the published code does not.
        repair: What is done about outlier tokens: "auto", "neighbors", "likeness" or None, see
            `DualPathAttribution`.

    Raises:
        TypeError: If `forward_func` is not a `ZeroShotClassifier`.
        ValueError: If `num_blocks` exceeds the tower's blocks, `layer` is not one of them, or
            `feature_surgery` or `repair` is unknown.

    References:
        Li, Wang, Duan, Zhang, Li: A closer look at the explainability of Contrastive
        Language-Image Pre-training. Pattern Recognition 162, 2025, 111409 (arXiv 2304.05653).

    Example::

        >>> import torch
        >>> clip = ZeroShotClassifier.demo(["dog", "pizza"])
        >>> surgery = LayerCLIPSurgery(clip)
        >>> images = torch.zeros(2, 3, 128, 160)
        >>> surgery.attribute(images, target=1).shape, surgery.attribute_all(images).shape
        (torch.Size([2, 1, 8, 10]), torch.Size([2, 2, 8, 10]))
    """

    def __init__(
        self,
        forward_func: ZeroShotClassifier,
        layer: nn.Module | None = None,
        num_blocks: int | None = None,
        feature_surgery: str | None = "auto",
        inverse_temperature: float = functional.INVERSE_TEMPERATURE,
        normalize_values: bool = False,
        repair: str | None = None,
    ) -> None:
        super().__init__(
            forward_func,
            num_blocks,
            feature_surgery,
            inverse_temperature,
            normalize_values,
            layer,
            repair,
        )


class CLIPSurgery(_SurgeryPath, InputShapeMixin):
    """CLIP Surgery shaped like the images: attributions (N, 3, H, W).

    See `LayerCLIPSurgery` for the method and its arguments. The patch map is upsampled bilinearly
    and returned in equal thirds on the channels.

    Example::

        >>> import torch
        >>> clip = ZeroShotClassifier.demo(["dog", "pizza"])
        >>> CLIPSurgery(clip).attribute(torch.zeros(1, 3, 128, 128), target=0).shape
        torch.Size([1, 3, 128, 128])
    """

    def __init__(
        self,
        forward_func: ZeroShotClassifier,
        num_blocks: int | None = None,
        feature_surgery: str | None = "auto",
        inverse_temperature: float = functional.INVERSE_TEMPERATURE,
        normalize_values: bool = False,
        repair: str | None = None,
    ) -> None:
        super().__init__(
            forward_func,
            num_blocks,
            feature_surgery,
            inverse_temperature,
            normalize_values,
            repair=repair,
        )


#: CLIP's own tokens: a path of no blocks, in which no attention is replaced.
OWN_TOKENS = PathConfig(0, vv_attention)


class _FeatureSurgeryPath(DualPathAttribution):
    method_name = "Feature surgery"

    def __init__(
        self,
        forward_func: ZeroShotClassifier,
        feature_surgery: str | None = "auto",
        inverse_temperature: float = functional.INVERSE_TEMPERATURE,
        repair: str | None = None,
    ) -> None:
        super().__init__(forward_func, OWN_TOKENS, feature_surgery, inverse_temperature, repair)


class LayerFeatureCLIPSurgery(_FeatureSurgeryPath, LayerShapeMixin):
    """Feature surgery on CLIP's own patch tokens, on the patch grid: attributions (N, 1, h, w).

    See `LayerCLIPSurgery` for the arguments.
    """


class FeatureCLIPSurgery(_FeatureSurgeryPath, InputShapeMixin):
    """Feature surgery on CLIP's own patch tokens, shaped like the images.

    See `LayerCLIPSurgery` for the arguments.
    """


class _SimilarityPath(DualPathAttribution):
    method_name = "CLIP"

    def __init__(self, forward_func: ZeroShotClassifier) -> None:
        super().__init__(forward_func, OWN_TOKENS)


class LayerCLIPSimilarity(_SimilarityPath, LayerShapeMixin):
    """CLIP's raw patch scores on the patch grid: cosines of its last tokens with a text."""


class CLIPSimilarity(_SimilarityPath, InputShapeMixin):
    """CLIP's raw patch scores, shaped like the images."""
