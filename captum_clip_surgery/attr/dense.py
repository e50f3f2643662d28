"""Dense scores by changing the last block or blocks: five published recipes of the dual path.

All see the same tower, preprocessing and text features as CLIP Surgery, and score patches by their
cosines with the texts. Their papers resize positional embeddings bicubically: make the classifier
with `positions="bicubic"` for that.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_clip_surgery import functional
from captum_clip_surgery.attr._base import InputShapeMixin, LayerShapeMixin
from captum_clip_surgery.attr.dual_path import DualPathAttribution, resolve_num_blocks
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.models.image import AttentionInputs, PathConfig

GAUSSIAN_STD = 5.0  # of NACLIP's neighbourhood, in patches


def own_values(heads: AttentionInputs) -> Tensor:
    """Each token keeps its own value: attention is the identity."""
    return heads.v


def query_query(heads: AttentionInputs) -> Tensor:
    return F.scaled_dot_product_attention(heads.q, heads.q, heads.v)


def correlative(heads: AttentionInputs) -> Tensor:
    """Attention of queries to queries plus that of keys to keys: a sum, not a mean."""
    keys = F.scaled_dot_product_attention(heads.k, heads.k, heads.v)
    return query_query(heads) + keys


def neighbourhood(heads: AttentionInputs) -> Tensor:
    """Attention of keys to keys that prefers what is near; prefix tokens are near to nothing."""
    rows, columns = (
        torch.arange(n, dtype=heads.k.dtype, device=heads.k.device) for n in heads.grid
    )
    places = torch.cartesian_prod(rows, columns)
    distances = (places[:, None] - places[None]).square().sum(-1)
    gaussian = torch.exp(-distances / (2 * GAUSSIAN_STD**2))
    prefix = heads.k.shape[-2] - len(places)
    bias = F.pad(gaussian, (prefix, 0, prefix, 0))
    return F.scaled_dot_product_attention(heads.k, heads.k, heads.v, attn_mask=bias)


def self_self(heads: AttentionInputs) -> Tensor:
    """The mean of q-q, k-k and v-v attention of directions, each grouped once before."""
    norms = heads.x.norm(dim=-1).mean(-1)[:, None, None, None]
    # The temperature of an image goes into its directions: both sides of a product share it.
    root = (norms * heads.v.shape[-1] ** -0.5).sqrt()
    attended = torch.zeros_like(heads.v)
    for z in (heads.q, heads.k, heads.v):
        z = F.normalize(z, dim=-1)
        z = F.normalize(_attend(root * z, z), dim=-1)
        attended = attended + _attend(root * z, heads.v)
    return attended / 3


def _attend(directions: Tensor, values: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(directions, directions, values, scale=1.0)


MASKCLIP_PATH = PathConfig(1, own_values, mlp=True, values_only=True)
SCLIP_PATH = PathConfig(1, correlative, mlp=True)
CLEARCLIP_PATH = PathConfig(1, query_query, residual=False)
NACLIP_PATH = PathConfig(1, neighbourhood, residual=False)


class _PublishedPath(DualPathAttribution):
    """Plain cosines of a published recipe's patch tokens."""

    published: PathConfig

    def __init__(self, forward_func: ZeroShotClassifier) -> None:
        super().__init__(forward_func)
        self._configure(self.published, None, functional.INVERSE_TEMPERATURE)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class _MaskCLIPPath(_PublishedPath):
    published = MASKCLIP_PATH


class LayerMaskCLIP(_MaskCLIPPath, LayerShapeMixin):
    """MaskCLIP on the patch grid, (N, 1, h, w) for a text: the last block without attention.

    Each patch keeps its own value; residual and feed-forward stay.

    Source: Zhou, Loy, Dai, "Extract Free Dense Labels from CLIP" (ECCV 2022), Sec. 3.2.
    """


class MaskCLIP(_MaskCLIPPath, InputShapeMixin):
    """MaskCLIP shaped like the images; see `LayerMaskCLIP`."""


class _SCLIPPath(_PublishedPath):
    published = SCLIP_PATH


class LayerSCLIP(_SCLIPPath, LayerShapeMixin):
    """SCLIP on the patch grid, (N, 1, h, w) for a text: q-q plus k-k attention in the last block.

    Source: Wang, Mei, Yuille, "SCLIP: Rethinking Self-Attention for Dense Vision-Language
    Inference" (ECCV 2024), Eq. 3.
    """


class SCLIP(_SCLIPPath, InputShapeMixin):
    """SCLIP shaped like the images; see `LayerSCLIP`."""


class _ClearCLIPPath(_PublishedPath):
    published = CLEARCLIP_PATH


class LayerClearCLIP(_ClearCLIPPath, LayerShapeMixin):
    """ClearCLIP on the patch grid, (N, 1, h, w) for a text.

    The last block gives its q-q attention alone, without residual and feed-forward.

    Source: Lan, Chen, Ke, Wang, Feng, Zhang, "ClearCLIP: Decomposing CLIP Representations for Dense
    Vision-Language Inference" (ECCV 2024).
    """


class ClearCLIP(_ClearCLIPPath, InputShapeMixin):
    """ClearCLIP shaped like the images; see `LayerClearCLIP`."""


class _NACLIPPath(_PublishedPath):
    published = NACLIP_PATH


class LayerNACLIP(_NACLIPPath, LayerShapeMixin):
    """NACLIP on the patch grid, (N, 1, h, w) for a text.

    The last block gives k-k attention with a Gaussian preference for near patches, alone.

    Source: Hajimiri, Ben Ayed, Dolz, "Pay Attention to Your Neighbours: Training-Free
    Open-Vocabulary Semantic Segmentation" (WACV 2025).
    """


class NACLIP(_NACLIPPath, InputShapeMixin):
    """NACLIP shaped like the images; see `LayerNACLIP`."""


class _GEMPath(DualPathAttribution):
    """GEM's path beside the last blocks; it takes its num_blocks as surgery does."""

    def __init__(self, forward_func: ZeroShotClassifier, num_blocks: int | None = None) -> None:
        super().__init__(forward_func)
        recipe = PathConfig(resolve_num_blocks(forward_func, num_blocks), self_self)
        self._configure(recipe, None, functional.INVERSE_TEMPERATURE)
        self.begin_at(-max(1, recipe.num_blocks))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_blocks={self.recipe.num_blocks})"


class LayerGEM(_GEMPath, LayerShapeMixin):
    """GEM on the patch grid, (N, 1, h, w) for a text: a path of q-q, k-k and v-v attention.

    Args:
        forward_func: the classifier.
        num_blocks: how many of the last blocks the path spans; None is 6 as released, or all where the
            tower has fewer.

    Source: Bousselham, Petersen, Ferrari, Kuehne, "Grounding Everything: Emerging Localization
    Properties in Vision-Language Transformers" (CVPR 2024), Sec. 3.
    """


class GEM(_GEMPath, InputShapeMixin):
    """GEM shaped like the images; see `LayerGEM`."""
