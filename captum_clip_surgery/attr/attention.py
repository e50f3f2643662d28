"""Methods that read a tower's attention and gradients: LeGrad, relevance, rollout, Grad-ECLIP.

They take both in the adapter's own pass, beside the model, which keeps its modules as they are and
gets no `.grad`. Where they need gradients they enable them, whatever the caller's mode, and their
maps come back detached. Many texts cost one forward pass and batched gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor

from captum_clip_surgery.attr._base import InputShapeMixin, LayerShapeMixin
from captum_clip_surgery.attr._gradients import (
    TowerAttribution,
    cosines,
    relevance_row,
    resolve_block,
    text_gradients,
)
from captum_clip_surgery.classifier import ZeroShotClassifier


class _AttentionRelevanceCore(TowerAttribution):
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
        opened = list(tower.iter_blocks_with_attention(x, layout, first, pooled_only=True))
        scores = clip.model.logit_scale.exp() * cosines(tower.pool(opened[-1].stream), features)
        attention = [block.probabilities for block in opened]
        rows = [relevance_row(part, attention, 0) for part in text_gradients(scores, attention)]
        return self._patches(torch.cat(rows).transpose(0, 1))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(blocks={self.blocks!r})"


class LayerAttentionRelevance(_AttentionRelevanceCore, LayerShapeMixin):
    """Bi-modal attention relevance on the patch grid, (N, 1, h, w) for a text.

    Attention times the positive gradient of the logit by it, averaged over heads, multiplied up
    through the blocks; the class token's row.

    Args:
        forward_func: the classifier, on a transformer with a class token.
        blocks: "last", as in the authors' CLIP notebook, or "all", as in the paper.

    Source: Chefer, Gur, Wolf, "Generic Attention-model Explainability for Interpreting Bi-Modal and
    Encoder-Decoder Transformers" (ICCV 2021), Eq. 5-6.
    """


class AttentionRelevance(_AttentionRelevanceCore, InputShapeMixin):
    """Bi-modal attention relevance shaped like the images; see `LayerAttentionRelevance`."""


class _AttentionRolloutCore(TowerAttribution):
    needs_gradients = False

    def __init__(self, forward_func: ZeroShotClassifier) -> None:
        super().__init__(forward_func)
        self.begin_at(0)

    def patch_scores(self, images: Tensor, features: Tensor) -> Tensor:
        tower = self.forward_func.tower
        opened = tower.iter_blocks_with_attention(*tower.enter(images, 0), 0, pooled_only=True)
        attention = [block.probabilities.mean(1) for block in opened]
        row = torch.zeros_like(attention[0][:, :1])
        row[..., 0] = 1
        for mixing in reversed(attention):
            # Attention and identity, rows normalised to 1.
            row = (row + row[..., : mixing.shape[-2]] @ mixing) / 2
        return self._patches(row).expand(-1, features.shape[1], -1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class LayerAttentionRollout(_AttentionRolloutCore, LayerShapeMixin):
    """Attention rollout on the patch grid, (N, 1, h, w), the same for every text.

    The class token's row of the product of all blocks' mean attention, identity added for the
    residual.

    Source: Abnar, Zuidema, "Quantifying Attention Flow in Transformers" (ACL 2020).
    """


class AttentionRollout(_AttentionRolloutCore, InputShapeMixin):
    """Attention rollout shaped like the images; see `LayerAttentionRollout`."""


class _RawAttentionCore(TowerAttribution):
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


class LayerRawAttention(_RawAttentionCore, LayerShapeMixin):
    """The class token's attention on the patch grid, (N, 1, h, w), the same for every text.

    Args:
        forward_func: the classifier, on a tower with a class token, or a ResNet.
        block: which block's; negative counts from the end.
        head: which head's; None is the mean over heads.

    Raises:
        IndexError: a block or head there is not.
    """


class RawAttention(_RawAttentionCore, InputShapeMixin):
    """The class token's attention shaped like the images; see `LayerRawAttention`."""
