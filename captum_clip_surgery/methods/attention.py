"""Methods that read a tower's attention and gradients: LeGrad, relevance, rollout, Grad-ECLIP.

They take both in the adapter's own pass, beside the model, which keeps its modules as they are and
gets no `.grad`. Where they need gradients they enable them, whatever the caller's mode, and their
maps come back detached. Many texts cost one forward pass and batched gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor

from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.methods.base import GridMaps, ImageMaps
from captum_clip_surgery.methods.opened import (
    TowerMaps,
    cosines,
    likeness_to,
    relevance_row,
    resolve_block,
    text_gradients,
)
from captum_clip_surgery.surgery import resolve_depth
from captum_clip_surgery.towers.base import join_heads, split_heads

# --- LeGrad --------------------------------------------------------------------------------------


class LeGradMaps(TowerMaps):
    reads_class_token = False

    def __init__(self, forward_func: ZeroShotClassifier, depth: int = 2) -> None:
        super().__init__(forward_func)
        self.depth = resolve_depth(forward_func, depth)
        if not self.depth:
            raise ValueError("depth 0 leaves no block whose attention LeGrad could read")
        self.begin_at(-self.depth)

    def patch_scores(self, images: Tensor, features: Tensor) -> Tensor:
        tower = self.forward_func.tower
        first = len(tower.blocks) - self.depth
        with torch.no_grad():
            x, layout = tower.enter(images, first)
        maps = []
        for block in tower.open_blocks(x, layout, first):
            pooled = tower.project(block.stream.mean(1, keepdim=True))[:, 0]
            scores = cosines(pooled, features)
            gradients = text_gradients(scores, [block.probabilities])
            # Over heads and queries.
            maps.append(torch.cat([part.relu().mean((2, 3)) for (part,) in gradients]))
        return self._patches(torch.stack(maps).sum(0).transpose(0, 1))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(depth={self.depth})"


class LayerLeGrad(LeGradMaps, GridMaps):
    """LeGrad on the patch grid, (N, 1, h, w) for a text: where attention would raise its score.

    For each of the last blocks, the cosine of the text with the mean of the block's tokens, taken
    to the joint space, is differentiated by the block's attention; what is positive is averaged
    over heads and queries and summed over blocks. The release then min-max normalises; this does
    not.

    Args:
        forward_func: the classifier, on any tower of residual blocks.
        depth: how many of the last blocks are read.

    Source: Bousselham, Boggust, Chaybouti, Strobelt, Kuehne, "LeGrad: An Explainability Method for
    Vision Transformers via Feature Formation Sensitivity" (ICCV 2025).
    """


class LeGrad(LeGradMaps, ImageMaps):
    """LeGrad shaped like the images; see `LayerLeGrad`."""


# --- attention of the class token ----------------------------------------------------------------


class AttentionRelevanceMaps(TowerMaps):
    def __init__(self, forward_func: ZeroShotClassifier, blocks: str = "last") -> None:
        super().__init__(forward_func)
        if blocks not in ("last", "all"):
            raise ValueError(f'blocks {blocks!r} is neither "last" nor "all"')
        self.blocks = blocks
        self.begin_at(0 if blocks == "all" else -1)

    def patch_scores(self, images: Tensor, features: Tensor) -> Tensor:
        clip, tower = self.forward_func, self.forward_func.tower
        first = 0 if self.blocks == "all" else len(tower.blocks) - 1
        with torch.no_grad():
            x, layout = tower.enter(images, first)
        opened = list(tower.open_blocks(x, layout, first, pooled_only=True))
        scores = clip.model.logit_scale.exp() * cosines(tower.pool(opened[-1].stream), features)
        attention = [block.probabilities for block in opened]
        rows = [relevance_row(part, attention, 0) for part in text_gradients(scores, attention)]
        return self._patches(torch.cat(rows).transpose(0, 1))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(blocks={self.blocks!r})"


class LayerAttentionRelevance(AttentionRelevanceMaps, GridMaps):
    """Bi-modal attention relevance on the patch grid, (N, 1, h, w) for a text.

    Attention times the positive gradient of the logit by it, averaged over heads, multiplied up
    through the blocks; the class token's row.

    Args:
        forward_func: the classifier, on a transformer with a class token.
        blocks: "last", as in the authors' CLIP notebook, or "all", as in the paper.

    Source: Chefer, Gur, Wolf, "Generic Attention-model Explainability for Interpreting Bi-Modal and
    Encoder-Decoder Transformers" (ICCV 2021), Eq. 5-6.
    """


class AttentionRelevance(AttentionRelevanceMaps, ImageMaps):
    """Bi-modal attention relevance shaped like the images; see `LayerAttentionRelevance`."""


class AttentionRolloutMaps(TowerMaps):
    needs_gradients = False

    def __init__(self, forward_func: ZeroShotClassifier) -> None:
        super().__init__(forward_func)
        self.begin_at(0)

    def patch_scores(self, images: Tensor, features: Tensor) -> Tensor:
        tower = self.forward_func.tower
        opened = tower.open_blocks(*tower.enter(images, 0), 0, pooled_only=True)
        attention = [block.probabilities.mean(1) for block in opened]
        row = torch.zeros_like(attention[0][:, :1])
        row[..., 0] = 1
        for mixing in reversed(attention):
            # Attention and identity, rows normalised to 1.
            row = (row + row[..., : mixing.shape[-2]] @ mixing) / 2
        return self._patches(row).expand(-1, features.shape[1], -1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class LayerAttentionRollout(AttentionRolloutMaps, GridMaps):
    """Attention rollout on the patch grid, (N, 1, h, w), the same for every text.

    The class token's row of the product of all blocks' mean attention, identity added for the
    residual.

    Source: Abnar, Zuidema, "Quantifying Attention Flow in Transformers" (ACL 2020).
    """


class AttentionRollout(AttentionRolloutMaps, ImageMaps):
    """Attention rollout shaped like the images; see `LayerAttentionRollout`."""


class RawAttentionMaps(TowerMaps):
    needs_gradients = False
    needs_stream = False

    def __init__(
        self, forward_func: ZeroShotClassifier, block: int = -1, head: int | None = None
    ) -> None:
        super().__init__(forward_func)
        self.block = resolve_block(forward_func, block)
        self.head = head
        self.begin_at(self.block)

    def patch_scores(self, images: Tensor, features: Tensor) -> Tensor:
        tower = self.forward_func.tower
        x, layout = tower.enter(images, self.block)
        attention = tower.heads(self.block, x, layout).first_queries(1).probabilities()[:, :, 0]
        if self.head is not None and not -attention.shape[1] <= self.head < attention.shape[1]:
            raise IndexError(f"head {self.head} of {attention.shape[1]}")
        row = attention.mean(1) if self.head is None else attention[:, self.head]
        return self._patches(row[:, None]).expand(-1, features.shape[1], -1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(block={self.block}, head={self.head})"


class LayerRawAttention(RawAttentionMaps, GridMaps):
    """The class token's attention on the patch grid, (N, 1, h, w), the same for every text.

    Args:
        forward_func: the classifier, on a tower with a class token, or a ResNet.
        block: which block's; negative counts from the end.
        head: which head's; None is the mean over heads.

    Raises:
        IndexError: a block or head there is not.
    """


class RawAttention(RawAttentionMaps, ImageMaps):
    """The class token's attention shaped like the images; see `LayerRawAttention`."""


# --- gradients by tokens -------------------------------------------------------------------------


class GradEclipMaps(TowerMaps):
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


class LayerGradEclip(GradEclipMaps, GridMaps):
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


class GradEclip(GradEclipMaps, ImageMaps):
    """Grad-ECLIP shaped like the images; see `LayerGradEclip`."""


class TokenGradCamMaps(TowerMaps):
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
        *_, last = tower.open_blocks(tokens, layout, self.block, pooled_only=True)
        scores = clip.model.logit_scale.exp() * cosines(tower.pool(last.stream), features)
        patches = tokens[:, tower.num_prefix_tokens :]
        maps = []
        for (gradient,) in text_gradients(scores, [tokens]):
            weights = gradient[:, :, tower.num_prefix_tokens :].mean(2, keepdim=True)
            maps.append((weights * patches).sum(-1).relu())
        return torch.cat(maps).transpose(0, 1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(block={self.block})"


class LayerTokenGradCam(TokenGradCamMaps, GridMaps):
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


class TokenGradCam(TokenGradCamMaps, ImageMaps):
    """Grad-CAM on patch tokens shaped like the images; see `LayerTokenGradCam`."""
