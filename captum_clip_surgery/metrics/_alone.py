"""Maps of images for texts that are each used alone, and how they correlate."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from captum_clip_surgery.attr import Method
from captum_clip_surgery.attr._engine import Outputs, attribute_many
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.metrics.functional import image_specificity, text_specificity
from captum_clip_surgery.metrics.functional._maps import check_maps
from captum_clip_surgery.queries import Query
from captum_clip_surgery.queries._features import in_place_of, query_names, texts_within

#: Strings that mean nothing.
NONSENSE = ("xqzv kwpf", "zjdh bqrt", "vgtx ycnq")
#: Texts for images of unknown content.
EVERYDAY = (
    "person",
    "dog",
    "cat",
    "bird",
    "horse",
    "car",
    "boat",
    "building",
    "window",
    "tree",
    "flower",
    "grass",
    "road",
    "sky",
    "water",
    "mountain",
    "chair",
    "table",
    "food",
    "sign",
)
#: Largest number of candidates that are embedded to find texts that images do not show.
MAX_CANDIDATES = 20
#: Number of absent texts per image.
NUM_ABSENT = 4
#: Largest number of other images that an image's map is compared with.
NUM_OTHERS = 3

#: Rank correlations with maps for absent texts from which a map depends little, or hardly, on the
#: text. They were chosen on scenes of the embedded model (docs/measures.md).
LITTLE_TEXT, HARDLY_TEXT = 0.5, 0.7

#: Maps (h, w) of an image by method and text, or by another query.
MapTable = Mapping[str, Mapping[Query, Tensor]]


def describe_specificity(correlation: float) -> str:
    """Describe in words how much a map depends on the text.

    Args:
        correlation: Rank correlation with maps for absent texts, as `text_specificity` returns it.

    Example::

        >>> describe_specificity(0.71), describe_specificity(0.06)
        ('hardly depends on the text: 0.71', 'depends on the text: 0.06')
    """
    degree = "depends"
    if correlation >= LITTLE_TEXT:
        degree = "depends little"
    if correlation >= HARDLY_TEXT:
        degree = "hardly depends"
    return f"{degree} on the text: {correlation:.2f}"


@dataclass(frozen=True)
class Specificity:
    """Rank correlations of one method's maps with maps that should differ, in -1..1.

    Near 0, maps are specific; 1 stands for maps that do not depend on the text or the image. The
    tensors are (N,) of float64.

    Args:
        absent: Correlation with the same image's maps for texts that it does not show.
        nonsense: Correlation with the same image's maps for strings that mean nothing; NaN without
            such strings.
        image: Correlation with the same text's maps on other images; NaN for a single image.

    Example::

        >>> values = torch.tensor([0.0, 0.5])
        >>> Specificity(values, values, torch.tensor([torch.nan])).means()
        {'absent': 0.25, 'nonsense': 0.25}
    """

    absent: Tensor
    nonsense: Tensor
    image: Tensor

    def describe(self) -> list[str]:
        """Describe in words how much each map depends on the text.

        Example::

            >>> values = torch.tensor([0.71, 0.06])
            >>> Specificity(values, values, values).describe()
            ['hardly depends on the text: 0.71', 'depends on the text: 0.06']
        """
        return [describe_specificity(value) for value in self.absent.tolist()]

    def means(self) -> dict[str, float]:
        """Return the mean of each kind that was measured."""
        means = {name: float(values.mean()) for name, values in vars(self).items()}
        return {name: value for name, value in means.items() if value == value}


@dataclass(frozen=True)
class AskedAlone:
    """Maps of N images for their texts, for absent texts and for nonsense.

    Args:
        texts: For each image its K texts.
        absent: For each image and text, texts that the image does not show; if the text names a
            difference, each rather than what that one subtracts.
        nonsense: For each image and text, strings that mean nothing, likewise.
        tables: Maps of each image.
    """

    texts: Sequence[Sequence[str]]
    absent: Sequence[Sequence[Sequence[Query]]]
    nonsense: Sequence[Sequence[Sequence[Query]]]
    tables: Sequence[MapTable]

    def specificity(self, method: str) -> Specificity:
        """Return a method's correlations, (N, K) each."""
        maps = [table[method] for table in self.tables]
        values = [
            [self._correlations(maps, index, place) for place in range(len(row))]
            for index, row in enumerate(self.texts)
        ]
        return Specificity(*torch.tensor(values, dtype=torch.float64, device="cpu").unbind(-1))

    def _correlations(
        self, maps: Sequence[Mapping[Query, Tensor]], index: int, place: int
    ) -> list[float]:
        """Return the correlations of one map, in the order of `Specificity`."""
        own, text = maps[index], self.texts[index][place]
        absent, nonsense = (
            [own[query] for query in queries[index][place]]
            for queries in (self.absent, self.nonsense)
        )
        others = [maps[other][text] for other in _others(index, len(maps))]
        return [
            measure(own[text], torch.stack(rest)) if rest else torch.nan
            for measure, rest in (
                (text_specificity, absent),
                (text_specificity, nonsense),
                (image_specificity, others),
            )
        ]


def ask_alone(
    clip: ZeroShotClassifier,
    methods: Mapping[str, Method],
    images: Tensor,
    texts: Sequence[Sequence[str]],
    absent: Sequence[Sequence[str]],
    nonsense: Sequence[str] = NONSENSE,
) -> AskedAlone:
    """Compute the maps that specificity is measured on.

    The map of a difference, one thing rather than another, is compared with those of absent texts
    and of nonsense rather than the same other. Plain ones would differ from it in any case.

    Args:
        clip: The classifier; of its texts only those matter that name queries.
        methods: Functions that create methods for a classifier, by name.
        images: Images (N, 3, H, W), preprocessed.
        texts: For each image K texts that it shows, or names of queries.
        absent: For each image, texts that it does not show.
        nonsense: Strings that mean nothing.

    Raises:
        TypeError: If `nonsense` is a string.
        ValueError: If there are not as many rows of texts as images, a row is empty, a text, or one
            within a query, is also among the absent ones, or a method's maps have another shape or
            are not finite.
    """
    check_rows("texts", texts, len(images))
    check_rows("absent", absent, len(images))
    for index, (row, others) in enumerate(zip(texts, absent, strict=True)):
        if both := texts_within(clip, row) & set(others):
            raise ValueError(
                f"{min(both)!r} is both a text and an absent text of image {index}; remove it from "
                "one of the lists"
            )
    if isinstance(nonsense, str):
        raise TypeError(
            f"nonsense must be a list, got the string {nonsense!r}; pass [{nonsense!r}]"
        )
    unlike, strange = (
        [
            [in_place_of(clip, text, others) for text in row]
            for row, others in zip(texts, rows, strict=True)
        ]
        for rows in (absent, [nonsense] * len(images))
    )
    wanted = [[*texts[i], *chain(*unlike[i], *strange[i])] for i in range(len(images))]
    for index, row in enumerate(texts):
        for other in _others(index, len(images)):
            wanted[other] += row
    tables = [
        maps_alone(clip, methods, image, list(dict.fromkeys(row)))
        for image, row in zip(images.split(1), wanted, strict=True)
    ]
    return AskedAlone(texts, unlike, strange, tables)


def check_rows(name: str, rows: Sequence[Sequence[str]], count: int) -> None:
    """Check lists of texts, one for each of `count` images.

    Raises:
        ValueError: If there are not as many as images, or one is empty or a string.
    """
    if isinstance(rows, str) or any(isinstance(row, str) or not row for row in rows):
        raise ValueError(f"{name} must be a list of texts for each image, got {rows!r:.80}")
    if len(rows) != count:
        raise ValueError(f"{name} has {len(rows)} entries for {count} images; pass one for each")


def specificity_of_maps(
    clip: ZeroShotClassifier, methods: Mapping[str, Method], images: Tensor, texts: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Measure the text specificity of the maps of all texts on all images.

    Args:
        clip: The classifier; of its texts only those matter that name queries.
        methods: Functions that create methods for a classifier, by name.
        images: Images (N, 3, H, W), preprocessed.
        texts: K texts or names of queries, each of which is used for every image.

    Returns:
        Rank correlations (N, K) with maps for absent texts by method, and for methods that cannot
        be asked for one text alone the reason.
    """
    rows = [texts] * len(images)
    absent = draw_absent(clip, images, rows)
    values, undefined = {}, {}
    for name, method in methods.items():
        try:
            asked = ask_alone(clip, {name: method}, images, rows, absent, nonsense=())
        except ValueError as error:  # variants of feature surgery that contrast texts
            undefined[name] = str(error)
        else:
            values[name] = asked.specificity(name).absent
    return values, undefined


def draw_absent(
    clip: ZeroShotClassifier,
    images: Tensor,
    texts: Sequence[Sequence[str]],
    candidates: Sequence[str] | None = None,
    count: int = NUM_ABSENT,
    seed: int = 0,
) -> list[list[str]]:
    """Draw texts that images do not show, as far as the model can tell.

    At most 20 candidates that are not texts of the image, nor parts of its queries, are sampled,
    and the texts are drawn at random from the half of these that the model finds less likely for
    the image. This takes one forward pass per image.

    Args:
        clip: The classifier; of its texts only those matter that name queries.
        images: Images (N, 3, H, W), preprocessed.
        texts: For each image, texts that must not be drawn, and names of queries whose texts must
            not.
        candidates: Texts to draw from; None means the embedded model's vocabulary, or for
            `EVERYDAY`.
        count: Number of texts per image.
        seed: Seed of the draw.

    Raises:
        TypeError: If `candidates` is a string.
        ValueError: If there are not as many rows of texts as images, or too few candidates are
            left.

    Example::

        >>> clip = ZeroShotClassifier.demo(["dog"])
        >>> images = torch.zeros(1, 3, *clip.native_size)
        >>> drawn = draw_absent(clip, images, [["dog"]], ["dog", "pizza", "camera"], count=1)
        >>> drawn[0][0] in ("pizza", "camera")
        True
    """
    if isinstance(candidates, str):
        raise TypeError(f"candidates must be a list, got the string {candidates!r}")
    check_rows("texts", texts, len(images))
    known = list(dict.fromkeys(candidates or clip.vocabulary or EVERYDAY))
    shuffled = random.Random(seed).sample(known, len(known))
    named = frozenset[str]() if candidates else query_names(clip)  # by chance as a noun
    left_of = []
    for row in texts:
        excluded = texts_within(clip, row) | named
        left_of.append([name for name in shuffled if name not in excluded][:MAX_CANDIDATES])
    for index, left in enumerate(left_of):
        if len(left) < count:
            raise ValueError(
                f"{len(left)} of {len(known)} candidates are not texts of image {index}, "
                f"expected at least {count}; pass more candidates, or draw fewer"
            )
    local = ZeroShotClassifier.with_texts(clip, list(dict.fromkeys(chain(*left_of))))
    drawn = []
    with torch.no_grad():
        for index, image in enumerate(images.split(1)):
            order = local.logits(local.image_features(image))[0].argsort(stable=True).tolist()
            left = [local.texts[i] for i in order if local.texts[i] in left_of[index]]
            unlikely = left[: max(count, len(left) // 2)]
            drawn.append(random.Random(f"{seed} {index}").sample(unlikely, count))
    return drawn


def maps_alone(
    clip: ZeroShotClassifier,
    methods: Mapping[str, Method],
    image: Tensor,
    texts: Sequence[Query],
    outputs: Outputs | None = None,
) -> MapTable:
    """Return each method's map (h, w) of an image (1, 3, H, W) for each text, on the CPU.

    Args:
        clip: The classifier; of its texts only those matter that name queries.
        methods: Functions that create methods for a classifier, by name.
        image: The image (1, 3, H, W).
        texts: The texts, names of queries or other queries, each of which is the only one of its
            classifier.
        outputs: Outputs already computed for the image by this tower, to which new ones are added.

    Raises:
        ValueError: If a method's maps have another shape or are not finite.
    """
    outputs = {} if outputs is None else outputs
    maps: dict[str, dict[Query, Tensor]] = {name: {} for name in methods}
    for text in texts:
        # Not `clip.with_texts` and `clip.with_queries`: the embedded model would warn of nonsense.
        if isinstance(text, str):
            local = ZeroShotClassifier.with_texts(clip, [text])
        else:
            local = ZeroShotClassifier.with_queries(clip, [text])
        explainers = {name: method(local) for name, method in methods.items()}
        with torch.no_grad():  # methods that need gradients enable them themselves
            results = attribute_many(explainers, image, [0], outputs)
        for name, result in results.items():
            if not isinstance(result, Tensor) or result.ndim != 4 or result.shape[:2] != (1, 1):
                shape = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
                raise ValueError(
                    f"maps of {name} for one image and one text are {shape}, expected (1, 1, h, w)"
                )
            check_maps(result[0], 1, f"maps of {name}")
            maps[name][text] = result[0, 0].detach().cpu()
    return maps


def _others(index: int, count: int) -> list[int]:
    """Return the images that one of `count` images is compared with: those that follow it."""
    return [(index + step) % count for step in range(1, min(count, NUM_OTHERS + 1))]
