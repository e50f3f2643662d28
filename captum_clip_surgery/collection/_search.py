"""Search in a collection of images by texts, images and other queries."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch

from captum_clip_surgery._utils.provenance import precision, weights_digest
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.export import load_maps
from captum_clip_surgery.preprocessing import ImageInput
from captum_clip_surgery.queries import Query

#: Largest number of images that are compared one by one if `exact` is None.
MAX_EXACT = 100_000
#: Links of an image in the graph of the index, and the candidates that are kept while it is built
#: and while it is searched.
LINKS, CANDIDATES = 32, 256


class Hit(NamedTuple):
    """An image that was found.

    Args:
        name: Name of the image.
        score: Its cosine with the query; for a difference, the difference of two cosines.
    """

    name: str
    score: float


class ImageIndex:
    """Embeddings of a collection of images, to be searched.

    Up to 100,000 images are compared with a query one by one, which is exact. For more, an HNSW
    graph of faiss finds candidates, whose scores are exact.

    Args:
        names: Names of the N images.
        embeddings: Their L2-normalized embeddings (N, C), float32.
        exact: Whether to compare all images; None means up to 100,000.

    Raises:
        ValueError: If there are no images, or the embeddings have another shape, or are not finite
            or not of length one.
        ImportError: If the index needs faiss and it is not installed.

    References:
        Malkov, Yashunin: Efficient and robust approximate nearest neighbor search using
        Hierarchical Navigable Small World graphs. TPAMI 2018.
    """

    def __init__(
        self, names: Sequence[str], embeddings: np.ndarray, exact: bool | None = None
    ) -> None:
        embeddings = np.ascontiguousarray(embeddings, dtype=np.float32)
        if not len(names) or embeddings.ndim != 2 or len(embeddings) != len(names):
            raise ValueError(
                f"embeddings must be ({len(names)} images, C) and not empty, got {embeddings.shape}"
            )
        lengths = np.linalg.norm(embeddings, axis=1)
        wrong = np.flatnonzero(~(np.abs(lengths - 1) < 1e-2))  # NaN compares false
        if len(wrong):
            raise ValueError(
                f"the embedding of {names[wrong[0]]} has the length {lengths[wrong[0]]:.4g}, "
                "expected 1; L2-normalize embeddings"
            )
        self.names = tuple(names)
        self.embeddings = embeddings
        self.exact = len(names) <= MAX_EXACT if exact is None else exact
        self._graph = None if self.exact else _build_graph(embeddings)

    @classmethod
    def from_images(
        cls,
        clip: ZeroShotClassifier,
        images: Iterable[ImageInput],
        names: Sequence[str],
        batch_size: int = 16,
        exact: bool | None = None,
    ) -> Self:
        """Embed images.

        Args:
            clip: The model.
            images: Images as `clip.preprocess` takes them.
            names: A name for each.
            batch_size: Number of images per forward pass.
            exact: As for the class.

        Raises:
            FileNotFoundError: If the file of an image does not exist.
            TypeError: If an image is of an unsupported type.
            ValueError: If an image cannot be read, or as for the class.
            ImportError: As for the class.
        """
        rest, features = iter(images), []
        with torch.no_grad():
            while batch := list(islice(rest, batch_size)):
                features.append(clip.image_features(clip.preprocess(batch)))
        joined = torch.cat(features) if features else torch.empty(0, 0)
        return cls(names, joined.float().cpu().numpy(), exact)

    @classmethod
    def from_export(
        cls,
        path: str | os.PathLike[str],
        clip: ZeroShotClassifier | None = None,
        exact: bool | None = None,
    ) -> Self:
        """Read the embeddings that an export wrote.

        Args:
            path: Folder of the export.
            clip: The model of the queries, to check that it is the export's; None skips this.
            exact: As for the class.

        Raises:
            FileNotFoundError: If there is no export in the folder.
            ValueError: If it is damaged, or was made by another model.
        """
        store = load_maps(path)
        if clip is not None:
            _check_model(clip, store.settings["model"], Path(path))
        names, embeddings = store.embeddings()
        return cls(names, embeddings, exact)

    def __len__(self) -> int:
        return len(self.names)

    def search(self, feature: np.ndarray, top: int = 20) -> list[Hit]:
        """Return the images with the largest products with a feature, best first.

        Args:
            feature: Feature (C,) of a query, of any length above 0.
            top: Maximum number of images.

        Raises:
            ValueError: If the feature has another width, or `top` is below 1.
        """
        feature = np.asarray(feature, dtype=np.float32)
        if feature.shape != self.embeddings.shape[1:]:
            raise ValueError(
                f"the query's feature has the shape {feature.shape}, expected "
                f"{self.embeddings.shape[1:]}"
            )
        if top < 1:
            raise ValueError(f"top must be at least 1, got {top!r}")
        top = min(top, len(self))
        if self._graph is None:
            candidates = np.arange(len(self))
            scores = self.embeddings @ feature
        else:
            self._graph.hnsw.efSearch = max(CANDIDATES, top)
            _, (found,) = self._graph.search(feature[None], top)
            candidates = found[found >= 0]
            scores = self.embeddings[candidates] @ feature
        values, order = torch.from_numpy(scores).topk(min(top, len(scores)))
        names = [self.names[index] for index in candidates[order.numpy()]]
        return [Hit(name, value) for name, value in zip(names, values.tolist(), strict=True)]


def search(clip: ZeroShotClassifier, query: Query, index: ImageIndex, top: int = 20) -> list[Hit]:
    """Rank the images of a collection by a query.

    Args:
        clip: The model that embedded the images; its own texts are not used.
        query: A text, an image, a region, a mean, a difference or a feature, as
            `clip.with_queries` takes them.
        index: The collection.
        top: Maximum number of images.

    Returns:
        The images, best first, with their cosines; for a difference, differences of cosines.

    Raises:
        TypeError: If the query has another type.
        ValueError: If the query does not fit the model or the index, or `top` is below 1.

    Example::

        >>> from captum_clip_surgery.demo import SceneCollection
        >>> data = SceneCollection(["dog", "pizza", "moon"], per_noun=2, size=224)
        >>> clip = ZeroShotClassifier.demo(["dog"])
        >>> index = ImageIndex.from_images(clip, [s.image for s in data], data.names)
        >>> sorted(hit.name for hit in search(clip, "pizza", index, top=2))
        ['pizza-0', 'pizza-1']
    """
    (feature,) = clip.with_queries([query]).text_features().detach().float().cpu().numpy()
    return index.search(feature, top)


def _check_model(clip: ZeroShotClassifier, recorded: Mapping[str, Any], folder: Path) -> None:
    """Check that an export was made by the model of a query."""
    if weights_digest(clip.model) == recorded["weights"]:
        return
    own, other = precision(clip.tower.dtype), recorded["precision"]
    if own != other:
        raise ValueError(
            f"the export in {folder} was made with precision {other}, and the model of the query "
            f"has {own}; load it with precision {other}"
        )
    raise ValueError(
        f"the export in {folder} was made by a model with other weights than those of the query; "
        "choose the same model"
    )


def _build_graph(embeddings: np.ndarray) -> Any:
    """Build faiss's HNSW graph of embeddings (N, C)."""
    try:
        faiss = importlib.import_module("faiss")
    except ImportError as error:
        raise ImportError(
            f"an index of {len(embeddings)} images needs faiss; install the extra: "
            "pip install 'captum_clip_surgery[search]', or search with exact=True"
        ) from error
    graph = faiss.IndexHNSWFlat(embeddings.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = CANDIDATES
    graph.add(embeddings)
    return graph
