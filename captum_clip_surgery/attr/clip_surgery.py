"""CLIP Surgery, and what it repairs, as Captum attributions.

Three methods of two shapes each. `CLIPSurgery` repairs both the tower (architecture surgery) and
the scores (feature surgery), `FeatureCLIPSurgery` the scores alone, and `CLIPSimilarity` is CLIP's
own patch scores, the thing to be repaired. `Layer...` gives maps on the patch grid.

Source: Li, Wang, Duan, Zhang, Li, "A Closer Look at the Explainability of Contrastive
Language-Image Pre-training" (arXiv 2304.05653).
"""

from __future__ import annotations

from torch import Tensor, nn

from captum_clip_surgery import functional
from captum_clip_surgery.attr._base import InputShapeMixin, LayerShapeMixin
from captum_clip_surgery.attr.dual_path import DualPathAttribution, resolve_num_blocks
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.models.image import AttentionInputs, PathConfig


def vv(heads: AttentionInputs) -> Tensor:
    return functional.vv_attention(heads.v)


def normalized_vv(heads: AttentionInputs) -> Tensor:
    return functional.normalized_vv_attention(heads.v)


class LayerCLIPSurgery(DualPathAttribution, LayerShapeMixin):
    """CLIP Surgery on the patch grid: (N, 1, h, w) for a text.

    Beside the last `num_blocks` blocks a second path adds v-v self-attention of the original path and
    runs no feed-forward; the model itself stays as it is (paper, Sec. 3.2). Feature surgery then
    takes from the patch scores what all texts share (Sec. 3.3).

    Args:
        forward_func: the classifier.
        layer: the first block the new path spans, instead of `num_blocks`.
        num_blocks: how many of the last blocks it spans. None is 6 as released, or all where the tower
            has fewer; a ResNet has one, its attention pooling. 0 gives CLIP's own tokens. Towers
            pooled by attention may want few or none (docs/models.md).
        feature_surgery: "release", "paper" or "empty" (see `functional.feature_surgery`), None for
            plain cosines, or "auto": "empty" below 8 texts, distractors included, "release" from 8 on.
            With few texts the release form only contrasts the texts given; with two, one map is
            the negative of the other.
        inverse_temperature: inverse temperature of the weights of the texts.
        normalize_values: weigh values by direction alone, as the paper states for ResNets; the
            published code does not.

    Raises:
        TypeError: a forward_func that is no ZeroShotClassifier.
        ValueError: a num_blocks the tower does not have, a layer that is none of its blocks, an unknown
            form of feature surgery.

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
    ) -> None:
        super().__init__(forward_func, layer)
        attention = normalized_vv if normalize_values else vv
        recipe = PathConfig(
            resolve_num_blocks(forward_func, num_blocks, layer), attention, values_only=True
        )
        self.begin_at(-max(1, recipe.num_blocks))
        self._configure(recipe, feature_surgery, inverse_temperature)


class CLIPSurgery(DualPathAttribution, InputShapeMixin):
    """CLIP Surgery shaped like the images: (N, 3, H, W) for a text.

    See `LayerCLIPSurgery` for the method and the arguments. The patch map is enlarged bilinearly
    and stands in equal thirds on the channels.

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
    ) -> None:
        super().__init__(forward_func)
        attention = normalized_vv if normalize_values else vv
        recipe = PathConfig(
            resolve_num_blocks(forward_func, num_blocks), attention, values_only=True
        )
        self._configure(recipe, feature_surgery, inverse_temperature)


OWN_TOKENS = PathConfig(0, vv)  # at num_blocks 0 no attention is replaced


class _OwnTokensPath(DualPathAttribution):
    """Feature surgery on CLIP's own patch tokens."""

    def __init__(
        self,
        forward_func: ZeroShotClassifier,
        feature_surgery: str | None = "auto",
        inverse_temperature: float = functional.INVERSE_TEMPERATURE,
    ) -> None:
        super().__init__(forward_func)
        self._configure(OWN_TOKENS, feature_surgery, inverse_temperature)


class LayerFeatureCLIPSurgery(_OwnTokensPath, LayerShapeMixin):
    """Feature surgery on CLIP's own patch tokens, on the patch grid: (N, 1, h, w) for a text.

    Arguments and forms as for `LayerCLIPSurgery`.
    """


class FeatureCLIPSurgery(_OwnTokensPath, InputShapeMixin):
    """Feature surgery on CLIP's own patch tokens, shaped like the images.

    Arguments and forms as for `LayerCLIPSurgery`.
    """


class LayerCLIPSimilarity(DualPathAttribution, LayerShapeMixin):
    """CLIP's own patch scores on the patch grid: cosines of its last tokens with a text."""

    def __init__(self, forward_func: ZeroShotClassifier) -> None:
        super().__init__(forward_func)
        self._configure(OWN_TOKENS, None, functional.INVERSE_TEMPERATURE)


class CLIPSimilarity(DualPathAttribution, InputShapeMixin):
    """CLIP's own patch scores, shaped like the images."""

    def __init__(self, forward_func: ZeroShotClassifier) -> None:
        super().__init__(forward_func)
        self._configure(OWN_TOKENS, None, functional.INVERSE_TEMPERATURE)
