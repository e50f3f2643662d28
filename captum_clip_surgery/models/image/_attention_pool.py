"""Attention pooling by learned queries, taken apart like a block without a residual."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor
from typing_extensions import override

from captum_clip_surgery.models._blocks import (
    AttentionInputs,
    join_heads,
    linear_rows,
    project_attention,
    query_attention_inputs,
    split_heads,
)


class AttentionPool(ABC):
    """Adapter for the module by which learned queries attend to the tokens of the last block."""

    @abstractmethod
    def attention_inputs(self, x: Tensor) -> AttentionInputs:
        """Return queries (N, heads, Q, d), keys and values (N, heads, L, d) of tokens (N, L, D)."""

    @abstractmethod
    def merge(self, values: Tensor) -> Tensor:
        """Return the output (N, Q, D) for attended values (N, heads, Q, d)."""

    def feed_forward(self, x: Tensor) -> Tensor:
        """Return tokens (N, Q, D) after the pooling's own feed-forward, if it has one."""
        return x

    @abstractmethod
    def pool(self, x: Tensor) -> Tensor:
        """Return the embedding (N, C) of the queries' outputs (N, Q, D)."""


class OpenCLIPAttentionPool(AttentionPool):
    """Attention pooling of open_clip's VisionTransformer, as in CoCa.

    Args:
        visual: The image tower.
    """

    def __init__(self, visual: Any) -> None:
        self.visual = visual

    @override
    def attention_inputs(self, x: Tensor) -> AttentionInputs:
        pooler = self.visual.attn_pool
        queries = pooler.ln_q(pooler.query)
        if self.visual.pool_type == "tok":  # the first query's output is the embedding
            queries = queries[:1]
        return query_attention_inputs(pooler.attn, queries, pooler.ln_k(x))

    @override
    def merge(self, values: Tensor) -> Tensor:
        return project_attention(self.visual.attn_pool.attn, join_heads(values))

    @override
    def pool(self, x: Tensor) -> Tensor:
        x = self.visual.ln_post(x)
        x = x[:, 0] if self.visual.pool_type == "tok" else x[:, 1:].mean(1)
        return x if self.visual.proj is None else x @ self.visual.proj


class TimmAttentionPool(AttentionPool):
    """Attention pooling of a timm trunk with one query.

    Args:
        visual: open_clip's tower around the trunk.
    """

    def __init__(self, visual: Any) -> None:
        self.visual = visual

    @override
    def attention_inputs(self, x: Tensor) -> AttentionInputs:
        pooler, x = self.visual.trunk.attn_pool, self.visual.trunk.norm(x)
        q = split_heads(pooler.q(pooler.latent), pooler.num_heads)
        k, v = (split_heads(each, pooler.num_heads) for each in pooler.kv(x).chunk(2, dim=-1))
        q = pooler.q_norm(q).expand(x.shape[0], -1, -1, -1)
        return AttentionInputs(q, pooler.k_norm(k), v, x, (1, x.shape[1]))

    @override
    def merge(self, values: Tensor) -> Tensor:
        pooler = self.visual.trunk.attn_pool
        return pooler.proj_drop(pooler.proj(join_heads(values)))

    @override
    def feed_forward(self, x: Tensor) -> Tensor:
        pooler = self.visual.trunk.attn_pool
        return x if pooler.mlp is None else x + pooler.mlp(pooler.norm(x))

    @override
    def pool(self, x: Tensor) -> Tensor:
        trunk = self.visual.trunk
        return self.visual.head(trunk.head(trunk.head_drop(trunk.fc_norm(x[:, 0]))))


def value_path(pooler: Any, x: Tensor) -> Tensor:
    """Pass each token alone through timm's pooler.

    With one key, attention returns the value for any query.
    """
    values = slice(pooler.num_heads * pooler.head_dim, None)  # the keys come first
    x = pooler.proj_drop(pooler.proj(linear_rows(pooler.kv, x, values)))
    return x if pooler.mlp is None else x + pooler.mlp(pooler.norm(x))


class SiglipAttentionPool(AttentionPool):
    """Pooling head of transformers' SigLIP with one query.

    Args:
        vision: The vision model.
    """

    def __init__(self, vision: Any) -> None:
        self.vision = vision

    @override
    def attention_inputs(self, x: Tensor) -> AttentionInputs:
        head = self.vision.head
        return query_attention_inputs(head.attention, head.probe[0], self.vision.post_layernorm(x))

    @override
    def merge(self, values: Tensor) -> Tensor:
        return project_attention(self.vision.head.attention, join_heads(values))

    @override
    def feed_forward(self, x: Tensor) -> Tensor:
        head = self.vision.head
        return x + head.mlp(head.layernorm(x))

    @override
    def pool(self, x: Tensor) -> Tensor:
        return x[:, 0]
