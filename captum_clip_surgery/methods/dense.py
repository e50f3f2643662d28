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
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.methods.base import GridMaps, ImageMaps
from captum_clip_surgery.surgery import DualPathMaps, resolve_depth
from captum_clip_surgery.towers import Heads, Recipe

GAUSSIAN_STD = 5.0  # of NACLIP's neighbourhood, in patches


def own_values(heads: Heads) -> Tensor:
    """Each token keeps its own value: attention is the identity."""
    return heads.v


def query_query(heads: Heads) -> Tensor:
    return F.scaled_dot_product_attention(heads.q, heads.q, heads.v)


def correlative(heads: Heads) -> Tensor:
    """Attention of queries to queries plus that of keys to keys: a sum, not a mean."""
    keys = F.scaled_dot_product_attention(heads.k, heads.k, heads.v)
    return query_query(heads) + keys


def neighbourhood(heads: Heads) -> Tensor:
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


def self_self(heads: Heads) -> Tensor:
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


MASKCLIP = Recipe(1, own_values, mlp=True, values_only=True)
SCLIP = Recipe(1, correlative, mlp=True)
CLEARCLIP = Recipe(1, query_query, residual=False)
NACLIP = Recipe(1, neighbourhood, residual=False)


class DenseMaps(DualPathMaps):
    """Plain cosines of a published recipe's patch tokens."""

    published: Recipe

    def __init__(self, forward_func: ZeroShotClassifier) -> None:
        super().__init__(forward_func)
        self._configure(self.published, None, functional.TAU)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class MaskClipMaps(DenseMaps):
    published = MASKCLIP


class LayerMaskClip(MaskClipMaps, GridMaps):
    """MaskCLIP on the patch grid, (N, 1, h, w) for a text: the last block without attention.

    Each patch keeps its own value; residual and feed-forward stay.

    Source: Zhou, Loy, Dai, "Extract Free Dense Labels from CLIP" (ECCV 2022), Sec. 3.2.
    """


class MaskClip(MaskClipMaps, ImageMaps):
    """MaskCLIP shaped like the images; see `LayerMaskClip`."""


class SclipMaps(DenseMaps):
    published = SCLIP


class LayerSclip(SclipMaps, GridMaps):
    """SCLIP on the patch grid, (N, 1, h, w) for a text: q-q plus k-k attention in the last block.

    Source: Wang, Mei, Yuille, "SCLIP: Rethinking Self-Attention for Dense Vision-Language
    Inference" (ECCV 2024), Eq. 3.
    """


class Sclip(SclipMaps, ImageMaps):
    """SCLIP shaped like the images; see `LayerSclip`."""


class ClearClipMaps(DenseMaps):
    published = CLEARCLIP


class LayerClearClip(ClearClipMaps, GridMaps):
    """ClearCLIP on the patch grid, (N, 1, h, w) for a text.

    The last block gives its q-q attention alone, without residual and feed-forward.

    Source: Lan, Chen, Ke, Wang, Feng, Zhang, "ClearCLIP: Decomposing CLIP Representations for Dense
    Vision-Language Inference" (ECCV 2024).
    """


class ClearClip(ClearClipMaps, ImageMaps):
    """ClearCLIP shaped like the images; see `LayerClearClip`."""


class NaClipMaps(DenseMaps):
    published = NACLIP


class LayerNaClip(NaClipMaps, GridMaps):
    """NACLIP on the patch grid, (N, 1, h, w) for a text.

    The last block gives k-k attention with a Gaussian preference for near patches, alone.

    Source: Hajimiri, Ben Ayed, Dolz, "Pay Attention to Your Neighbours: Training-Free
    Open-Vocabulary Semantic Segmentation" (WACV 2025).
    """


class NaClip(NaClipMaps, ImageMaps):
    """NACLIP shaped like the images; see `LayerNaClip`."""


class GemMaps(DualPathMaps):
    """GEM's path beside the last blocks; it takes its depth as surgery does."""

    def __init__(self, forward_func: ZeroShotClassifier, depth: int | None = None) -> None:
        super().__init__(forward_func)
        recipe = Recipe(resolve_depth(forward_func, depth), self_self)
        self._configure(recipe, None, functional.TAU)
        self.begin_at(-max(1, recipe.depth))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(depth={self.recipe.depth})"


class LayerGem(GemMaps, GridMaps):
    """GEM on the patch grid, (N, 1, h, w) for a text: a path of q-q, k-k and v-v attention.

    Args:
        forward_func: the classifier.
        depth: how many of the last blocks the path spans; None is 6 as released, or all where the
            tower has fewer.

    Source: Bousselham, Petersen, Ferrari, Kuehne, "Grounding Everything: Emerging Localization
    Properties in Vision-Language Transformers" (CVPR 2024), Sec. 3.
    """


class Gem(GemMaps, ImageMaps):
    """GEM shaped like the images; see `LayerGem`."""
