"""Queries, keys and values of transformer blocks, shared by image and text towers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from open_clip.transformer import (
    Attention,
    CustomResidualAttentionBlock,
    ResidualAttentionBlock,
)
from torch import Tensor, nn

from captum_clip_surgery.models._deviations import HINT, describe_deviation
from captum_clip_surgery.models._internals import has_forward_hooks

Grid = tuple[int, int]

#: open_clip's classes of blocks and of self-attention that can be rebuilt from their parameters.
BLOCKS = (ResidualAttentionBlock, CustomResidualAttentionBlock)
ATTENTIONS = (nn.MultiheadAttention, Attention)


@dataclass(frozen=True)
class AttentionInputs:
    """Queries, keys and values of one block's self-attention.

    Attributes:
        q: Queries (N, heads, L, d), or fewer rows if only the first tokens were requested.
        k: Keys (N, heads, L, d).
        v: Values (N, heads, L, d).
        x: The attention's input (N, L, D): the normalized stream, or the stream itself in post-norm
            blocks.
        grid: Rows and columns of the patches, which follow the prefix tokens.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    x: Tensor
    grid: Grid

    def attend(self) -> Tensor:
        """Return the output (N, heads, L, d) of the block's own attention, before projection."""
        return F.scaled_dot_product_attention(self.q, self.k, self.v)

    def probabilities(self) -> Tensor:
        """Return the block's own attention probabilities (N, heads, L, L)."""
        logits = self.q @ self.k.mT * self.q.shape[-1] ** -0.5
        return logits.softmax(-1)

    def first_queries(self, count: int) -> AttentionInputs:
        """Return the same keys and values with the queries of the first `count` tokens only."""
        return AttentionInputs(self.q[:, :, :count], self.k, self.v, self.x[:, :count], self.grid)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Reshape (N, L, D) to (N, heads, L, D / heads)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """Reshape (N, heads, L, d) to (N, L, heads * d)."""
    return x.transpose(1, 2).flatten(2)


def is_quantized(linear: nn.Module) -> bool:
    """Return whether a linear layer hides its weight, as torch's quantized layers do."""
    return not isinstance(linear.weight, Tensor)


def linear_rows(linear: nn.Module, x: Tensor, rows: slice) -> Tensor:
    """Compute only some output features of a linear layer.

    Subclasses and layers with hooks are called as a whole, because their output depends on more
    than their weight.

    Args:
        linear: The layer.
        x: Inputs (..., in).
        rows: The output features to compute.

    Returns:
        Outputs (..., rows).
    """
    if type(linear) is not nn.Linear or has_forward_hooks(linear):
        return linear(x)[..., rows]
    return F.linear(x, linear.weight[rows], None if linear.bias is None else linear.bias[rows])


# --- open_clip's own blocks ----------------------------------------------------------------------


def block_attention_inputs(
    block: Any, x: Tensor, grid: Grid, queries: int | None = None
) -> AttentionInputs:
    """Return the queries, keys and values of an open_clip block.

    Args:
        block: A block of one of the classes in `BLOCKS`.
        x: The stream (N, L, D) that enters the block.
        grid: Rows and columns of the patches.
        queries: Number of first tokens to compute queries for; None means all.
    """
    attention = block.attn
    normalized = block.ln_1(x)
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    if queries is None:
        q, k, v = F.linear(normalized, weight, bias).chunk(3, dim=-1)
    else:
        of_q, of_kv = slice(len(weight) // 3), slice(len(weight) // 3, None)
        q = F.linear(normalized[:, :queries], weight[of_q], None if bias is None else bias[of_q])
        kv = F.linear(normalized, weight[of_kv], None if bias is None else bias[of_kv])
        k, v = kv.chunk(2, dim=-1)
    q, k, v = (split_heads(each, attention.num_heads) for each in (q, k, v))
    if isinstance(attention, Attention):
        q, k = attention.ln_q(q), attention.ln_k(k)
    return AttentionInputs(q, k, v, normalized, grid)


def block_merge(block: Any, values: Tensor) -> Tensor:
    """Return what an open_clip block adds to the stream for attended values (N, heads, L, d)."""
    attention = block.attn
    if isinstance(attention, Attention):
        if attention.head_scale is not None:
            values = values * attention.head_scale
        merged = attention.ln_inner(join_heads(values))
        merged = attention.out_drop(attention.out_proj(merged))
    else:
        merged = project_attention(attention, join_heads(values))
    if isinstance(block, CustomResidualAttentionBlock):
        merged = block.ln_attn(merged)
    return block.ls_1(merged)


def block_feed_forward(block: Any, x: Tensor) -> Tensor:
    """Return the stream (N, L, D) after an open_clip block's feed-forward."""
    return x + block_update(block, x)


def block_update(block: Any, x: Tensor) -> Tensor:
    """Return what an open_clip block's feed-forward adds to the stream (..., D)."""
    return block.ls_2(block.mlp(block.ln_2(x)))


def project_attention(attention: Any, x: Tensor) -> Tensor:
    """Apply the output projection of `nn.MultiheadAttention`.

    The weight is read, as `nn.MultiheadAttention` does: it never calls `out_proj` as a module.
    """
    return F.linear(x, attention.out_proj.weight, attention.out_proj.bias)


def describe_block_deviation(block: nn.Module) -> str | None:
    """Describe why an open_clip block cannot be rebuilt from its parameters, or return None."""
    deviation = describe_deviation(block, *BLOCKS)
    if deviation:
        return deviation
    attention: Any = block.attn
    if not isinstance(attention, ATTENTIONS):
        kind = type(attention)
        return (
            f"attends by {kind.__module__}.{kind.__name__}, not by open_clip's own classes; if an "
            "adapter such as peft's LoRA wraps them, call merge_and_unload() first"
        )
    deviation = describe_deviation(attention, *ATTENTIONS)
    if deviation:
        return f"attends by a module that {deviation}, and {HINT}"
    if not getattr(attention, "batch_first", True):
        return "takes its tokens as (L, N, D), not batch first"
    if getattr(attention, "logit_scale", None) is not None:
        return "attends by scaled cosines, which open_clip 3.3 itself cannot run"
    return None


# --- layers of transformers ----------------------------------------------------------------------


def attention_of_layer(layer: Any) -> Any:
    """Return the self-attention of a transformers layer."""
    return layer.self_attn if hasattr(layer, "self_attn") else layer.attention


def layer_attention_inputs(
    layer: Any, x: Tensor, grid: Grid, queries: int | None = None
) -> AttentionInputs:
    """Return the queries, keys and values of a transformers layer.

    Args:
        layer: A pre-norm layer with one projection each for q, k and v.
        x: The stream (N, L, D) that enters the layer.
        grid: Rows and columns of the patches.
        queries: Number of first tokens to compute queries for; None means all.
    """
    attention = attention_of_layer(layer)
    normalized = _norms(layer)[0](x)
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    inputs = (normalized[:, :queries], normalized, normalized)
    projected = (project(each) for project, each in zip(projections, inputs, strict=True))
    q, k, v = (each.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2) for each in projected)
    return AttentionInputs(q, k, v, normalized, grid)


def layer_merge(layer: Any, values: Tensor) -> Tensor:
    """Return what a transformers layer adds to the stream for values (N, heads, L, d)."""
    attention = attention_of_layer(layer)
    if hasattr(attention, "o_proj"):  # TIPS v2
        return layer.drop_path(layer.layer_scale1(attention.o_proj(join_heads(values))))
    return attention.out_proj(join_heads(values))


def layer_feed_forward(layer: Any, x: Tensor) -> Tensor:
    """Return the stream (N, L, D) after a transformers layer's feed-forward."""
    return x + layer_update(layer, x)


def layer_update(layer: Any, x: Tensor) -> Tensor:
    """Return what a transformers layer's feed-forward adds to the stream (..., D)."""
    update = layer.mlp(_norms(layer)[1](x))
    if hasattr(layer, "layer_scale2"):
        update = layer.drop_path(layer.layer_scale2(update))
    return update


def _norms(layer: Any) -> tuple[Any, Any]:
    if hasattr(layer, "norm1"):
        return layer.norm1, layer.norm2
    return layer.layer_norm1, layer.layer_norm2


def query_attention_inputs(attention: Any, queries: Tensor, x: Tensor) -> AttentionInputs:
    """Return the queries, keys and values of an attention pooling by learned queries.

    Args:
        attention: `nn.MultiheadAttention`, or open_clip 4's class with the same parameters.
        queries: Queries (Q, D).
        x: Tokens (N, L, D) that they attend to.
    """
    q, k, v = (
        split_heads(_project(attention, part, each), attention.num_heads)
        for part, each in enumerate((queries[None], x, x))
    )
    return AttentionInputs(q.expand(len(x), -1, -1, -1), k, v, x, (1, x.shape[1]))


def single_token_value(attention: Any, x: Tensor) -> Tensor:
    """Pass each token (N, L, D) alone through an attention pooling.

    With one key, attention returns its value for any query.
    """
    return project_attention(attention, _project(attention, 2, x))


def _project(attention: Any, part: int, x: Tensor) -> Tensor:
    """Compute the queries (part 0), keys (1) or values (2) of `nn.MultiheadAttention`."""
    if attention.in_proj_weight is None:
        weight = getattr(attention, f"{'qkv'[part]}_proj_weight")
    else:
        weight = attention.in_proj_weight.chunk(3)[part]
    bias = None if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)[part]
    return F.linear(x, weight, bias)
