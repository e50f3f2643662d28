"""Maps of an image on the page: it passes through the tower once, whatever the texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from threading import Lock
from typing import Any

import torch
from cachetools import LRUCache, cachedmethod
from torch import Tensor

from captum_clip_surgery.app._images import PageImage
from captum_clip_surgery.app._settings import MAX_SIDE, Settings
from captum_clip_surgery.attr import METHODS, LayerCLIPSurgery, attribute_many
from captum_clip_surgery.attr import Method as Factory
from captum_clip_surgery.attr._coverage import cover_image
from captum_clip_surgery.attr._descriptions import title_of
from captum_clip_surgery.attr._engine import Explainer as Method
from captum_clip_surgery.attr._engine import Outputs, forward_pass, path_of
from captum_clip_surgery.attr._registry import SURGERY_METHODS, choose
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.metrics import draw_absent, text_specificity
from captum_clip_surgery.metrics._alone import maps_alone
from captum_clip_surgery.models._validation import check_images
from captum_clip_surgery.models.image._data import nearest_multiple
from captum_clip_surgery.queries import DifferenceQuery, ImageQuery, Query
from captum_clip_surgery.queries._features import in_place_of

#: Patches of an image.
MAX_TOKENS = 4096
#: Images whose tower outputs are cached, and query images that are.
MAX_OUTPUTS = 16
#: Maps cached of methods that need a pass per text.
MAX_MAPS = 512

#: Digest of an image, its side, and what else a cached value depends on.
Key = tuple[str | int | None, ...]


@dataclass
class Explanation:
    """Maps of an image, as far as they are computed.

    Args:
        texts: The K texts.
        logits: Logits of the image for the texts, (K,).
        cosines: Cosines of the image and the texts, (K,).
        probabilities: Softmax of the logits, (K,).
        maps: Maps by method, (K, h, w), raw and signed.
        left_out: Reason by method that has no maps, or by another result that is missing.
        specificity: Text specificity of each map by method, (K,) in -1..1.
    """

    texts: tuple[str, ...]
    logits: Tensor
    cosines: Tensor
    probabilities: Tensor
    maps: dict[str, Tensor] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    specificity: dict[str, list[float]] = field(default_factory=dict)

    def ranking(self) -> list[int]:
        """Return the indices of the texts, likeliest first."""
        return self.logits.argsort(descending=True, stable=True).tolist()

    def scores_at(self, point: tuple[float, float]) -> dict[str, list[float]]:
        """Return each method's raw scores of the texts at the patch under a point (x, y)."""
        x, y = point
        scores = {}
        for name, maps in self.maps.items():
            rows, columns = maps.shape[-2:]
            row, column = min(int(y * rows), rows - 1), min(int(x * columns), columns - 1)
            scores[name] = maps[:, row, column].tolist()
        return scores


class Explainer:
    """One model for all users, who are served one after another.

    Args:
        clip: The classifier; its texts do not matter.
    """

    def __init__(self, clip: ZeroShotClassifier) -> None:
        self.clip = clip
        self.methods, _ = choose(clip, ["all"])
        self._outputs: LRUCache[Key, Outputs] = LRUCache(MAX_OUTPUTS)
        self._maps: LRUCache[Key, Tensor] = LRUCache(MAX_MAPS)
        self._queries: LRUCache[Key, tuple[ZeroShotClassifier, ImageQuery]] = LRUCache(MAX_OUTPUTS)
        self._lock = Lock()  # sessions are closed while others are served

    def sides(self) -> list[int]:
        """Return sides in pixels to choose from: the native one, and multiples of the patch."""
        height, width = self.clip.native_size
        step = max(self.clip.tower.patch_size)
        larger = [nearest_multiple(int(height * factor), step) for factor in (1.5, 2, 3)]
        return [height, *(side for side in larger if self._fits(side))] if height == width else []

    def _fits(self, side: int) -> bool:
        rows, columns = self.clip.tower.grid(side, side)
        return side <= MAX_SIDE and rows * columns <= MAX_TOKENS

    def classifier(self, settings: Settings, query: PageImage | None = None) -> ZeroShotClassifier:
        """Return the model with the user's texts, and with the query image if there is one."""
        if query is None and not settings.minus:
            return self.clip.with_texts(settings.texts, settings.distractors)
        clip, queries = self.clip, list[Any](settings.texts)
        if query is not None:
            clip, image_query = self._cached_query((query.digest, settings.query), query)
            queries.append(image_query)
        if settings.minus:
            queries = [DifferenceQuery(each, settings.minus) for each in queries]
        return clip.with_queries(queries, settings.distractors)

    def forget(self, digest: str) -> None:
        """Drop everything cached of an image."""
        with self._lock:
            caches: tuple[LRUCache[Key, Any], ...] = (self._outputs, self._maps, self._queries)
            for cache in caches:
                for key in [key for key in cache if digest in key]:
                    del cache[key]

    @torch.no_grad()  # methods that need gradients enable them themselves
    def explain(
        self, image: PageImage, settings: Settings, query: PageImage | None = None
    ) -> Iterator[Explanation]:
        """Yield the maps of every text by every method, as they are computed.

        Methods that share the tower's pass come first and together, the others one by one. Between
        the texts of a method the same explanation is yielded again, so that the computation can be
        abandoned when the user leaves.

        Raises:
            ValueError: If the model does not accept the resolution, or a text is too long.
        """
        clip = self.classifier(settings, query)
        images = self._preprocess(image, settings.side)
        methods, left_out = self._methods(clip, settings)
        sharing = {name: m for name, m in methods.items() if path_of(m) is not None}
        outputs = self._cached_outputs(image.digest, settings.side)
        explanation = _explain_together(clip, images, sharing, outputs)
        explanation.left_out |= left_out
        yield explanation
        for name, method in methods.items():
            if name in sharing:
                continue
            maps = []
            try:
                for index in range(len(clip.texts)):
                    key = (image.digest, settings.side, name, *_asked(settings, query, index))
                    maps.append(self._cached_map(key, method, images, index))
                    yield explanation
            except (TypeError, ValueError, ImportError) as error:
                explanation.left_out[name] = str(error)
            else:
                explanation.maps[name] = torch.stack(maps)
                yield explanation
        if settings.trust:
            yield from self._measure_specificity(clip, explanation, image, images, settings, query)

    def _measure_specificity(
        self,
        clip: ZeroShotClassifier,
        explanation: Explanation,
        image: PageImage,
        images: Tensor,
        settings: Settings,
        query: PageImage | None,
    ) -> Iterator[Explanation]:
        """Measure how much maps depend on their texts, each of which is used alone."""
        (absent,) = draw_absent(clip, images, [clip.texts])
        unlike = {text: in_place_of(clip, text, absent) for text in clip.texts}
        asked: dict[Query, Key] = {
            text: _asked(settings, query, index) for index, text in enumerate(clip.texts)
        }
        for others in unlike.values():
            asked |= {
                other: (text, settings.minus, None)
                for text, other in zip(absent, others, strict=True)
            }
        outputs = self._cached_outputs(image.digest, settings.side)
        for name in list(explanation.maps):
            method, maps = method_of(name, settings), dict[Query, Tensor]()
            try:
                for text, about in asked.items():
                    variant = settings.feature_surgery if name in SURGERY_METHODS else None
                    key = (image.digest, settings.side, name, variant, "alone", *about)
                    maps[text] = self._cached_map_alone(key, clip, method, images, text, outputs)
                    yield explanation
            except ValueError as error:  # variants of feature surgery that contrast texts
                explanation.left_out[specificity_of(name)] = str(error)
            else:
                explanation.specificity[name] = [
                    text_specificity(maps[text], torch.stack([maps[other] for other in others]))
                    for text, others in unlike.items()
                ]
            yield explanation

    @cachedmethod(attrgetter("_outputs"), lambda self, *key: key, attrgetter("_lock"))
    def _cached_outputs(self, digest: str, side: int | None) -> Outputs:
        """Return the tower outputs of an image; `explain` adds to them."""
        return {}

    @cachedmethod(attrgetter("_queries"), lambda self, key, *_: key, attrgetter("_lock"))
    def _cached_query(self, key: Key, query: PageImage) -> tuple[ZeroShotClassifier, ImageQuery]:
        """Return a query image with the name in its key, and a classifier that has encoded it."""
        image_query = ImageQuery(query.pixels, str(key[1]))
        return self.clip.with_queries([image_query]), image_query

    @cachedmethod(attrgetter("_maps"), lambda self, key, *_: key, attrgetter("_lock"))
    def _cached_map(self, key: Key, method: Method, images: Tensor, index: int) -> Tensor:
        """Return the map (h, w) of one text by a method with its own pass."""
        maps = attribute_many({"": method}, images, [index])[""]
        return cover_image(self.clip, maps, images)[0, 0].detach().cpu()

    @cachedmethod(attrgetter("_maps"), lambda self, key, *_: key, attrgetter("_lock"))
    def _cached_map_alone(
        self,
        key: Key,
        clip: ZeroShotClassifier,
        method: Factory,
        images: Tensor,
        text: Query,
        outputs: Outputs,
    ) -> Tensor:
        """Return a method's map (h, w) of one text or query that nothing competes with."""
        return maps_alone(clip, {"": method}, images, [text], outputs)[""][text]

    def _preprocess(self, image: PageImage, side: int | None) -> Tensor:
        if side is not None and not self._fits(side):
            raise ValueError(
                f"the resolution of {side} pixels is too large; the limit is {MAX_SIDE} pixels and "
                f"{MAX_TOKENS} patches"
            )
        images = self.clip.preprocess(image.pixels, side)
        check_images(images, self.clip.tower, self.clip.device)
        return images

    def _methods(
        self, clip: ZeroShotClassifier, settings: Settings
    ) -> tuple[dict[str, Method], dict[str, str]]:
        """Create the chosen methods, and say why others are not defined on the model."""
        methods: dict[str, Method] = {}
        left_out: dict[str, str] = {}
        for name in settings.methods:
            try:
                methods[name] = method_of(name, settings)(clip)
            except (TypeError, ImportError) as error:
                left_out[name] = str(error)
        return methods, left_out


def _asked(settings: Settings, query: PageImage | None, index: int) -> Key:
    """Return what is asked at an index, as part of a key."""
    is_query = query is not None and index == len(settings.texts)
    return settings.asked[index], settings.minus, query.digest if query and is_query else None


def method_of(name: str, settings: Settings) -> Factory:
    """Return a constructor of a method with the user's settings."""
    if name in SURGERY_METHODS:
        return partial(SURGERY_METHODS[name], feature_surgery=settings.feature_surgery)
    return METHODS[name]


def specificity_of(name: str) -> str:
    """Return the name of a method's text specificity in the list of what was left out."""
    return f"text specificity of {title_of(name)}"


def _explain_together(
    clip: ZeroShotClassifier, images: Tensor, methods: Mapping[str, Method], outputs: Outputs
) -> Explanation:
    """Compute logits, and the maps of methods that share one pass."""
    base = LayerCLIPSurgery(clip, feature_surgery=None).path_config
    configs = [config for config in map(path_of, methods.values()) if config is not None]
    with forward_pass(clip, images, [base, *configs], outputs) as forward:
        forward.output(base)
        logits = clip.logits(forward.image_features())[0].float().cpu()
        explanation = Explanation(clip.texts, logits, clip.cosines(logits), logits.softmax(-1))
        for name, method in methods.items():
            try:
                maps = attribute_many({name: method}, images)[name]
                explanation.maps[name] = cover_image(clip, maps, images)[0].cpu()
            except ValueError as error:
                explanation.left_out[name] = str(error)
    return explanation
