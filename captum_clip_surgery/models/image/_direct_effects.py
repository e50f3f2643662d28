"""Contributions of heads, patches and feed-forward layers of an image tower to the embedding.

The embedding is a sum over the parts of the pooled stream, once the statistics of norms are frozen
(Elhage et al. 2021; Gandelsman, Efros, Steinhardt, ICLR 2024). Only its products with directions
are asked for, so directions are pulled back to each block's attended values: no tensor of
blocks x heads x patches x width is built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_clip_surgery.models._blocks import AttentionInputs, Grid, join_heads
from captum_clip_surgery.models._frozen_norms import FrozenNorms, check_sum, pull_back
from captum_clip_surgery.models.image._base import Tower
from captum_clip_surgery.models.image._traces import Trace, trace_of


@dataclass(frozen=True)
class DirectEffects:
    """Contributions of an image tower's parts to products of its embedding with directions.

    Attributes:
        patches: Contributions (N, K, h*w) of patches, summed over the chosen blocks and heads.
        remainder: Contributions (N, K) of everything else, by name: "embedding" (the tokens that
            enter the first block), "feed-forward", "prefix tokens" (attended by the chosen heads),
            "bias" and, where blocks or heads were chosen, "other heads". Names of parts that the
            tower does not have are absent.
        embedding: The model's own embedding (N, C), not normalized.
        grid: Rows h and columns w of the patches.
        by_head: Contributions (N, K, B, H, h*w) of patches by block and head, chosen or not; None
            unless detailed.
        prefix_by_head: Contributions (N, K, B, H) of prefix tokens likewise.
        feed_forward: Contributions (N, K, B) of feed-forward layers by block; None unless detailed,
            or if the tower has none.
    """

    patches: Tensor
    remainder: Mapping[str, Tensor]
    embedding: Tensor
    grid: Grid
    by_head: Tensor | None = None
    prefix_by_head: Tensor | None = None
    feed_forward: Tensor | None = None

    def sum(self) -> Tensor:
        """Return the sum (N, K) of all contributions: the embedding's products, up to rounding."""
        return self.patches.sum(-1) + torch.stack(list(self.remainder.values())).sum(0)


def direct_effects(
    tower: Tower,
    images: Tensor,
    directions: Tensor,
    *,
    blocks: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    detailed: bool = False,
) -> DirectEffects:
    """Split the products of images' embeddings with directions into the tower's parts.

    Args:
        tower: The adapter of an image tower.
        images: Images (N, 3, H, W) in the tower's dtype.
        directions: Directions (K, C) for all images or (N, K, C), of any length.
        blocks: Indices of the blocks whose heads count as patches; None means all. A tower
            pooled by attention has one block, its pooling.
        heads: Indices of the heads, the same in each of these blocks; None means all.
        detailed: Whether contributions are also returned by block and head.

    Raises:
        TypeError: If the decomposition is not defined on the tower, or an index is not an int.
        IndexError: If a block or head is out of range.
        ValueError: If no block or no head is chosen.
        RuntimeError: If the parts do not sum to the embedding, because a layer of the tower is not
            affine where its adapter promises it.
    """
    check_direct_effects(tower)
    ledger = _Ledger(trace_of(tower, images), directions, tower.num_prefix_tokens, detailed)
    ledger.choose(blocks, heads)
    ledger.run()
    effects = ledger.effects()
    _check_sum(effects, directions, tower)
    return effects


def check_direct_effects(tower: Tower) -> None:
    """Check that the decomposition of embeddings is defined on a tower.

    Raises:
        TypeError: If it is not; the message says why.
    """
    reason = tower.describe_undecomposable()
    if tower.attention_pool is None:
        if tower.pooling == "attention" and tower.num_pooled_tokens is None:
            reason = "its adapter does not take the attention of its pooling apart"
        elif not tower.has_residual and len(tower.blocks) > 1:
            reason = "its blocks do not add to one stream"
    if reason:
        raise TypeError(f"direct effects are not defined on {tower.family}: {reason}")


def chosen_indices(indices: Sequence[int] | None, count: int, what: str) -> list[int]:
    """Return indices of blocks or heads counted from the start, sorted; None means all.

    Args:
        indices: The indices; negative values count from the end.
        count: The number of blocks or heads.
        what: "block" or "head", for messages.

    Raises:
        TypeError: If an index is not an int.
        IndexError: If an index is out of range.
        ValueError: If there is none.
    """
    if indices is None:
        return list(range(count))
    if not isinstance(indices, Iterable):
        raise TypeError(f"{what}s must be a list of ints or None, got {indices!r}")
    indices = list(indices)
    for index in indices:
        if isinstance(index, bool) or not isinstance(index, int):
            raise TypeError(f"{what}s must be a list of ints or None, got {index!r} in it")
        if not -count <= index < count:
            raise IndexError(f"{what} must be from {-count} to {count - 1}, got {index}")
    if not indices:
        raise ValueError(f"{what}s must hold at least one index, got none; None means all")
    return sorted({index % count for index in indices})


@dataclass
class _Attention:
    """Attention of the pooled tokens in one block.

    Attributes:
        index: Index of the block.
        heads: Queries of the T pooled tokens; keys and values of all.
        scales: Factors (N or 1, T or 1) by which the norms behind the attention scale its output.
        pulled: Directions (M, K, H, d) at attended values, before these factors, or for gated
            blocks one such tensor per pooled token.
    """

    index: int
    heads: AttentionInputs
    scales: Tensor
    pulled: list[Tensor]


class _Ledger:
    """The decomposition of one batch, filled block by block.

    Args:
        trace: What to follow.
        directions: Directions (K, C) or (N, K, C).
        prefix: Number of prefix tokens.
        detailed: Whether to keep contributions by block and head.
    """

    def __init__(self, trace: Trace, directions: Tensor, prefix: int, detailed: bool) -> None:
        self.trace = trace
        self.directions = directions if directions.ndim == 3 else directions[None]  # (M, K, C)
        self.directions = self.directions.to(trace.tokens.dtype)
        self.prefix = prefix
        self.detailed = detailed
        self.wide = torch.promote_types(trace.tokens.dtype, torch.float32)
        # Enough tokens to be pooled: by average, at least one patch.
        self.few = min(trace.num_pooled, prefix + 1)
        self.pulled = self._through_pool(self.directions, self.few).sum(2)  # (M, K, D)
        self.blocks: list[int] = []
        self.heads: Sequence[int] | None = None
        self.selective = False
        # Sums over blocks.
        self.contributions: Any = 0  # of tokens attended by chosen heads, (N, K, L)
        self.others: Any = 0  # of all tokens attended by other heads, (N, K)
        self.bias: Any = 0  # in the stream, (N or 1, T or 1, D)
        self.fed_forward: Tensor | None = None  # by feed-forward layers, (N, T, D)
        # By block, if detailed.
        self.by_head: list[Tensor] = []  # (N, K, H, L) each
        self.updates: list[Tensor] = []  # of the feed-forward layers, (N, T, D) each

    def choose(self, blocks: Sequence[int] | None, heads: Sequence[int] | None) -> None:
        """Choose the heads that count as patches."""
        self.blocks = chosen_indices(blocks, self.trace.count, "block")
        self.heads = heads
        self.selective = blocks is not None or heads is not None

    def run(self) -> None:
        """Run the blocks and add up what they contribute."""
        trace, count = self.trace, self.trace.num_pooled
        x = trace.tokens
        later: list[_Attention] = []
        for index in range(trace.count):
            heads = trace.attention_inputs(index, x)
            values = heads.attend()
            attention = self._attention(index, heads.first_queries(count), values[:, :, :count])
            if count == 1:  # one token's factor applies to the whole sum, and is known at the end
                self._add(attention, attention.scales)
            else:
                later.append(attention)
            update = trace.merge(index, values, heads.x)
            middle = x[:, : update.shape[1]] + update if trace.residual else update
            x = trace.feed_forward(index, middle)
            if x is not middle:
                added = x[:, :count] - middle[:, :count]
                self.fed_forward = added if self.fed_forward is None else self.fed_forward + added
                if self.detailed:
                    self.updates.append(added)
        self._read_out(x[:, :count])
        for attention in later:
            self._add(attention, attention.scales * self.weights)

    def effects(self) -> DirectEffects:
        """Return the contributions."""
        trace, prefix = self.trace, self.prefix
        # With one pooled token, its factor is still to be applied.
        scale = self.weights[:, :, None] if trace.num_pooled == 1 else self.weights.new_ones(1)
        tokens = self.contributions * scale
        remainder = {}
        if trace.residual:
            start = trace.tokens[:, : trace.num_pooled]
            remainder["embedding"] = self._read(start)
        if self.fed_forward is not None:
            remainder["feed-forward"] = self._read(self.fed_forward)
        if prefix:
            remainder["prefix tokens"] = tokens[..., :prefix].sum(-1)
        remainder["bias"] = self._read(self.bias) + self.constant
        if self.selective:
            remainder["other heads"] = self.others * scale[..., 0]
        details: dict[str, Tensor] = {}
        if self.detailed:
            by_head = torch.stack(self.by_head, 2) * scale[..., None, None]
            details["by_head"] = by_head[..., prefix:]
            details["prefix_by_head"] = by_head[..., :prefix].sum(-1)
            if self.updates:
                shares = [self._read(update) for update in self.updates]
                details["feed_forward"] = torch.stack(shares, -1)
        grid = trace.grid_spec.grid
        return DirectEffects(tokens[..., prefix:], remainder, self.embedding, grid, **details)

    def _through_pool(self, directions: Tensor, count: int) -> Tensor:
        """Pull directions (M, K, C) back to `count` pooled tokens, (M, K, count, D)."""
        shape = (count, self.trace.width)
        pulled, _ = pull_back(self.trace.pool, directions.flatten(0, 1), *shape)
        return pulled.unflatten(0, directions.shape[:2])

    def _attention(self, index: int, heads: AttentionInputs, values: Tensor) -> _Attention:
        """Take the attention of a block apart, given its values (N, H, T, d) of pooled tokens."""
        merge = partial(self.trace.merge, index)
        inside, reading = (values.shape[1], 1, values.shape[3]), (1, heads.x.shape[-1])
        directions = self.pulled.flatten(0, 1)[:, None]  # (M * K, 1, D)
        anything = values.new_zeros(1, *reading)
        pulled, inner = pull_back(partial(merge, x=anything), directions, *inside, unread=anything)
        if not inner.was_read and not inner.scales:
            self.bias = self.bias + merge(values.new_zeros(1, *inside), anything)
            scales = values.new_ones(1, 1)
        else:
            norms = FrozenNorms()
            with norms:
                merge(values, heads.x)
            with FrozenNorms(norms.scales):
                self.bias = self.bias + merge(torch.zeros_like(values), heads.x)
            scales = _token_scales(norms.scales, values[:, 0, :, 0])
        shape = (*self.pulled.shape[:2], inside[0], inside[2])
        if inner.was_read:
            return _Attention(index, heads, scales, self._through_gate(merge, heads, shape))
        return _Attention(index, heads, scales, [pulled.view(shape)])

    def _through_gate(
        self, merge: Callable[..., Tensor], heads: AttentionInputs, shape: tuple[int, ...]
    ) -> list[Tensor]:
        """Pull directions back to attended values (N, K, H, d) of each pooled token's own gate."""
        count, (_, texts, num_heads, width) = len(heads.x), shape
        directions = self.pulled.expand(count, -1, -1).flatten(0, 1)[:, None]  # (N * K, 1, D)
        by_token = []
        for x in heads.x.split(1, dim=1):
            gated = partial(merge, x=x.repeat_interleave(texts, 0))
            pulled, _ = pull_back(gated, directions, num_heads, 1, width)
            by_token.append(pulled.view(count, *shape[1:]))
        return by_token

    def _read_out(self, x: Tensor) -> None:
        """Read the embedding off the pooled tokens (N, T, D), and how each of them counts."""
        pool = self.trace.pool
        self.embedding = self.trace.embedding(x)
        norms = FrozenNorms()
        with norms:
            pool(x)
        with FrozenNorms(norms.scales):
            constant = pool(torch.zeros_like(x))  # (N, C)
        self.constant = self._dot(constant[:, None], self.directions)[..., 0]  # (N, K)
        self.weights = _token_scales(norms.scales, x[..., 0])
        if x.shape[1] > 1:  # what part of the mean a token is, asked of any one direction
            probe = torch.arange(constant.shape[-1], device=x.device).to(x.dtype).cos()
            by_token = self._through_pool(probe[None, None], x.shape[1])[0, 0].to(self.wide)
            whole = by_token.sum(0)
            self.weights = self.weights * (by_token @ whole / whole.square().sum())
        self.weights = self.weights.to(self.wide)

    def _add(self, attention: _Attention, weights: Tensor) -> None:
        """Add what a block's heads move, weighted by pooled tokens (N or 1, T or 1)."""
        heads = attention.heads
        probabilities = heads.probabilities().to(self.wide)  # (N, H, T, L)
        weights = weights.to(self.wide)[:, None, None].expand(-1, -1, -1, probabilities.shape[2])
        if len(attention.pulled) == 1:
            rows = [(weights @ probabilities)[:, :, 0]]
        else:
            rows = list((weights.mT * probabilities).unbind(2))
        by_head: Any = 0
        for row, pulled in zip(rows, attention.pulled, strict=True):
            values = row[..., None] * heads.v.to(self.wide)  # (N, H, L, d)
            self._add_values(attention.index, values, pulled.to(self.wide))
            if self.detailed:
                by_head = by_head + values[:, None] @ pulled.to(self.wide)[..., None]
        if self.detailed:
            self.by_head.append(by_head[..., 0])

    def _add_values(self, index: int, values: Tensor, pulled: Tensor) -> None:
        tokens = join_heads(values)  # (N, L, H * d)
        directions = pulled.flatten(2)  # (M, K, H * d)
        if not self.selective:
            self.contributions = self.contributions + self._dot(tokens, directions)
            return
        mask = torch.zeros_like(values[0, :, 0])  # (H, d)
        heads = chosen_indices(self.heads, len(mask), "head")
        if index in self.blocks:
            mask[heads] = 1
        self.contributions = self.contributions + self._dot(tokens, directions * mask.flatten())
        everywhere = tokens.sum(1, keepdim=True)
        self.others = self.others + self._dot(everywhere, directions * (1 - mask.flatten()))[..., 0]

    def _read(self, stream: Tensor) -> Tensor:
        """Return the contribution (N, K) of a part (N or 1, T or 1, D) of the pooled stream."""
        stream = stream.to(self.wide).expand(-1, self.weights.shape[1], -1)
        weighted = self.weights[:, None] @ stream  # (N, 1, D)
        return self._dot(weighted, self.pulled.to(self.wide))[..., 0]

    def _dot(self, vectors: Tensor, directions: Tensor) -> Tensor:
        """Return products (N, K, L) of vectors (N, L, D) with directions (M, K, D)."""
        vectors, directions = vectors.to(self.wide), directions.to(self.wide)
        if len(directions) == 1:  # one product of matrices, not one per image
            return F.linear(vectors, directions[0]).mT
        return directions @ vectors.mT


def _token_scales(scales: Sequence[Tensor], like: Tensor) -> Tensor:
    """Return the product (N or 1, T or 1) of factors of norms on the way of T tokens.

    Args:
        scales: Factors (N, T, 1), or (N, 1) after the mean over tokens.
        like: A tensor (N, T).

    Raises:
        TypeError: If a norm was computed for other tokens, or for each head.
    """
    product = torch.ones_like(like[:1, :1])
    for scale in scales:
        factors = scale.flatten(1)
        if scale.ndim > 3 or factors.shape[1] not in (1, like.shape[1]):
            raise TypeError(
                f"a norm scales its input by factors of shape {tuple(scale.shape)}, expected one "
                f"for each of {like.shape[1]} tokens or one for all: direct effects are not "
                "defined on it"
            )
        product = product * factors
    return product


def _check_sum(effects: DirectEffects, directions: Tensor, tower: Tower) -> None:
    """Check that the parts sum to the embedding's products.

    Raises:
        RuntimeError: If they do not.
    """
    parts = [*effects.remainder.values(), effects.patches.sum(-1)]
    scale = torch.stack(parts).detach().abs().sum(0)  # (N, K)
    embedding = effects.embedding.detach().to(scale.dtype)[:, None]
    directions = directions.detach().to(scale.dtype)
    scale = scale + embedding.norm(dim=-1) * directions.norm(dim=-1)
    products = (embedding @ directions.mT)[:, 0]
    check_sum(effects.sum(), products, scale, tower.dtype, "image tower")
