"""Queries, keys and values of transformer blocks, shared by image and text towers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from open_clip.transformer import (
    Attention,
    CustomResidualAttentionBlock,
    ResidualAttentionBlock,
)
from torch import Tensor, nn

from captum_clip_surgery.models._exact import HINT, why_not_exactly

Grid = tuple[int, int]

ATTENTIONS = (nn.MultiheadAttention, Attention)


@dataclass(frozen=True)
class AttentionInputs:
    """What self-attention of one block works on.

    `q`, `k`, `v` are (N, heads, L, d), `q` shorter where only the first tokens were asked for, `x`
    (N, L, D) the input they were made from (normalised, but for post-norm blocks), and `grid` the
    (rows, columns) of the patches, which follow the prefix tokens.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    x: Tensor
    grid: Grid

    def attend(self) -> Tensor:
        """The block's own attention, (N, heads, L, d)."""
        return F.scaled_dot_product_attention(self.q, self.k, self.v)

    def probabilities(self) -> Tensor:
        """The block's own attention as softmaxed weights, (N, heads, L, L)."""
        scores = self.q @ self.k.mT * self.q.shape[-1] ** -0.5
        return scores.softmax(-1)

    def first_queries(self, count: int) -> AttentionInputs:
        """The same keys and values, asked only for the first tokens."""
        return AttentionInputs(self.q[:, :, :count], self.k, self.v, self.x[:, :count], self.grid)


def some_rows(linear: nn.Module, x: Tensor, rows: slice) -> Tensor:
    """Some of a linear map's outputs, (..., rows).

    Only a plain `nn.Linear` is taken apart. What wraps or hooks one is called as a whole, for it
    knows more than its weight.
    """
    if type(linear) is not nn.Linear or linear._forward_hooks or linear._forward_pre_hooks:
        return linear(x)[..., rows]
    return F.linear(x, linear.weight[rows], None if linear.bias is None else linear.bias[rows])


def is_quantised(linear: nn.Module) -> bool:
    """Whether a linear map keeps its weight to itself, as torch's quantised ones do."""
    return not isinstance(linear.weight, Tensor)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(N, L, D) to (N, heads, L, D / heads)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(N, heads, L, d) to (N, L, heads * d)."""
    return x.transpose(1, 2).flatten(2)


BLOCKS = (ResidualAttentionBlock, CustomResidualAttentionBlock)


def block_heads(block: Any, x: Tensor, grid: Grid, queries: int | None = None) -> AttentionInputs:
    attention = block.attn
    normalised = block.ln_1(x)
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    if queries is None:
        parts = F.linear(normalised, weight, bias).chunk(3, dim=-1)
    else:
        own, rest = slice(len(weight) // 3), slice(len(weight) // 3, None)
        q = F.linear(normalised[:, :queries], weight[own], None if bias is None else bias[own])
        kv = F.linear(normalised, weight[rest], None if bias is None else bias[rest])
        parts = (q, *kv.chunk(2, dim=-1))
    q, k, v = (split_heads(part, attention.num_heads) for part in parts)
    if isinstance(attention, Attention):
        q, k = attention.ln_q(q), attention.ln_k(k)
    return AttentionInputs(q, k, v, normalised, grid)


def block_merge(block: Any, values: Tensor) -> Tensor:
    attention = block.attn
    if isinstance(attention, Attention):
        if attention.head_scale is not None:
            values = values * attention.head_scale
        merged = attention.ln_inner(join_heads(values))
        merged = attention.out_drop(attention.out_proj(merged))
    else:
        merged = _out_projected(attention, join_heads(values))
    if isinstance(block, CustomResidualAttentionBlock):
        merged = block.ln_attn(merged)
    return block.ls_1(merged)


def _out_projected(attention: Any, x: Tensor) -> Tensor:
    """As `nn.MultiheadAttention` does, which never calls it: what wraps it has no effect."""
    return F.linear(x, attention.out_proj.weight, attention.out_proj.bias)


def block_feed_forward(block: Any, x: Tensor) -> Tensor:
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def why_not_rebuilt(block: nn.Module) -> str | None:
    """Why the adapter cannot rebuild a block, or None."""
    altered = why_not_exactly(block, *BLOCKS)
    if altered:
        return altered
    attention: Any = block.attn
    if isinstance(attention, ATTENTIONS):
        altered = why_not_exactly(attention, *ATTENTIONS)
        if altered:
            return f"attends by a module that {altered}, and {HINT}"
    else:
        kind = type(attention)
        return (
            f"attends by {kind.__module__}.{kind.__name__}, not by open_clip's own classes; where "
            "an adapter such as peft's LoRA wraps them, call merge_and_unload() first"
        )
    if not getattr(attention, "batch_first", True):
        return "takes its tokens as (L, N, D), not batch first"
    if getattr(attention, "logit_scale", None) is not None:
        return "attends by scaled cosines, which open_clip 3.3 itself cannot run"
    return None


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def has_hooks(modules: Iterable[nn.Module]) -> bool:
    """Whether a call of one of these modules calls something else, too."""
    return any(getattr(module, kind) for module in modules for kind in HOOKS)
