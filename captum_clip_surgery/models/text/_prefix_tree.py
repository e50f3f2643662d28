"""Compute what texts share at their beginnings only once.

Behind a causal mask, a token does not depend on what follows it, so texts that begin alike have
equal tokens that far: the prompts of a class share "a photo of the", those of all classes more.
Their distinct beginnings are the nodes of a tree; a text is the path from a root to the node at its
end. The text tower's stream is computed for nodes only; attention follows the paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_clip_surgery.models._blocks import (
    AttentionInputs,
    block_attention_inputs,
    block_feed_forward,
    block_merge,
    describe_block_deviation,
)
from captum_clip_surgery.models._dual_encoders import TransformersText
from captum_clip_surgery.models._internals import has_hooks
from captum_clip_surgery.models.text._towers import (
    cast_dtype,
    embed_tokens,
    end_of_text,
    pooled_at_end_of_text,
    project_text,
)


@dataclass(frozen=True)
class TokenPaths:
    """Texts of one length as paths through the tree.

    Attributes:
        nodes: Node at each position (P, L) of the texts.
        num_queries: Number of last positions whose attention is computed along these paths.
    """

    nodes: Tensor
    num_queries: int

    @property
    def queries(self) -> Tensor:
        """The nodes (P, num_queries) whose attention is computed along these paths."""
        return self.nodes[:, -self.num_queries :]


@dataclass(frozen=True)
class PrefixTree:
    """The distinct beginnings of texts, as M nodes.

    Attributes:
        tokens: Last token (M,) of each beginning.
        positions: Position (M,) of that token in the text.
        paths: The texts, grouped by length.
        ends: Node (P,) at the end of each text.
    """

    tokens: Tensor
    positions: Tensor
    paths: tuple[TokenPaths, ...]
    ends: Tensor


def shares_prefixes(tower: Any) -> bool:
    """Return whether a text tower's features can be computed from a tree.

    Return False if the transformer, a block or an attention module has hooks, because this path
    bypasses their `forward`.
    """
    if isinstance(tower, TransformersText) or not pooled_at_end_of_text(tower):
        return False
    blocks = tower.transformer.resblocks
    if any(describe_block_deviation(block) for block in blocks):
        return False
    return not has_hooks([tower.transformer, *blocks, *(block.attn for block in blocks)])


def encode_shared(tower: Any, tokens: Tensor, device: torch.device) -> Tensor:
    """Return the unnormalized features (P, C) of texts, for towers that share prefixes.

    Args:
        tower: The text tower.
        tokens: Token ids (P, context).
        device: The text tower's device.
    """
    tree = build_prefix_tree(tokens, end_of_text(tower, tokens), device)
    mask = tower.attn_mask.to(cast_dtype(tower))
    x = embed_tokens(tower, tree.tokens, tree.positions)[None]
    blocks = tower.transformer.resblocks
    for index, block in enumerate(blocks):
        heads = block_attention_inputs(block, x, (1, x.shape[1]))
        attended = _attend(heads, tree.paths, mask)
        if index == len(blocks) - 1:  # only the ends of texts are read from it
            x, attended = x[:, tree.ends], attended[tree.ends]
        x = x + block_merge(block, attended.transpose(0, 1)[None])
        x = block_feed_forward(block, x)
    return project_text(tower, tower.ln_final(x[0]))


def build_prefix_tree(tokens: Tensor, ends: Tensor, device: torch.device) -> PrefixTree:
    """Build the tree of texts.

    Args:
        tokens: Token ids (P, context).
        ends: Position (P,) of the end of each text.
        device: Device of the tree.
    """
    length = int(ends.max()) + 1
    inside = torch.arange(length, device=tokens.device) <= ends[:, None]  # (P, length)
    # Sorted, distinct texts (R, length), padded with -1.
    rows, text_to_row = tokens[:, :length].where(inside, -1).unique(dim=0, return_inverse=True)
    inside = rows >= 0
    # From where a row differs from the row above it, its nodes are new.
    differs = torch.ones_like(inside)
    differs[1:] = (rows[1:] != rows[:-1]).cumsum(1) > 0
    new = differs & inside
    # Nodes are numbered row by row, so the node that a row shares is the largest above it.
    numbers = new.flatten().cumsum(0).view_as(rows) - 1
    nodes = numbers.where(new, 0).cummax(0).values
    lengths, first_new = inside.sum(1), new.int().argmax(1)
    paths = []
    for count in lengths.unique().tolist():
        same_length = lengths == count
        num_queries = count - int(first_new[same_length].min())
        paths.append(TokenPaths(nodes[same_length, :count].to(device), num_queries))
    positions = torch.arange(length, device=tokens.device).expand_as(rows)
    row_ends = nodes.gather(1, lengths[:, None] - 1)[:, 0]
    return PrefixTree(
        rows[new].to(device),
        positions[new].to(device),
        tuple(paths),
        row_ends[text_to_row].to(device),
    )


def _attend(heads: AttentionInputs, paths: Sequence[TokenPaths], mask: Tensor) -> Tensor:
    """Return attended values (M, heads, d) of nodes, which attend to all nodes up to themselves."""
    q, k, v = (each[0].transpose(0, 1) for each in (heads.q, heads.k, heads.v))
    attended = torch.empty_like(v, memory_format=torch.contiguous_format)
    for path in paths:
        length = path.nodes.shape[1]
        rows = mask[length - path.num_queries : length, :length]
        along_path = (q[path.queries], k[path.nodes], v[path.nodes])
        queries, keys, values = (each.transpose(1, 2) for each in along_path)
        output = F.scaled_dot_product_attention(queries, keys, values, attn_mask=rows)
        attended[path.queries] = output.transpose(1, 2)
    return attended
