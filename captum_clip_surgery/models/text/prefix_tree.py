"""What texts share at their beginnings, computed once.

Behind a causal mask a token knows nothing of what follows it, so texts that begin alike are alike
as far as that goes: the prompts of a class share "a photo of the", those of all classes more. Their
distinct beginnings are the nodes of a tree, a text is the path from a root to the node at its end.
The text tower's stream is kept of nodes alone; only attention walks along the paths.
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
    block_feed_forward,
    block_heads,
    block_merge,
    has_hooks,
    why_not_rebuilt,
)
from captum_clip_surgery.models.text.towers import (
    cast_dtype,
    end_of_text,
    pooled_at_end_of_text,
    project_text,
)


@dataclass(frozen=True)
class Paths:
    """Texts of one length: their `nodes` (P, L), of which attention is asked for the `last`."""

    nodes: Tensor
    last: int

    @property
    def asked(self) -> Tensor:
        return self.nodes[:, -self.last :]


@dataclass(frozen=True)
class Tree:
    """The distinct beginnings of texts: M nodes.

    `tokens` (M,) and `places` (M,) are each node's last token and where it stands, `paths` the
    texts by length, `ends` (P,) the node at the end of each text.
    """

    tokens: Tensor
    places: Tensor
    paths: tuple[Paths, ...]
    ends: Tensor


def shares_prefixes(tower: Any) -> bool:
    """Whether a text tower's features can be had from a tree.

    Not where somebody hooked a module that is not called as one on this way: the transformer, its
    blocks and their attention.
    """
    if not pooled_at_end_of_text(tower):
        return False
    blocks = tower.transformer.resblocks
    if any(why_not_rebuilt(block) for block in blocks):
        return False
    return not has_hooks([tower.transformer, *blocks, *(block.attn for block in blocks)])


def encode_shared(tower: Any, tokens: Tensor, device: torch.device) -> Tensor:
    """Unnormalised features (P, C) of token ids (P, context), for towers that share prefixes."""
    tree = grow(tokens, end_of_text(tower, tokens), device)
    dtype = cast_dtype(tower)
    mask = tower.attn_mask.to(dtype)
    x = tower.token_embedding(tree.tokens).to(dtype)
    x = (x + tower.positional_embedding[tree.places].to(dtype))[None]
    left = len(tower.transformer.resblocks)
    for block in tower.transformer.resblocks:
        attended = _attend(block_heads(block, x, (1, x.shape[1])), tree.paths, mask)
        left -= 1
        if not left:  # nothing is read of the last block but the ends
            x, attended = x[:, tree.ends], attended[tree.ends]
        x = x + block_merge(block, attended.transpose(0, 1)[None])
        x = block_feed_forward(block, x)
    return project_text(tower, tower.ln_final(x[0]))


def grow(tokens: Tensor, ends: Tensor, device: torch.device) -> Tree:
    """The tree of token ids (P, context) up to the places of their ends (P,), on a device."""
    length = int(ends.max()) + 1
    inside = torch.arange(length, device=tokens.device) <= ends[:, None]
    rows, text_to_row = tokens[:, :length].where(inside, -1).unique(dim=0, return_inverse=True)
    inside = rows >= 0
    # Rows are sorted: from where one differs from the row above it, its nodes are new.
    differs = torch.ones_like(inside)
    differs[1:] = (rows[1:] != rows[:-1]).cumsum(1) > 0
    new = differs & inside
    # Nodes are counted row by row, so the one a row shares is the highest above it.
    numbers = new.flatten().cumsum(0).view_as(rows) - 1
    nodes = numbers.where(new, 0).cummax(0).values
    lengths, firsts = inside.sum(1), new.int().argmax(1)
    paths = []
    for count in lengths.unique().tolist():
        alike = lengths == count
        asked = count - int(firsts[alike].min())
        paths.append(Paths(nodes[alike, :count].to(device), asked))
    places = torch.arange(length, device=tokens.device).expand_as(rows)
    row_ends = nodes.gather(1, lengths[:, None] - 1)[:, 0]
    return Tree(
        rows[new].to(device), places[new].to(device), tuple(paths), row_ends[text_to_row].to(device)
    )


def _attend(heads: AttentionInputs, paths: Sequence[Paths], mask: Tensor) -> Tensor:
    """What nodes (M, heads, d) attend to: themselves and all before them."""
    q, k, v = (part[0].transpose(0, 1) for part in (heads.q, heads.k, heads.v))
    attended = torch.empty_like(v, memory_format=torch.contiguous_format)
    for path in paths:
        length = path.nodes.shape[1]
        rows = mask[length - path.last : length, :length]
        of_path = (q[path.asked], k[path.nodes], v[path.nodes])
        asked, keys, given = (part.transpose(1, 2) for part in of_path)
        values = F.scaled_dot_product_attention(asked, keys, given, attn_mask=rows)
        attended[path.asked] = values.transpose(1, 2)
    return attended
