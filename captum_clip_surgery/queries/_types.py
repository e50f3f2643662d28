"""The kinds of queries, as data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from captum_clip_surgery.models.text._templates import check_texts, truncate_repr
from captum_clip_surgery.preprocessing import ImageInput

#: (left, top, right, bottom) in pixels, the right and bottom edges excluded.
Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class ImageQuery:
    """An image, whose embedding by the model takes the place of a text's.

    Args:
        image: A PIL image, an array, or a path, squashed to the model's native size; or a
            preprocessed tensor (3, H, W) or (1, 3, H, W) of any size that the patch size divides.
            Gradients flow to a tensor that requires them.
        name: Name for `index` and figures; None means the name of the file, or "image" and the
            query's index.

    Example::

        >>> import torch
        >>> from captum_clip_surgery import ZeroShotClassifier
        >>> clip = ZeroShotClassifier.demo(["dog"])
        >>> clip.with_queries(["dog", ImageQuery(torch.zeros(3, 64, 64))]).texts
        ('dog', 'image 1')
    """

    image: ImageInput | Tensor
    name: str | None = None

    def __post_init__(self) -> None:
        _check_name(self.name)


@dataclass(frozen=True, eq=False)
class RegionQuery:
    """A region of an image: the mean of its patch tokens after architecture surgery.

    Each token counts by the share of its patch that the region covers.

    Args:
        image: The image, as for `ImageQuery`.
        box: (left, top, right, bottom) in pixels of this image, as PIL's `crop` takes it; also
            an array or tensor.
        mask: Mask (H, W) of bool, of the image's height and width, instead of a box.
        name: Name for `index` and figures; None means "region of" and the image's name.

    Raises:
        ValueError: If not exactly one of `box` and `mask` is given, the box is not four numbers
            with left < right and top < bottom, or the mask has no true pixel or is not (H, W).
        TypeError: If the mask is not an array or tensor of bool.

    Example::

        >>> import torch
        >>> RegionQuery(torch.zeros(3, 64, 64), box=(0, 0, 32, 32), name="corner").box
        (0, 0, 32, 32)
    """

    image: ImageInput | Tensor
    box: Box | None = None
    mask: np.ndarray | Tensor | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        _check_name(self.name)
        if (self.box is None) == (self.mask is None):
            raise ValueError("a region needs either box= or mask=, and not both")
        if self.box is not None:
            object.__setattr__(self, "box", _check_box(self.box))
        else:
            _check_mask(self.mask)


@dataclass(frozen=True, eq=False)
class FeatureQuery:
    """A ready feature in the model's joint space, L2-normalized at each use.

    Args:
        feature: Feature (C,) or (1, C). Gradients flow to it if it requires them.
        name: Name for `index` and figures; None means "feature" and the query's index.
    """

    feature: Tensor
    name: str | None = None

    def __post_init__(self) -> None:
        _check_name(self.name)


@dataclass(frozen=True, eq=False)
class MeanQuery:
    """The mean of several queries, such as examples of one thing: L2-normalized once more.

    Args:
        queries: The queries, without differences: the mean of differences is the difference of
            means.
        name: Name for `index` and figures; None means "mean of" and the queries' names.

    Raises:
        TypeError: If an entry is not a query, or is a difference.
        ValueError: If there are none, or a text is empty.

    Example::

        >>> MeanQuery(["husky", "wolf"]).queries
        ('husky', 'wolf')
    """

    queries: Sequence[Part]
    name: str | None = None

    def __post_init__(self) -> None:
        _check_name(self.name)
        if isinstance(self.queries, str) or not isinstance(self.queries, Sequence):
            raise TypeError(f"queries of a mean must be a list, got {self.queries!r:.80}")
        if not self.queries:
            raise ValueError("a mean needs at least one query, got none")
        object.__setattr__(self, "queries", tuple(self.queries))
        for query in self.queries:
            _check_part(query, "a mean")


@dataclass(frozen=True)  # equal if the sides are, so that maps of absent texts are shared
class DifferenceQuery:
    """One query rather than another, F_A - F_B: what speaks for A and against B.

    The score is the cosine with A minus the cosine with B, and the logit the logarithm of the odds
    of A against B. Exchanging the two changes the sign. It is not normalized, so that alternatives
    which differ little have pale maps.

    Args:
        query: The query A.
        rather_than: The query B that is subtracted.
        name: Name for `index` and figures; None means "A rather than B".

    Raises:
        TypeError: If one of the two is not a query, or is a difference itself.
        ValueError: If a text is empty.

    Example::

        >>> from captum_clip_surgery import ZeroShotClassifier
        >>> clip = ZeroShotClassifier.demo(["dog"])
        >>> clip.with_queries([DifferenceQuery("fox", "lion")]).texts
        ('fox rather than lion',)
    """

    query: Part
    rather_than: Part
    name: str | None = None

    def __post_init__(self) -> None:
        _check_name(self.name)
        _check_part(self.query, "a difference")
        _check_part(self.rather_than, "a difference")


#: What stands in a mean or on a side of a difference: a query with a feature of length one.
Part = str | ImageQuery | RegionQuery | FeatureQuery | MeanQuery
#: A text, or another query.
Query = Part | DifferenceQuery


def iter_leaves(query: Query) -> Iterator[str | ImageQuery | RegionQuery | FeatureQuery]:
    """Iterate over the texts, images, regions and features that a query consists of."""
    if isinstance(query, MeanQuery):
        for part in query.queries:
            yield from iter_leaves(part)
    elif isinstance(query, DifferenceQuery):
        yield from iter_leaves(query.query)
        yield from iter_leaves(query.rather_than)
    else:
        yield query


def name_of(query: Query, index: int) -> str:
    """Return the name of the query at an index."""
    if isinstance(query, str):
        return query
    if query.name is not None:
        return query.name
    if isinstance(query, MeanQuery):
        return "mean of " + ", ".join(name_of(part, index) for part in query.queries)
    if isinstance(query, DifferenceQuery):
        return f"{name_of(query.query, index)} rather than {name_of(query.rather_than, index)}"
    if isinstance(query, FeatureQuery):
        return f"feature {index}"
    known = isinstance(query.image, (str, PathLike))
    image = Path(query.image).name if known else f"image {index}"  # type: ignore[arg-type]
    return f"region of {image}" if isinstance(query, RegionQuery) else image


def check_queries(queries: Iterable[Query]) -> tuple[Query, ...]:
    """Return queries as a tuple.

    Raises:
        TypeError: If they have no order, or one is not a query.
        ValueError: If a text is empty.
    """
    if isinstance(queries, (str, set, frozenset)) or not isinstance(queries, Iterable):
        raise TypeError(f"queries must be a list, got {type(queries).__name__}")
    queries = tuple(queries)
    for query in queries:
        _check_query(query, "the list of queries")
    return queries


def names_of(queries: Sequence[Query]) -> tuple[str, ...]:
    """Return the names of queries, in their order.

    Raises:
        ValueError: If two different queries have one name.
    """
    names = tuple(name_of(query, index) for index, query in enumerate(queries))
    known: dict[str, Query] = {}
    for name, query in zip(names, queries, strict=True):
        if known.setdefault(name, query) != query:
            raise ValueError(
                f"two queries are named {truncate_repr(name)}; give one of them another name, as "
                "in ImageQuery(image, name=...)"
            )
    return names


def _check_query(query: Any, what: str) -> None:
    if isinstance(query, str):
        check_texts([query], f"text in {what},")
    elif not isinstance(query, Query):
        raise TypeError(
            f"{what} holds {type(query).__name__}, expected texts or queries such as "
            "ImageQuery(image), see captum_clip_surgery.queries"
        )


def _check_part(query: Any, what: str) -> None:
    _check_query(query, what)
    if isinstance(query, DifferenceQuery):
        raise TypeError(
            f"{what} holds a difference; write one difference of means instead: "
            "DifferenceQuery(MeanQuery([...]), MeanQuery([...]))"
        )


def _check_name(name: str | None) -> None:
    if name is not None:
        check_texts([name], "name")


def _check_box(box: Any) -> Box:
    """Return a box, which may be an array or tensor, as a tuple."""
    sides = box.tolist() if isinstance(box, (np.ndarray, Tensor)) else box
    listed = isinstance(sides, Sequence) and not isinstance(sides, str) and len(sides) == 4
    if not (listed and all(isinstance(side, Real) for side in sides)):
        raise ValueError(f"box must be four numbers (left, top, right, bottom), got {box!r:.80}")
    left, top, right, bottom = sides
    if not (0 <= left < right < math.inf and 0 <= top < bottom < math.inf):
        raise ValueError(
            "box must be (left, top, right, bottom) in pixels with 0 <= left < right and "
            f"0 <= top < bottom, all finite, got {box!r}"
        )
    return left, top, right, bottom


def _check_mask(mask: Any) -> None:
    if not isinstance(mask, (np.ndarray, Tensor)) or "bool" not in str(mask.dtype):
        kind = getattr(mask, "dtype", type(mask).__name__)
        raise TypeError(f"mask must be an array or tensor of bool, got {kind}")
    if mask.ndim != 2:
        raise ValueError(f"mask must be (H, W), got shape {tuple(mask.shape)}")
    if not mask.any():
        raise ValueError("the mask is empty: a region needs at least one pixel")
