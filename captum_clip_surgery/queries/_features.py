"""The third kind of text features of a classifier: those of queries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_clip_surgery._utils.tensors import tensor_digest
from captum_clip_surgery.functional import normalized
from captum_clip_surgery.models._image_encoder import ImageEncoder
from captum_clip_surgery.models._validation import check_features
from captum_clip_surgery.models.text._encoder import PromptEncoder
from captum_clip_surgery.models.text._features import TextFeatures
from captum_clip_surgery.models.text._templates import Template, truncate_repr
from captum_clip_surgery.queries._images import EncodedImages
from captum_clip_surgery.queries._types import (
    DifferenceQuery,
    FeatureQuery,
    ImageQuery,
    MeanQuery,
    Query,
    RegionQuery,
    check_queries,
    iter_leaves,
    names_of,
)

#: Norm of a difference of two features of length one below which only rounding is left.
SMALLEST_DIFFERENCE = 1e-4


class QueryFeatures:
    """Features of queries, computed again when what determines them changes.

    Features have length one, except those of differences.

    Args:
        images: The image side of the model.
        text: The text features of a classifier of this model, by which texts are encoded.
        queries: Queries and distractors, at least one of which is not a text.
        names: Their names.
        encoded: Features of the queries' images, if there are any already.

    Raises:
        TypeError: If an entry is not a query, or an image has another type.
        ValueError: If a query is invalid on this model, or there are texts and `text` cannot encode
            any.
    """

    #: Templates alone do not determine these features.
    templates: tuple[Template, ...] = ()

    def __init__(
        self,
        images: ImageEncoder,
        text: TextFeatures,
        queries: Sequence[Query],
        names: Sequence[str],
        encoded: EncodedImages | None = None,
    ) -> None:
        self.text = text
        self._images = images
        self._queries = tuple(queries)
        self._names = tuple(names)
        # Each part with the name of a query that it belongs to, for messages.
        leaves = {
            leaf: name
            for query, name in zip(queries, self._names, strict=True)
            for leaf in iter_leaves(query)
        }
        self.texts = tuple(leaf for leaf in leaves if isinstance(leaf, str))
        self._encoded_texts = text.with_texts(self.texts) if self.texts else None
        pictures = {
            leaf: name
            for leaf, name in leaves.items()
            if isinstance(leaf, (ImageQuery, RegionQuery))
        }
        #: Shared by classifiers that are made from this one.
        self.encoded_images = (
            EncodedImages(images, pictures) if encoded is None else encoded.including(pictures)
        )
        self._given = [leaf for leaf in leaves if isinstance(leaf, FeatureQuery)]
        for query in self._given:
            _check_given(query, leaves[query], images)
        self._cached: tuple[tuple[object, object], Tensor] | None = None

    # Cached features are not part of a compiled graph.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def features(self) -> Tensor:
        """Return the features (T, C) in the order queries, distractors.

        Raises:
            ValueError: If a difference is zero.
        """
        texts = None if self._encoded_texts is None else self._encoded_texts.features()
        images = self.encoded_images.features()
        constant = not self.requires_grad and not self._given  # given ones may change in place
        cached = self._cached
        if constant and cached is not None and cached[0][0] is texts and cached[0][1] is images:
            return cached[1]
        features = self._compute(texts, images)
        if constant:
            self._cached = (texts, images), features
        return features

    def _compute(self, texts: Tensor | None, images: Mapping[Any, Tensor]) -> Tensor:
        leaves: dict[Any, Tensor] = dict(images)
        if texts is not None:
            leaves |= zip(self.texts, texts, strict=True)
        for query in self._given:
            leaves[query] = normalized(query.feature.to(self._images.device).flatten())
        wide = reduce(torch.promote_types, (leaf.dtype for leaf in leaves.values()))
        leaves = {query: leaf.to(wide) for query, leaf in leaves.items()}
        features = torch.stack([_combine(query, leaves) for query in self._queries])
        norms = features.detach().norm(dim=-1).tolist()
        for name, norm in zip(self._names, norms, strict=True):
            if not norm > SMALLEST_DIFFERENCE:
                raise ValueError(
                    f"query {truncate_repr(name)} is zero: its sides have the same feature, so "
                    "nothing speaks for one rather than the other"
                )
        return features

    def empty_features(self) -> Tensor | None:
        """Return the feature that "empty" feature surgery subtracts, or None if it is unknown.

        It is the L2-normalized feature (C,) of the empty text for queries of every kind, except for
        differences, in which it cancels: if there are any, there is a row for each query, (T, C),
        and theirs are zero.
        """
        empty = self.text.empty_features()
        kept = [not difference for difference in self.differences]
        if all(kept):
            return empty
        if any(kept):
            mask = torch.tensor(kept, device=self._images.device)[:, None]
            return None if empty is None else torch.where(mask, empty, 0)
        return torch.zeros_like(self.features())

    @property
    def requires_grad(self) -> bool:
        """Whether gradients flow to one of the queries."""
        given = any(query.feature.requires_grad for query in self._given)
        return given or self.encoded_images.requires_grad or self.text.requires_grad

    @property
    def has_empty_features(self) -> bool:
        """Whether the feature that "empty" subtracts is known or can be computed."""
        return self.text.has_empty_features or all(self.differences)

    @property
    def encoder(self) -> PromptEncoder:
        """The encoder of texts.

        Raises:
            TypeError: If the classifier was made from features.
        """
        return self.text.encoder

    def with_texts(self, texts: tuple[str, ...]) -> TextFeatures:
        """Return the features of other texts, where names of queries stand for these queries.

        Raises:
            ValueError: If texts other than names cannot be encoded.
        """
        queries = [self.by_name.get(text, text) for text in texts]
        # Not named anew, because names without name= depend on positions.
        return query_features(self._images, self.text, queries, texts, self.encoded_images)

    @property
    def by_name(self) -> dict[str, Query]:
        """Queries and distractors by their names."""
        return dict(zip(self._names, self._queries, strict=True))

    def encoded_by(self, images: ImageEncoder) -> QueryFeatures:
        """Return the features of the same queries, whose images another tower encodes."""
        return QueryFeatures(images, self.text, self._queries, self._names)

    def describe(self) -> dict[str, Any]:
        """Return a description of each query by name, and the templates of texts, as JSON."""
        parts: dict[Any, Any] = dict(self.encoded_images.digests())
        parts |= {query: {"feature": tensor_digest(query.feature)} for query in self._given}
        described = {name: _describe(query, parts) for name, query in self.by_name.items()}
        return {"queries": described, "templates": list(map(str, self.text.templates))}

    @property
    def differences(self) -> tuple[bool, ...]:
        """Whether each query is a difference."""
        return tuple(isinstance(query, DifferenceQuery) for query in self._queries)


def ask(
    images: ImageEncoder,
    text: TextFeatures,
    queries: Iterable[Query],
    distractors: Iterable[Query],
) -> tuple[TextFeatures, tuple[str, ...], tuple[str, ...]]:
    """Return the features of a user's queries and distractors, and the names of both.

    Args:
        images: As for `QueryFeatures`.
        text: As for `QueryFeatures`.
        queries: The queries.
        distractors: The distractors.

    Raises:
        TypeError: As `QueryFeatures`, or if the queries have no order.
        ValueError: As `QueryFeatures`, or if there are no queries or two have one name.
    """
    targets, others = check_queries(queries), check_queries(distractors)
    if not targets:
        raise ValueError("no queries: a classifier needs at least one")
    names, count = names_of(targets + others), len(targets)
    encoded = text.encoded_images if isinstance(text, QueryFeatures) else None
    features = query_features(images, text, targets + others, names, encoded)
    return features, names[:count], names[count:]


def query_features(
    images: ImageEncoder,
    text: TextFeatures,
    queries: Sequence[Query],
    names: Sequence[str],
    encoded: EncodedImages | None = None,
) -> TextFeatures:
    """Return the features of queries, which are of a kind of their own if some are not texts.

    Args:
        images: As for `QueryFeatures`.
        text: As for `QueryFeatures`.
        queries: Queries and distractors.
        names: Their names.
        encoded: As for `QueryFeatures`.

    Raises:
        TypeError: As `QueryFeatures`.
        ValueError: As `QueryFeatures`.
    """
    base = text.text if isinstance(text, QueryFeatures) else text
    texts = tuple(query for query in queries if isinstance(query, str))
    if len(texts) == len(queries):
        return base.with_texts(texts)
    return QueryFeatures(images, base, queries, names, encoded)


def queries_of(text: TextFeatures) -> dict[str, Query]:
    """Return the queries of text features by name, if some are not texts."""
    return text.by_name if isinstance(text, QueryFeatures) else {}


def query_names(clip: Any) -> frozenset[str]:
    """Return the names of those queries of a classifier that are not texts."""
    return frozenset(name for name, query in clip.queries.items() if not isinstance(query, str))


def texts_within(clip: Any, names: Iterable[str]) -> set[str]:
    """Return names, and the texts that the queries of these names consist of."""
    names = set(names)
    leaves = (leaf for name in names for leaf in iter_leaves(clip.queries.get(name, name)))
    return names | {leaf for leaf in leaves if isinstance(leaf, str)}


def in_place_of(clip: Any, name: str, texts: Sequence[str]) -> list[Query]:
    """Return what is to be compared with a query: texts, each rather than what it is rather than.

    Args:
        clip: The classifier.
        name: A text, or the name of a query.
        texts: Other texts, or names of queries. If `name` is a difference, the same is subtracted
            from each.

    Raises:
        TypeError: If `name` is a difference, and there is another one among `texts`.
    """
    query = clip.queries.get(name)
    if not isinstance(query, DifferenceQuery):
        return list(texts)
    others: list[Any] = [clip.queries.get(text, text) for text in texts]
    return [DifferenceQuery(other, query.rather_than) for other in others]


def bias_of(model: Any, differences: Sequence[bool]) -> Tensor | None:
    """Return the bias of a model's logits, a scalar or (K,), or None if it has none.

    It is zero for differences, in which it cancels.
    """
    bias: Tensor | None = getattr(model, "logit_bias", None)
    if bias is None or not any(differences):
        return bias
    return torch.where(torch.tensor(differences, device=bias.device), 0, bias)


def _combine(query: Query, leaves: Mapping[Any, Tensor]) -> Tensor:
    """Return the feature (C,) of a query."""
    if isinstance(query, MeanQuery):
        parts = [_combine(part, leaves) for part in query.queries]
        return F.normalize(torch.stack(parts).mean(0), dim=0)
    if isinstance(query, DifferenceQuery):
        return _combine(query.query, leaves) - _combine(query.rather_than, leaves)
    return leaves[query]


def _describe(query: Query, parts: Mapping[Any, Any]) -> Any:
    """Return a description of a query as JSON; `parts` describes parts that are not texts."""
    if isinstance(query, MeanQuery):
        return {"mean": [_describe(part, parts) for part in query.queries]}
    if isinstance(query, DifferenceQuery):
        sides = query.query, query.rather_than
        return {"difference": [_describe(side, parts) for side in sides]}
    return query if isinstance(query, str) else parts[query]


def _check_given(query: FeatureQuery, name: str, images: ImageEncoder) -> None:
    """Check the feature of a query on its way to the model's device."""
    feature = query.feature
    rows = feature[None] if isinstance(feature, Tensor) and feature.ndim == 1 else feature
    device = feature.device if isinstance(feature, Tensor) else images.device
    what = f"features of query {truncate_repr(name)}"
    check_features(rows, images.joint_width(), what, device, rows=1)
