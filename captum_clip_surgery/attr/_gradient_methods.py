"""Methods that differentiate scores: LeGrad, Grad-ECLIP and Grad-CAM on patch tokens.

They run the tower's blocks outside of the model, which keeps its modules and gets no `.grad`. They
enable gradients themselves, whatever the caller's mode, and return detached maps. Many texts cost
one forward pass and batched backward passes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from captum_clip_surgery.attr._base import InputShapeMixin, LayerShapeMixin
from captum_clip_surgery.attr._dual_path import resolve_num_blocks
from captum_clip_surgery.attr._gradients import (
    TowerAttribution,
    cosines,
    minmax_cosines,
    resolve_block,
    text_gradients,
)
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.models.image import join_heads, split_heads


class _LeGradCore(TowerAttribution):
    method_name = "LeGrad"
    reads_class_token = False

    def __init__(self, forward_func: ZeroShotClassifier, num_blocks: int = 2) -> None:
        super().__init__(forward_func)
        self.num_blocks = resolve_num_blocks(forward_func, num_blocks)
        if not self.num_blocks:
            raise ValueError("num_blocks must be at least 1: LeGrad reads the attention of a block")
        self._set_layer(-self.num_blocks)

    def patch_scores(self, images: Tensor, features: Tensor) -> Tensor:
        tower = self.forward_func.tower
        first = len(tower.blocks) - self.num_blocks
        with torch.no_grad():
            x, grid_spec = tower.enter(images, first)
        maps = []
        for block in tower.iter_blocks_with_attention(x, grid_spec, first):
            pooled = tower.project(block.stream.mean(1, keepdim=True))[:, 0]  # (N, C)
            scores = cosines(pooled, features)  # (N, K)
            gradients = text_gradients(scores, [block.probabilities])  # (K, N, heads, L, L)
            over_heads_and_queries = [part.relu().mean((2, 3)) for (part,) in gradients]
            maps.append(torch.cat(over_heads_and_queries))
        return self._patches(torch.stack(maps).sum(0).transpose(0, 1))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_blocks={self.num_blocks})"


class LayerLeGrad(_LeGradCore, LayerShapeMixin):
    """LeGrad on the patch grid: where more attention would raise a text's score, (N, 1, h, w).

    For each of the last blocks, the cosine of the text with the mean of the block's projected
    tokens is differentiated with respect to the block's attention. The positive part is averaged
    over heads and queries and summed over blocks. The release also min-max normalizes the result;
    this class does not.

    Args:
        forward_func: The classifier, on any tower of residual blocks.
        num_blocks: The number of last blocks to read.

    Raises:
        TypeError: If the tower has no residual blocks.
        ValueError: If `num_blocks` is 0 or exceeds the tower's blocks.

    References:
        Bousselham, Boggust, Chaybouti, Strobelt, Kuehne: LeGrad: An Explainability Method for
        Vision Transformers via Feature Formation Sensitivity. ICCV 2025.
    """


class LeGrad(_LeGradCore, InputShapeMixin):
    """LeGrad shaped like the images; see `LayerLeGrad` for the method."""


class _GradECLIPCore(TowerAttribution):
    method_name = "Grad-ECLIP"

    def __init__(self, forward_func: ZeroShotClassifier, per_head: bool = False) -> None:
        super().__init__(forward_func)
        self.per_head = per_head

    def patch_scores(self, images: Tensor, features: Tensor) -> Tensor:
        tower = self.forward_func.tower
        last = len(tower.blocks) - 1
        with torch.no_grad():
            x, grid_spec = tower.enter(images, last)
            heads = tower.attention_inputs(last, x, grid_spec)
            q, k, v = (join_heads(part) for part in (heads.q, heads.k, heads.v))  # (N, L, D)
            if self.per_head:
                attended = join_heads(heads.first_queries(1).attend())  # (N, 1, D)
            else:
                weights = (q[:, :1] @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
                attended = weights @ v
            first, count = tower.num_prefix_tokens, heads.v.shape[1]
            class_query = tower.merge(last, split_heads(q[:, :1], count), heads.x[:, :1])
            keys = tower.merge(last, split_heads(k, count), heads.x)[:, first:]
            key_weights = minmax_cosines(class_query, keys)  # (N, h*w)
        attended.requires_grad_()
        update = tower.merge(last, split_heads(attended, count), heads.x[:, :1])
        pooled = tower.pool(tower.feed_forward(last, x[:, :1] + update))
        scores = cosines(pooled, features)
        maps = [
            (gradient.squeeze(2)[:, :, None] * v[:, first:]).sum(-1) * key_weights
            for (gradient,) in text_gradients(scores, [attended])
        ]
        return torch.cat(maps).relu().transpose(0, 1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(per_head={self.per_head})"


class LayerGradECLIP(_GradECLIPCore, LayerShapeMixin):
    """Grad-ECLIP on the patch grid: attributions (N, 1, h, w), not negative.

    Values of the last block are weighted by the gradient of the cosine with respect to the class
    token's attention output, and by the cosine of their keys with the class token's query.

    Args:
        forward_func: The classifier, on a transformer with a class token.
        per_head: Attend with the tower's own heads; the release treats the last block as one head
            over the whole width.

    Raises:
        TypeError: If the tower has no class token or no residual blocks.

    References:
        Zhao, Wang, Jiang, Chan: Gradient-based Visual Explanation for Transformer-based CLIP.
        ICML 2024, Eq. 8-12. A critique exists, "Debunking Grad-ECLIP" (arXiv, May 2026);
        `diagnostics.trust` measures how much maps depend on the text.
    """


class GradECLIP(_GradECLIPCore, InputShapeMixin):
    """Grad-ECLIP shaped like the images; see `LayerGradECLIP` for the method."""


class _TokenGradCamCore(TowerAttribution):
    method_name = "Grad-CAM"
    reads_class_token = False
    needs_stream = False

    def __init__(self, forward_func: ZeroShotClassifier, block: int = -1) -> None:
        super().__init__(forward_func)
        self.block = resolve_block(forward_func, block)
        self._set_layer(self.block)

    def patch_scores(self, images: Tensor, features: Tensor) -> Tensor:
        clip, tower = self.forward_func, self.forward_func.tower
        with torch.no_grad():
            tokens, grid_spec = tower.enter(images, self.block)
        tokens = tokens.detach().requires_grad_()
        *_, last = tower.iter_blocks_with_attention(tokens, grid_spec, self.block, pooled_only=True)
        scores = clip.model.logit_scale.exp() * cosines(tower.pool(last.stream), features)
        first = tower.num_prefix_tokens
        maps = []
        for (gradient,) in text_gradients(scores, [tokens]):  # (K, N, L, D)
            channel_weights = gradient[:, :, first:].mean(2, keepdim=True)
            maps.append((channel_weights * tokens[:, first:]).sum(-1).relu())
        return torch.cat(maps).transpose(0, 1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(block={self.block})"


class LayerTokenGradCam(_TokenGradCamCore, LayerShapeMixin):
    """Grad-CAM of the logit on the patch tokens entering a block: attributions (N, 1, h, w).

    Equals Captum's LayerGradCam on `clip.token_grid(block)` with `relu_attributions=True`, for many
    texts in one pass.

    Args:
        forward_func: The classifier, on any tower.
        block: Index of the block; negative values count from the end.

    Raises:
        TypeError: If `block` is not an int.
        IndexError: If `block` is out of range.

    References:
        Selvaraju et al.: Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
        Localization. ICCV 2017, Eq. 1-2.
    """


class TokenGradCam(_TokenGradCamCore, InputShapeMixin):
    """Grad-CAM on patch tokens shaped like the images; see `LayerTokenGradCam`."""
