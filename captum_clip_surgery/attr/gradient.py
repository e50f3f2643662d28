"""Methods that read gradients: LeGrad, Grad-ECLIP and Grad-CAM on tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_clip_surgery.attr._base import InputShapeMixin, LayerShapeMixin
from captum_clip_surgery.attr._gradients import (
    TowerAttribution,
    cosines,
    likeness_to,
    resolve_block,
    text_gradients,
)
from captum_clip_surgery.attr.dual_path import resolve_num_blocks
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.models._blocks import join_heads, split_heads


class _LeGradCore(TowerAttribution):
    reads_class_token = False

    def __init__(self, forward_func: ZeroShotClassifier, num_blocks: int = 2) -> None:
        super().__init__(forward_func)
        self.num_blocks = resolve_num_blocks(forward_func, num_blocks)
        if not self.num_blocks:
            raise ValueError("num_blocks 0 leaves no block whose attention LeGrad could read")
        self.begin_at(-self.num_blocks)

    def patch_scores(self, images: Tensor, features: Tensor) -> Tensor:
        tower = self.forward_func.tower
        first = len(tower.blocks) - self.num_blocks
        with torch.no_grad():
            x, layout = tower.enter(images, first)
        maps = []
        for block in tower.iter_blocks_with_attention(x, layout, first):
            pooled = tower.project(block.stream.mean(1, keepdim=True))[:, 0]
            scores = cosines(pooled, features)
            gradients = text_gradients(scores, [block.probabilities])
            # Over heads and queries.
            maps.append(torch.cat([part.relu().mean((2, 3)) for (part,) in gradients]))
        return self._patches(torch.stack(maps).sum(0).transpose(0, 1))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_blocks={self.num_blocks})"


class LayerLeGrad(_LeGradCore, LayerShapeMixin):
    """LeGrad on the patch grid, (N, 1, h, w) for a text: where attention would raise its score.

    For each of the last blocks, the cosine of the text with the mean of the block's tokens, taken
    to the joint space, is differentiated by the block's attention; what is positive is averaged
    over heads and queries and summed over blocks. The release then min-max normalises; this does
    not.

    Args:
        forward_func: the classifier, on any tower of residual blocks.
        num_blocks: how many of the last blocks are read.

    Source: Bousselham, Boggust, Chaybouti, Strobelt, Kuehne, "LeGrad: An Explainability Method for
    Vision Transformers via Feature Formation Sensitivity" (ICCV 2025).
    """


class LeGrad(_LeGradCore, InputShapeMixin):
    """LeGrad shaped like the images; see `LayerLeGrad`."""


class _GradECLIPCore(TowerAttribution):
    def __init__(self, forward_func: ZeroShotClassifier, per_head: bool = False) -> None:
        super().__init__(forward_func)
        self.per_head = per_head

    def patch_scores(self, images: Tensor, features: Tensor) -> Tensor:
        tower = self.forward_func.tower
        last = len(tower.blocks) - 1
        with torch.no_grad():
            x, layout = tower.enter(images, last)
            heads = tower.heads(last, x, layout)
            q, k, v = (join_heads(part) for part in (heads.q, heads.k, heads.v))
            if self.per_head:
                attended = join_heads(heads.first_queries(1).attend())
            else:
                weights = (q[:, :1] @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
                attended = weights @ v
            patches, count = tower.num_prefix_tokens, heads.v.shape[1]
            class_query = tower.merge(last, split_heads(q[:, :1], count), heads.x[:, :1])
            keys = tower.merge(last, split_heads(k, count), heads.x)[:, patches:]
            weights = likeness_to(class_query, keys)
        attended.requires_grad_()
        update = tower.merge(last, split_heads(attended, count), heads.x[:, :1])
        pooled = tower.pool(tower.feed_forward(last, x[:, :1] + update))
        scores = cosines(pooled, features)
        maps = [
            (gradient.squeeze(2)[:, :, None] * v[:, patches:]).sum(-1) * weights
            for (gradient,) in text_gradients(scores, [attended])
        ]
        return torch.cat(maps).relu().transpose(0, 1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(per_head={self.per_head})"


class LayerGradECLIP(_GradECLIPCore, LayerShapeMixin):
    """Grad-ECLIP on the patch grid, (N, 1, h, w) for a text.

    Values of the last block weighed by the gradient of the cosine by the class token's attention
    output, and by how like their keys are to the class token's query; what is positive.

    Args:
        forward_func: the classifier, on a transformer with a class token.
        per_head: attend with the tower's own heads; the release treats the last block as one head
            over the whole width.

    Source: Zhao, Wang, Jiang, Chan, "Gradient-based Visual Explanation for Transformer-based CLIP"
    (ICML 2024), Eq. 8-12.
    """


class GradECLIP(_GradECLIPCore, InputShapeMixin):
    """Grad-ECLIP shaped like the images; see `LayerGradECLIP`."""


class _TokenGradCamCore(TowerAttribution):
    reads_class_token = False
    needs_stream = False

    def __init__(self, forward_func: ZeroShotClassifier, block: int = -1) -> None:
        super().__init__(forward_func)
        self.block = resolve_block(forward_func, block)
        self.begin_at(self.block)

    def patch_scores(self, images: Tensor, features: Tensor) -> Tensor:
        clip, tower = self.forward_func, self.forward_func.tower
        with torch.no_grad():
            tokens, layout = tower.enter(images, self.block)
        tokens = tokens.detach().requires_grad_()
        *_, last = tower.iter_blocks_with_attention(tokens, layout, self.block, pooled_only=True)
        scores = clip.model.logit_scale.exp() * cosines(tower.pool(last.stream), features)
        patches = tokens[:, tower.num_prefix_tokens :]
        maps = []
        for (gradient,) in text_gradients(scores, [tokens]):
            weights = gradient[:, :, tower.num_prefix_tokens :].mean(2, keepdim=True)
            maps.append((weights * patches).sum(-1).relu())
        return torch.cat(maps).transpose(0, 1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(block={self.block})"


class LayerTokenGradCam(_TokenGradCamCore, LayerShapeMixin):
    """Grad-CAM of the logit on the patch tokens entering a block, (N, 1, h, w) for a text.

    The same as Captum's LayerGradCam on `clip.token_grid(block)` with `relu_attributions=True`, for
    many texts in one pass.

    Args:
        forward_func: the classifier, on any tower.
        block: which block's tokens; negative counts from the end.

    Raises:
        IndexError: a block there is not.

    Source: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
    Localization" (ICCV 2017), Eq. 1-2.
    """


class TokenGradCam(_TokenGradCamCore, InputShapeMixin):
    """Grad-CAM on patch tokens shaped like the images; see `LayerTokenGradCam`."""
