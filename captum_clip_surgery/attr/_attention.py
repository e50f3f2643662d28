"""Methods that read the class token's attention: bi-modal relevance, rollout, raw attention."""

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
from captum_clip_surgery.models.image import Tower


class _AttentionRelevanceCore(TowerAttribution):
    method_name = "Attention relevance"

    def __init__(self, forward_func: ZeroShotClassifier, blocks: str = "last") -> None:
        super().__init__(forward_func)
        if blocks not in ("last", "all"):
            raise ValueError(f'blocks must be "last" or "all", got {blocks!r}')
        self.blocks = blocks
        self._set_layer(0 if blocks == "all" else -1)

    def patch_scores(self, images: Tensor, features: Tensor) -> Tensor:
        clip, tower = self.forward_func, self.forward_func.tower
        first = 0 if self.blocks == "all" else len(tower.blocks) - 1
        with torch.no_grad():
            x, grid_spec = tower.enter(images, first)
        traces = list(tower.iter_blocks_with_attention(x, grid_spec, first, pooled_only=True))
        scores = clip.model.logit_scale.exp() * cosines(tower.pool(traces[-1].stream), features)
        attention = [trace.probabilities for trace in traces]
        rows = [relevance_row(part, attention, 0) for part in text_gradients(scores, attention)]
        return self._patches(torch.cat(rows).transpose(0, 1))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(blocks={self.blocks!r})"


class LayerAttentionRelevance(_AttentionRelevanceCore, LayerShapeMixin):
    """Bi-modal attention relevance on the patch grid: attributions (N, 1, h, w).

    Attention times the positive part of the logit's gradient with respect to it, averaged over
    heads and multiplied through the blocks; the map is the class token's row.

    Args:
        forward_func: The classifier, on a transformer with a class token.
        blocks: "last", as in the authors' CLIP notebook, or "all", as in the paper.

    Raises:
        TypeError: If the tower has no class token or no residual blocks.
        ValueError: If `blocks` is neither "last" nor "all".

    References:
        Chefer, Gur, Wolf: Generic Attention-model Explainability for Interpreting Bi-Modal and
        Encoder-Decoder Transformers. ICCV 2021, Eq. 5-6.
    """


class AttentionRelevance(_AttentionRelevanceCore, InputShapeMixin):
    """Bi-modal attention relevance shaped like the images; see `LayerAttentionRelevance`."""


class _AttentionRolloutCore(TowerAttribution):
    method_name = "Attention rollout"
    needs_gradients = False

    def __init__(self, forward_func: ZeroShotClassifier) -> None:
        super().__init__(forward_func)
        self._set_layer(0)

    def patch_scores(self, images: Tensor, features: Tensor) -> Tensor:
        tower = self.forward_func.tower
        x, grid_spec = tower.enter(images, 0)
        traces = tower.iter_blocks_with_attention(x, grid_spec, 0, pooled_only=True)
        attention = [trace.probabilities.mean(1) for trace in traces]
        row = torch.zeros_like(attention[0][:, :1])
        row[..., 0] = 1
        for mixing in reversed(attention):
            # Attention plus identity for the residual, with rows that sum to 1.
            row = (row + row[..., : mixing.shape[-2]] @ mixing) / 2
        return self._patches(row).expand(-1, features.shape[1], -1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class LayerAttentionRollout(_AttentionRolloutCore, LayerShapeMixin):
    """Attention rollout on the patch grid: attributions (N, 1, h, w), the same for every text.

    The class token's row of the product of all blocks' mean attention, with the identity added for
    the residual.

    Args:
        forward_func: The classifier, on a transformer with a class token.

    Raises:
        TypeError: If the tower has no class token or no residual blocks.

    References:
        Abnar, Zuidema: Quantifying Attention Flow in Transformers. ACL 2020.
    """


class AttentionRollout(_AttentionRolloutCore, InputShapeMixin):
    """Attention rollout shaped like the images; see `LayerAttentionRollout` for the method."""


class _RawAttentionCore(TowerAttribution):
    method_name = "Raw attention"
    needs_gradients = False
    needs_stream = False

    def __init__(
        self, forward_func: ZeroShotClassifier, block: int = -1, head: int | None = None
    ) -> None:
        super().__init__(forward_func)
        self.block = resolve_block(forward_func, block)
        if _pools_by_queries(forward_func.tower) and block != -1:
            raise TypeError(
                f"the blocks of {forward_func.tower.family} have no class token; the default "
                f"block=-1 stands for the attention of its pooling, got {block}"
            )
        self.head = head
        self._set_layer(self.block)

    def _check_tower(self, tower: Tower) -> None:
        if not _pools_by_queries(tower):
            super()._check_tower(tower)

    def patch_scores(self, images: Tensor, features: Tensor) -> Tensor:
        tower = self.forward_func.tower
        if _pools_by_queries(tower):
            tokens, _ = tower.enter(images, len(tower.blocks))
            attention = tower.pool_attention(tokens)
        else:
            x, grid_spec = tower.enter(images, self.block)
            heads = tower.attention_inputs(self.block, x, grid_spec).first_queries(1)
            attention = heads.probabilities()[:, :, 0]
        count = attention.shape[1]
        if self.head is not None and not -count <= self.head < count:
            raise IndexError(f"head must be from {-count} to {count - 1}, got {self.head}")
        row = attention.mean(1) if self.head is None else attention[:, self.head]
        return self._patches(row[:, None]).expand(-1, features.shape[1], -1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(block={self.block}, head={self.head})"


def _pools_by_queries(tower: Tower) -> bool:
    """Return whether learned queries attend to the tokens after the last block."""
    return tower.pooling == "attention" and tower.num_pooled_tokens is None


class LayerRawAttention(_RawAttentionCore, LayerShapeMixin):
    """The class token's attention on the patch grid, (N, 1, h, w), the same for every text.

    On towers that are pooled by attention (SigLIP, CoCa, PE-Core), the pooling's own attention.

    Args:
        forward_func: The classifier, on a tower with a class token or attention pooling.
        block: Index of the block; negative values count from the end. On towers pooled by
            attention only -1, which stands for the pooling.
        head: Index of the head; None means the mean over heads.

    Raises:
        TypeError: If the tower is pooled by average, or `block` is not an int or not that of a
            class token.
        IndexError: If `block` or, when called, `head` is out of range.
    """


class RawAttention(_RawAttentionCore, InputShapeMixin):
    """The class token's attention shaped like the images; see `LayerRawAttention`."""
