"""The contract of image towers: what each family says of its modules, for `Tower` to run them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from captum_clip_surgery.models._blocks import AttentionInputs
from captum_clip_surgery.models.image._attention_pool import AttentionPool
from captum_clip_surgery.models.image._data import GridSpec

POSITION_MODES = ("bilinear", "bicubic")


class TowerFamily(ABC):
    """Interface of the adapter of a family of image towers; `Tower` runs passes with it.

    Args:
        visual: The model's image tower, of a class that `check_supported` accepts.
        positions: How positional embeddings are resized: "bilinear" as in CLIP Surgery, or
            "bicubic" with antialiasing as in open_clip.

    Raises:
        ValueError: If `positions` is neither of them.
    """

    #: The family's name in error messages and listings.
    family: ClassVar[str]
    #: Whether a block adds to the stream that enters it.
    has_residual: ClassVar[bool] = True

    def __init__(self, visual: Any, positions: str = "bilinear") -> None:
        if positions not in POSITION_MODES:
            raise ValueError(
                f"positions must be one of {', '.join(POSITION_MODES)}, got {positions!r}"
            )
        self.visual = visual
        self.positions = positions

    @classmethod
    @abstractmethod
    def matches(cls, visual: nn.Module) -> bool:
        """Return whether an image tower belongs to this family by its class."""

    @classmethod
    @abstractmethod
    def check_supported(cls, visual: Any) -> None:
        """Check that surgery is defined on an image tower of this family.

        Raises:
            TypeError: If it is not; the message is the reason, such as "it pools its tokens by
                'none', which gives no single embedding".
        """

    @property
    @abstractmethod
    def blocks(self) -> Sequence[Any]:
        """The modules that surgery can run parallel to, first to last."""

    @property
    def containers(self) -> dict[str, nn.Module]:
        """Modules around the blocks that are not called themselves, only their parts, by name."""
        return {"the image tower": self.visual}

    @property
    @abstractmethod
    def pooling(self) -> str:
        """How tokens become one embedding: "class token", "average" or "attention"."""

    @property
    def num_prefix_tokens(self) -> int:
        """Number of tokens before the patches."""
        return 1

    @property
    def num_pooled_tokens(self) -> int | None:
        """Number of leading tokens that the pooled embedding needs; None means all."""
        return 1 if self.pooling == "class token" else None

    @property
    @abstractmethod
    def patch_size(self) -> tuple[int, int]:
        """Height and width of a grid cell in pixels."""

    @property
    @abstractmethod
    def native_size(self) -> tuple[int, int]:
        """Height and width in pixels of the images that the tower was built for."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The dtype in which images enter."""

    @abstractmethod
    def embed(self, images: Tensor) -> tuple[Tensor, GridSpec]:
        """Return the tokens (N, L, D) entering the first block, for images (N, 3, H, W)."""

    @abstractmethod
    def attention_inputs(
        self, index: int, x: Tensor, grid_spec: GridSpec, queries: int | None = None
    ) -> AttentionInputs:
        """Return a block's queries, keys and values.

        Args:
            index: Index of the block.
            x: The stream (N, L, D) that enters the block.
            grid_spec: The positions of the tokens.
            queries: Number of leading tokens that need a query; None means all. Returning
                more is allowed.
        """

    @abstractmethod
    def merge(self, index: int, values: Tensor, x: Tensor) -> Tensor:
        """Return what a block adds to the stream, (N, L, D).

        Args:
            index: Index of the block.
            values: Attended values (N, heads, L, d).
            x: The attention's input `AttentionInputs.x`, by which some blocks gate their output.
        """

    @abstractmethod
    def feed_forward(self, index: int, x: Tensor) -> Tensor:
        """Return the stream (N, L, D) after the feed-forward of block `index`."""

    @abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """Project tokens (N, L, D) after the last block to the joint space, each on its own."""

    @abstractmethod
    def pool(self, x: Tensor) -> Tensor:
        """Return the model's own embedding (N, C) for tokens (N, L, D) after the last block."""

    def pool_attention(self, x: Tensor) -> Tensor:
        """Return the attention of the pooling, if learned queries attend to the tokens.

        Args:
            x: Tokens (N, L, D) after the last block.

        Returns:
            Probabilities (N, heads, L).

        Raises:
            TypeError: If the family has no such pooling.
        """
        if self.attention_pool is None:
            raise TypeError(f"{self.family} has no attention pooling that can be read")
        return self.attention_pool.attention_inputs(x).probabilities().mean(2)

    @property
    def attention_pool(self) -> AttentionPool | None:
        """The pooling by learned queries, or None where tokens are pooled otherwise."""
        return None

    def describe_undecomposable(self) -> str | None:
        """Describe why embeddings cannot be split into parts that sum to them, or return None.

        They can if only norms and linear layers follow the pooled tokens.
        """
        return None
