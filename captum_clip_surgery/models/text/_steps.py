"""The contract of a text tower's steps from token ids to a feature."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from captum_clip_surgery.models._blocks import AttentionInputs
from captum_clip_surgery.models.text._towers import pooled_positions


class TextSteps(ABC):
    """The parts of a text tower."""

    #: The text tower.
    tower: Any
    #: The blocks, first to last.
    blocks: Sequence[Any]

    @abstractmethod
    def attention(self, block: Any) -> nn.Module:
        """Return the attention module of a block."""

    @abstractmethod
    def deviation(self, block: Any) -> str | None:
        """Describe why a block cannot be rebuilt from its parameters, or return None."""

    @abstractmethod
    def silent(self, model: nn.Module) -> list[str]:
        """Name the modules with hooks that do not fire."""

    @abstractmethod
    def embed(self, tokens: Tensor) -> Tensor:
        """Return the input (P, L, D) of the first block for token ids (P, context).

        A class token may follow the tokens.
        """

    @abstractmethod
    def mask(self, x: Tensor, tokens: Tensor) -> Tensor | None:
        """Return the bias of the attention's logits (P, heads, L, L), or None."""

    @abstractmethod
    def inputs(self, block: Any, x: Tensor) -> AttentionInputs:
        """Return a block's queries, keys and values."""

    @abstractmethod
    def merge(self, block: Any, values: Tensor) -> Tensor:
        """Return what a block adds to the stream for values (P, heads, L, d)."""

    def norm_attention(self, block: Any, x: Tensor) -> Tensor:
        """Return the stream after what follows the sum with attention: nothing, or a norm."""
        return x

    @abstractmethod
    def update(self, block: Any, x: Tensor) -> Tensor:
        """Return what a block's feed-forward adds to the stream."""

    def norm_feed_forward(self, block: Any, x: Tensor) -> Tensor:
        """Return the stream after what follows the sum with the feed-forward."""
        return x

    def feed_forward(self, block: Any, x: Tensor) -> Tensor:
        """Return the stream after a block, for the stream with its attention added."""
        x = self.norm_attention(block, x)
        return self.norm_feed_forward(block, x + self.update(block, x))

    def pooled_positions(self, tokens: Tensor) -> Tensor:
        """Return the position (P,) of each text's token whose stream becomes the feature."""
        return pooled_positions(self.tower, tokens)

    @abstractmethod
    def finish(self, x: Tensor) -> Tensor:
        """Return unnormalized features (P, C), for the stream (P, D) of pooled tokens."""
