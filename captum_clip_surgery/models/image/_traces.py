"""The part of an image tower that is taken apart: blocks, the tokens entering them, the pooling."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from captum_clip_surgery.models._blocks import AttentionInputs
from captum_clip_surgery.models.image._base import Tower
from captum_clip_surgery.models.image._data import GridSpec


def trace_of(tower: Tower, images: Tensor) -> Trace:
    """Return the part of a tower that is taken apart, for images (N, 3, H, W)."""
    return _Pooling(tower, images) if pools_in_one_block(tower) else _Blocks(tower, images)


def num_decomposed_blocks(tower: Tower) -> int:
    """Return the number of blocks whose heads are taken apart: one, if pooled by attention."""
    return 1 if pools_in_one_block(tower) else len(tower.blocks)


def pools_in_one_block(tower: Tower) -> bool:
    """Return whether an attention pooling alone is taken apart, and no residual blocks."""
    return tower.attention_pool is not None or not tower.has_residual


class Trace:
    """Trace for a decomposition: blocks, the tokens that enter them, and the pooling after them.

    Attributes:
        count: Number of blocks.
        tokens: Tokens (N, L, D) that enter the first block.
        grid_spec: Their positions.
        num_pooled: Number T of leading tokens after the last block that are pooled.
        width: Width D of these tokens.
        pool: Maps them to the embedding.
        residual: Whether a block adds to what enters it.
    """

    count: int
    tokens: Tensor
    grid_spec: GridSpec
    num_pooled: int
    width: int
    pool: Callable[[Tensor], Tensor]
    residual: bool
    #: As `Tower.merge` and `Tower.feed_forward`.
    merge: Callable[[int, Tensor, Tensor], Tensor]
    feed_forward: Callable[[int, Tensor], Tensor]

    def attention_inputs(self, index: int, x: Tensor) -> AttentionInputs:
        """Return a block's queries, keys and values; in the last block queries of T tokens only."""
        raise NotImplementedError

    def embedding(self, x: Tensor) -> Tensor:
        """Return the model's own embedding (N, C), where T pooled tokens (N, T, D) come out."""
        return self.pool(x)


class _Blocks(Trace):
    """The residual blocks of a tower pooled by its class token or by average."""

    residual = True

    def __init__(self, tower: Tower, images: Tensor) -> None:
        self._tower = tower
        self.count = len(tower.blocks)
        self.tokens, self.grid_spec = tower.enter(images, 0)
        self.num_pooled = tower.num_pooled_tokens or self.tokens.shape[1]
        self.width = self.tokens.shape[-1]
        self.merge, self.feed_forward, self.pool = tower.merge, tower.feed_forward, tower.pool

    def attention_inputs(self, index: int, x: Tensor) -> AttentionInputs:
        count = self.num_pooled if index == self.count - 1 else None
        heads = self._tower.attention_inputs(index, x, self.grid_spec, count)
        return heads if count is None else heads.first_queries(count)


class _Pooling(Trace):
    """The attention pooling of a tower as its one block."""

    residual = False
    count = 1
    #: The model's own pooling of the tokens, where the parts of it are called here.
    _whole: Callable[[Tensor], Tensor] | None = None

    def __init__(self, tower: Tower, images: Tensor) -> None:
        pool = tower.attention_pool
        if pool is None:  # a ResNet's, which its adapter calls a block
            self.tokens, self.grid_spec = tower.enter(images, 0)
            inputs = tower.attention_inputs(0, self.tokens, self.grid_spec, 1)
            self._inputs = inputs.first_queries(tower.num_pooled_tokens or inputs.q.shape[2])
            self.merge, self.feed_forward, self.pool = tower.merge, tower.feed_forward, tower.pool
        else:
            self.tokens, self.grid_spec = tower.enter(images, len(tower.blocks))
            self._inputs = pool.attention_inputs(self.tokens)
            self.merge = lambda index, values, x: pool.merge(values)
            self.feed_forward = lambda index, x: pool.feed_forward(x)
            self.pool = pool.pool
            self._whole = tower.pool
        self.num_pooled = self._inputs.q.shape[2]
        self.width = self.merge(0, self._inputs.v[:1, :, :1], self._inputs.x[:1, :1]).shape[-1]

    def attention_inputs(self, index: int, x: Tensor) -> AttentionInputs:
        return self._inputs

    def embedding(self, x: Tensor) -> Tensor:
        return self.pool(x) if self._whole is None else self._whole(self.tokens)
