"""Cosines as sums of parts: the parts as data, and what is read from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from captum_clip_surgery.attr._coverage import cover
from captum_clip_surgery.models.text._templates import index_of
from captum_clip_surgery.visualization._ledger import LedgerRow, ledger_figure

ATTENTION, FEED_FORWARD = "attention", "feed-forward"


class Part(NamedTuple):
    """One part of a cosine.

    Args:
        image: Index of the image.
        text: The text.
        kind: "attention", "feed-forward", "embedding", "prefix tokens" or "bias".
        block: Index of the block, or None for parts without one.
        head: Index of the attention head, or None.
        row: Row of the patch, or None.
        column: Column of the patch, or None.
        value: Contribution to the cosine.
    """

    image: int
    text: str
    kind: str
    block: int | None
    head: int | None
    row: int | None
    column: int | None
    value: float


@dataclass(frozen=True)
class Decomposition:
    """Cosines of N images and K texts as sums of parts. Result of `decompose`.

    All parts are contributions to cosines, in float64 on the CPU. `attention` and `remainder` sum
    to the cosine; `feed_forward` is the remainder's entry of that name, by block.

    Args:
        images: The N images as they are drawn, (H, W, 3), uint8 or floats in 0..1.
        texts: The K texts.
        grid: Rows and columns of patches, h and w.
        shown: Height and width in pixels of the images that the model sees.
        covered: Height and width in pixels that the patches cover: less where a tower leaves out
            the last pixels, as ViT-SO400M-14-SigLIP-384 does.
        cosines: The model's own cosines, (N, K), to compare the sums with.
        attention: What each head moved from each patch, (N, K, blocks, heads, h*w).
        feed_forward: What each block's feed-forward added, (N, K, blocks), or None if the
            decomposed blocks have none.
        remainder: Parts (N, K) by name without a head and a patch: "embedding" (the pooled
            token before the first block), "feed-forward", "prefix tokens" (what heads moved from
            the class token and registers) and "bias" (biases of projections and of the last norm).
            Parts that the tower does not have are absent.
        logit_scale: Factor from cosines to logits.
        logit_bias: What is added to get logits, for all texts or for each, (K,).
        pooled_by_attention: Whether the only block is the pooling, whose heads read the tokens
            after the last block, as on ResNets and towers such as SigLIP's.
        quantity: Name of what the parts sum to.
    """

    images: Sequence[np.ndarray]
    texts: tuple[str, ...]
    grid: tuple[int, int]
    shown: tuple[int, int]
    covered: tuple[int, int]
    cosines: Tensor
    attention: Tensor
    feed_forward: Tensor | None
    remainder: Mapping[str, Tensor]
    logit_scale: float
    logit_bias: float | Tensor = 0.0
    pooled_by_attention: bool = False
    quantity: str = "cosine"

    def sum(self) -> Tensor:
        """Return the sums of all parts, (N, K): the cosines, up to rounding."""
        return torch.stack(list(self.by_kind().values())).sum(0)

    def logits(self) -> Tensor:
        """Return the sums as logits, (N, K): logit_scale * sum + logit_bias."""
        return self.logit_scale * self.sum() + self.logit_bias

    def by_kind(self) -> dict[str, Tensor]:
        """Return the parts by kind, each (N, K): "attention" and the names of `remainder`."""
        return {ATTENTION: self.attention.sum((-3, -2, -1)), **self.remainder}

    def by_head(self) -> Tensor:
        """Return the parts of attention heads, summed over patches, (N, K, blocks, heads)."""
        return self.attention.sum(-1)

    def by_block(self) -> Tensor:
        """Return the parts of blocks, (N, K, blocks): their heads and their feed-forward."""
        heads = self.by_head().sum(-1)
        return heads if self.feed_forward is None else heads + self.feed_forward

    def map(self, block: int | None = None, head: int | None = None) -> Tensor:
        """Return the parts of patches, (N, K, h, w).

        Args:
            block: Index of a block; negative values count from the end. None sums over all.
            head: Index of a head of that block; None sums over all.

        Raises:
            ValueError: If a head is given without a block.
            IndexError: If there is no such block or head.
        """
        if block is None and head is not None:
            raise ValueError(f"head={head} needs a block; heads of different blocks are unrelated")
        parts = self.attention
        num_blocks, num_heads = parts.shape[2:4]
        parts = parts.sum(2) if block is None else parts[:, :, _index(block, num_blocks, "block")]
        parts = parts.sum(2) if head is None else parts[:, :, _index(head, num_heads, "head")]
        return parts.unflatten(-1, self.grid)

    def mean_ablated(self, *kinds: str) -> Tensor:
        """Return the sums with kinds of parts replaced by their means over the images, (N, K).

        What a kind contributes on average stays; how it differs between images is lost. Where the
        most similar text stays the same, the kind did not decide it.

        Args:
            *kinds: Names in `by_kind`; none means all of `remainder`.

        Raises:
            ValueError: If a kind is unknown, or there is only one image.

        References:
            Gandelsman, Efros, Steinhardt: Interpreting CLIP's image representation via text-based
            decomposition. ICLR 2024, Sec. 3.2.
        """
        parts = self.by_kind()
        unknown = [kind for kind in kinds if kind not in parts]
        if unknown:
            raise ValueError(f"kinds must be among {', '.join(parts)}, got {unknown[0]!r}")
        if len(self.images) < 2:
            raise ValueError("a mean over images needs at least 2 of them, got 1")
        ablated = kinds or tuple(self.remainder)
        means = {kind: parts[kind].mean(0).expand_as(parts[kind]) for kind in ablated}
        return torch.stack(list((parts | means).values())).sum(0)

    def contrast(self, text: int | str, other: int | str) -> Decomposition:
        """Return the parts of the difference between the cosines of two texts.

        Args:
            text: Index or name of a text.
            other: Index or name of the text whose parts are subtracted.

        Returns:
            A decomposition with one text, whose sum is the difference of the two cosines.

        Raises:
            ValueError: If there is no text of that name, or more than one.
            IndexError: If an index is out of range.
        """
        first, second = self._text(text), self._text(other)

        def difference(parts: Tensor) -> Tensor:
            return parts[:, [first]] - parts[:, [second]]

        return replace(
            self,
            texts=(f"{self.texts[first]} minus {self.texts[second]}",),
            cosines=difference(self.cosines),
            attention=difference(self.attention),
            feed_forward=None if self.feed_forward is None else difference(self.feed_forward),
            remainder={name: difference(parts) for name, parts in self.remainder.items()},
            logit_bias=0.0,
            quantity="difference of cosines",
        )

    def top(
        self,
        count: int = 10,
        image: int = 0,
        text: int | str = 0,
        patches: bool = False,
    ) -> list[Part]:
        """Return the parts with the largest absolute values, largest first.

        Args:
            count: Maximum number of parts.
            image: Index of an image.
            text: Index or name of a text.
            patches: Whether to list each patch of a head separately; otherwise a head is one part.

        Raises:
            ValueError: If there is no text of that name, or more than one.
            IndexError: If an index is out of range.
        """
        image = _index(image, len(self.images), "image")
        columns = self._columns(image, self._text(text), patches)
        order = np.argsort(-np.abs(columns["value"]), kind="stable")[:count]
        return [_part(columns, int(index)) for index in order]

    def strongest_patches(
        self, block: int, head: int, text: int | str = 0, count: int = 10
    ) -> list[Part]:
        """Return the patches from which a head contributed most to a text, over all images.

        Args:
            block: Index of the head's block.
            head: Index of the head.
            text: Index or name of a text.
            count: Maximum number of patches.

        Returns:
            Parts of single patches, highest value first.

        Raises:
            ValueError: If there is no text of that name, or more than one.
            IndexError: If an index is out of range.
        """
        place = self._text(text)
        values = self.map(block, head)[:, place]  # (N, h, w)
        best = values.flatten().topk(min(count, values.numel()))
        places = np.stack(np.unravel_index(best.indices.numpy(), values.shape), axis=-1).tolist()
        block, head = (i % n for i, n in zip((block, head), self.attention.shape[2:4], strict=True))
        return [
            Part(image, self.texts[place], ATTENTION, block, head, row, column, value)
            for (image, row, column), value in zip(places, best.values.tolist(), strict=True)
        ]

    def to_dataframe(self, patches: bool = False) -> Any:
        """Return all parts as a pandas DataFrame, one row each, with the columns of `Part`.

        The values of an image and a text sum to their cosine.

        Args:
            patches: Whether each patch of a head has a row: images * texts * blocks * heads * h * w
                rows. Otherwise a head is one row.

        Raises:
            ImportError: If pandas is not installed.
        """
        if find_spec("pandas") is None:
            raise ImportError(
                "to_dataframe needs pandas, which is not installed: pip install pandas"
            )
        pandas = import_module("pandas")
        tables = [
            pandas.DataFrame(self._columns(image, text, patches))
            for image in range(len(self.images))
            for text in range(len(self.texts))
        ]
        places = dict.fromkeys(("block", "head", "row", "column"), "Int64")
        return pandas.concat(tables, ignore_index=True).astype(places)

    def figure(
        self,
        image: int = 0,
        text: int | str = 0,
        heads: int = 4,
        width: float | str | None = None,
    ) -> Figure:
        """Draw how a cosine adds up: the map, blocks and heads as bars, and the strongest heads.

        Args:
            image: Index of an image.
            text: Index or name of a text.
            heads: Number of heads with the largest absolute parts whose maps are drawn.
            width: Width of the figure in inches, or "column", "page", "notebook" or "slide".

        Returns:
            A figure that is not registered with pyplot; `visualization.save_figure` writes it.

        Raises:
            ValueError: If there is no text of that name, or more than one.
            IndexError: If an index is out of range.
        """
        image, place = _index(image, len(self.images), "image"), self._text(text)
        by_head = self.by_head()[image, place]
        strongest = by_head.flatten().abs().topk(min(heads, by_head.numel())).indices.tolist()
        maps = {}
        for block, head in (divmod(index, by_head.shape[1]) for index in strongest):
            name = f"{self._block_name(block)}, head {head}: {by_head[block, head]:+.3f}"
            maps[name] = self._drawn(self.map(block, head)[image, place])
        return ledger_figure(
            self.images[image],
            self._drawn(self.map()[image, place]),
            self.texts[place],
            list(self._rows(image, place)),
            maps,
            f"sum = {self.sum()[image, place]:.4f} = {self.quantity}",
            width,
        )

    def _drawn(self, parts: Tensor) -> np.ndarray:
        """Return a map (h, w) that covers all of the image."""
        return cover(parts[None, None], self.covered, self.shown)[0, 0].numpy()

    def _text(self, text: int | str) -> int:
        if isinstance(text, str):
            return index_of(text, self.texts)
        return _index(text, len(self.texts), "text")

    def _block_name(self, block: int) -> str:
        return "pooling" if self.pooled_by_attention else f"block {block}"

    def _columns(self, image: int, text: int, patches: bool) -> dict[str, Any]:
        """Return the parts of an image and a text as columns, named as the fields of `Part`."""
        attention = self.attention[image, text]
        values = attention if patches else attention.sum(-1)
        # Places (parts, 4): block, head, row and column, -1 where there is none.
        places = np.full((values.numel(), 4), -1)
        indices = np.indices(values.shape).reshape(values.ndim, -1).T
        places[:, :2] = indices[:, :2]
        if patches:
            places[:, 2], places[:, 3] = np.divmod(indices[:, 2], self.grid[1])
        rows = [(ATTENTION, places, values.flatten().numpy())]
        remainder = dict(self.remainder)
        if self.feed_forward is not None:
            del remainder[FEED_FORWARD]  # told by block
            of_blocks = self.feed_forward[image, text].numpy()
            places = np.full((len(of_blocks), 4), -1)
            places[:, 0] = np.arange(len(of_blocks))
            rows.append((FEED_FORWARD, places, of_blocks))
        for kind, parts in remainder.items():
            rows.append((kind, np.full((1, 4), -1), parts[image, text].numpy().reshape(1)))
        kinds = [kind for kind, _, parts in rows for _ in parts]
        where = np.concatenate([places for _, places, _ in rows]).T.astype(object)
        where[where == -1] = None
        return {
            "image": np.full(len(kinds), image),
            "text": [self.texts[text]] * len(kinds),
            "kind": kinds,
            **dict(zip(("block", "head", "row", "column"), where, strict=True)),
            "value": np.concatenate([parts for *_, parts in rows]),
        }

    def _rows(self, image: int, text: int) -> Iterator[LedgerRow]:
        """Yield the rows of the figure: what belongs to no block, then the blocks."""
        for kind, parts in self.remainder.items():
            if kind != FEED_FORWARD or self.feed_forward is None:
                yield LedgerRow(kind, other=float(parts[image, text]))
        for block, heads in enumerate(self.by_head()[image, text].tolist()):
            feed_forward = 0.0
            if self.feed_forward is not None:
                feed_forward = float(self.feed_forward[image, text, block])
            yield LedgerRow(self._block_name(block), tuple(heads), feed_forward)


def _index(index: int, count: int, name: str) -> int:
    """Return an index from 0 on.

    Raises:
        IndexError: If it is out of range.
    """
    if not -count <= index < count:
        raise IndexError(f"{name} {index} is out of range: there are {count}")
    return index % count


def _part(columns: Mapping[str, Any], index: int) -> Part:
    """Return one row of the columns of `Decomposition._columns` in Python's own types."""
    values = {name: column[index] for name, column in columns.items()}
    return Part(**values | {"image": int(values["image"]), "value": float(values["value"])})
