"""Dense methods: published second paths that change the last block or blocks.

All use the same tower, preprocessing and text features as CLIP Surgery and score patches by their
cosines with the texts. Their papers resize positional embeddings bicubically; create the classifier
with `positions="bicubic"` to do the same.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_clip_surgery.attr._base import InputShapeMixin, LayerShapeMixin
from captum_clip_surgery.attr._dual_path import DualPathAttribution, resolve_num_blocks
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.functional import vv_attention
from captum_clip_surgery.models.image import AttentionInputs, PathConfig

#: Standard deviation of NACLIP's neighborhood, in patches.
GAUSSIAN_STD = 5.0


def identity_attention(inputs: AttentionInputs) -> Tensor:
    """Return every token's own value."""
    return inputs.v


def qq_attention(inputs: AttentionInputs) -> Tensor:
    """Return values weighted by q-q attention."""
    return F.scaled_dot_product_attention(inputs.q, inputs.q, inputs.v)


def kk_attention(inputs: AttentionInputs) -> Tensor:
    """Return values weighted by k-k attention."""
    return F.scaled_dot_product_attention(inputs.k, inputs.k, inputs.v)


def correlative_attention(inputs: AttentionInputs) -> Tensor:
    """Return values weighted by q-q attention plus k-k attention: a sum, not a mean."""
    return qq_attention(inputs) + kk_attention(inputs)


def threefold_attention(inputs: AttentionInputs) -> Tensor:
    """Return values weighted by q-q, k-k and v-v attention: a sum, not a mean."""
    return correlative_attention(inputs) + vv_attention(inputs.v)


def neighborhood_attention(inputs: AttentionInputs) -> Tensor:
    """Return values weighted by k-k attention that prefers near patches; prefix tokens get none."""
    rows, columns = (
        torch.arange(n, dtype=inputs.k.dtype, device=inputs.k.device) for n in inputs.grid
    )
    positions = torch.cartesian_prod(rows, columns)  # (h*w, 2)
    distances = (positions[:, None] - positions[None]).square().sum(-1)  # (h*w, h*w)
    gaussian = torch.exp(-distances / (2 * GAUSSIAN_STD**2))
    prefix = inputs.k.shape[-2] - len(positions)
    bias = F.pad(gaussian, (prefix, 0, prefix, 0))  # (L, L)
    return F.scaled_dot_product_attention(inputs.k, inputs.k, inputs.v, attn_mask=bias)


def self_self_attention(inputs: AttentionInputs) -> Tensor:
    """Return the mean of q-q, k-k and v-v attention of directions, each grouped once before."""
    norms = inputs.x.norm(dim=-1).mean(-1)[:, None, None, None]
    # The image's temperature is applied to both directions of a product, hence its root.
    root = (norms * inputs.v.shape[-1] ** -0.5).sqrt()
    attended = torch.zeros_like(inputs.v)
    for z in (inputs.q, inputs.k, inputs.v):
        z = F.normalize(z, dim=-1)
        z = F.normalize(_attend(root * z, z), dim=-1)
        attended = attended + _attend(root * z, inputs.v)
    return attended / 3


def _attend(directions: Tensor, values: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(directions, directions, values, scale=1.0)


MASKCLIP_PATH = PathConfig(1, identity_attention, mlp=True, values_only=True)
SCLIP_PATH = PathConfig(1, correlative_attention, mlp=True)
CLEARCLIP_PATH = PathConfig(1, qq_attention, residual=False)
CLIPTRASE_PATH = PathConfig(1, threefold_attention, mlp=True)
NACLIP_PATH = PathConfig(1, neighborhood_attention, residual=False)


class _PublishedPath(DualPathAttribution):
    """Plain cosines of the patch tokens of a published path."""

    published: ClassVar[PathConfig]

    def __init__(self, forward_func: ZeroShotClassifier, repair: str | None = None) -> None:
        super().__init__(forward_func, self.published, repair=repair)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._repair_option.removeprefix(', ')})"


class _MaskCLIPPath(_PublishedPath):
    method_name = "MaskCLIP"
    published = MASKCLIP_PATH


class LayerMaskCLIP(_MaskCLIPPath, LayerShapeMixin):
    """MaskCLIP on the patch grid: the last block without attention, attributions (N, 1, h, w).

    Every patch keeps its own value; residual and feed-forward stay.

    References:
        Zhou, Loy, Dai: Extract Free Dense Labels from CLIP. ECCV 2022, Sec. 3.2.
    """


class MaskCLIP(_MaskCLIPPath, InputShapeMixin):
    """MaskCLIP shaped like the images; see `LayerMaskCLIP` for the method."""


class _SCLIPPath(_PublishedPath):
    method_name = "SCLIP"
    published = SCLIP_PATH


class LayerSCLIP(_SCLIPPath, LayerShapeMixin):
    """SCLIP on the patch grid: q-q plus k-k attention in the last block, (N, 1, h, w).

    References:
        Wang, Mei, Yuille: SCLIP: Rethinking Self-Attention for Dense Vision-Language Inference.
        ECCV 2024, Eq. 3.
    """


class SCLIP(_SCLIPPath, InputShapeMixin):
    """SCLIP shaped like the images; see `LayerSCLIP` for the method."""


class _CLIPtrasePath(_PublishedPath):
    method_name = "CLIPtrase"
    published = CLIPTRASE_PATH


class LayerCLIPtrase(_CLIPtrasePath, LayerShapeMixin):
    """CLIPtrase on the patch grid: q-q plus k-k plus v-v attention in the last block, (N, 1, h, w).

    These are the patch scores that the method starts from. Its second stage is left out, since it
    gives labels and no scores: patches are clustered by the similarity of their queries, keys and
    values in the second-to-last block, and each cluster takes the label that most of its pixels
    have.

    References:
        Shao, Tian, Zhao, Su: Explore the Potential of CLIP for Training-Free Open Vocabulary
        Semantic Segmentation. ECCV 2024. The released code gives the same maps at the native size;
        for Pascal VOC without background, it also multiplies them by the class token's scores.
    """


class CLIPtrase(_CLIPtrasePath, InputShapeMixin):
    """CLIPtrase shaped like the images; see `LayerCLIPtrase` for the method."""


class _ClearCLIPPath(_PublishedPath):
    method_name = "ClearCLIP"
    published = CLEARCLIP_PATH


class LayerClearCLIP(_ClearCLIPPath, LayerShapeMixin):
    """ClearCLIP on the patch grid: attributions (N, 1, h, w).

    The last block returns only its q-q attention, without residual and feed-forward.

    References:
        Lan, Chen, Ke, Wang, Feng, Zhang: ClearCLIP: Decomposing CLIP Representations for Dense
        Vision-Language Inference. ECCV 2024.
    """


class ClearCLIP(_ClearCLIPPath, InputShapeMixin):
    """ClearCLIP shaped like the images; see `LayerClearCLIP` for the method."""


class _NACLIPPath(_PublishedPath):
    method_name = "NACLIP"
    published = NACLIP_PATH


class LayerNACLIP(_NACLIPPath, LayerShapeMixin):
    """NACLIP on the patch grid: attributions (N, 1, h, w).

    The last block returns only its k-k attention, with a Gaussian preference for near patches.

    References:
        Hajimiri, Ben Ayed, Dolz: Pay Attention to Your Neighbours: Training-Free Open-Vocabulary
        Semantic Segmentation. WACV 2025.
    """


class NACLIP(_NACLIPPath, InputShapeMixin):
    """NACLIP shaped like the images; see `LayerNACLIP` for the method."""


class _GEMPath(DualPathAttribution):
    method_name = "GEM"

    def __init__(
        self,
        forward_func: ZeroShotClassifier,
        num_blocks: int | None = None,
        repair: str | None = None,
    ) -> None:
        num_blocks = resolve_num_blocks(forward_func, num_blocks)
        path_config = PathConfig(num_blocks, self_self_attention)
        super().__init__(forward_func, path_config, repair=repair)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(num_blocks={self.path_config.num_blocks}{self._repair_option})"
        )


class LayerGEM(_GEMPath, LayerShapeMixin):
    """GEM on the patch grid: a path of q-q, k-k and v-v attention, attributions (N, 1, h, w).

    Args:
        forward_func: The classifier.
        num_blocks: The number of last blocks that the path spans; None means 6 as released, or
            all where the tower has fewer.
        repair: What is done about outlier tokens: "auto", "neighbors", "likeness" or None, see
            `DualPathAttribution`.

    References:
        Bousselham, Petersen, Ferrari, Kuehne: Grounding Everything: Emerging Localization
        Properties in Vision-Language Transformers. CVPR 2024, Sec. 3.
    """


class GEM(_GEMPath, InputShapeMixin):
    """GEM shaped like the images; see `LayerGEM` for the method."""
