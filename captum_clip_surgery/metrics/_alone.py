"""Maps of images for texts that are each asked alone, and how they correlate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_clip_surgery.attr import Method
from captum_clip_surgery.attr._engine import Outputs, attribute_many
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.metrics.functional import image_specificity, text_specificity
from captum_clip_surgery.metrics.functional._maps import check_maps

#: Strings that mean nothing.
NONSENSE = ("xqzv kwpf", "zjdh bqrt", "vgtx ycnq")
#: Largest number of other images that an image's map is compared with.
NUM_OTHERS = 3

#: Maps (h, w) of an image by method and text.
MapTable = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Specificity:
    """Rank correlations of one method's maps with maps that should differ, in -1..1.

    Near 0, maps are specific; 1 stands for maps that do not depend on the text or the image. The
    tensors are (N,) of float64.

    Args:
        absent: Correlation with the same image's maps for texts that it does not show.
        nonsense: Correlation with the same image's maps for strings that mean nothing.
        image: Correlation with the same text's maps on other images; NaN for a single image.

    Example::

        >>> values = torch.tensor([0.0, 0.5])
        >>> Specificity(values, values, torch.tensor([torch.nan])).means()
        {'absent': 0.25, 'nonsense': 0.25}
    """

    absent: Tensor
    nonsense: Tensor
    image: Tensor

    def means(self) -> dict[str, float]:
        """Return the mean of each kind; `image` is left out for a single image."""
        means = {name: float(values.mean()) for name, values in vars(self).items()}
        return {name: value for name, value in means.items() if value == value}


@dataclass(frozen=True)
class AskedAlone:
    """Maps of N images for their texts, for absent texts and for nonsense.

    Args:
        texts: For each image its K texts.
        absent: For each image, texts that it does not show.
        nonsense: Strings that mean nothing.
        tables: Maps of each image.
    """

    texts: Sequence[Sequence[str]]
    absent: Sequence[Sequence[str]]
    nonsense: Sequence[str]
    tables: Sequence[MapTable]

    def specificity(self, method: str) -> Specificity:
        """Return a method's correlations, (N, K) each."""
        maps = [table[method] for table in self.tables]
        values = [
            [self._correlations(maps, index, text) for text in row]
            for index, row in enumerate(self.texts)
        ]
        return Specificity(*torch.tensor(values, dtype=torch.float64, device="cpu").unbind(-1))

    def _correlations(
        self, maps: Sequence[Mapping[str, Tensor]], index: int, text: str
    ) -> list[float]:
        """Return the correlations of one map, in the order of `Specificity`."""
        own = maps[index]
        others = [maps[other][text] for other in _others(index, len(maps))]
        return [
            text_specificity(own[text], torch.stack([own[name] for name in self.absent[index]])),
            text_specificity(own[text], torch.stack([own[name] for name in self.nonsense])),
            image_specificity(own[text], torch.stack(others)) if others else torch.nan,
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

    Args:
        clip: The classifier; its own texts do not matter.
        methods: Creates each method for a classifier, by name.
        images: Images (N, 3, H, W), preprocessed.
        texts: For each image K texts that it shows.
        absent: For each image, texts that it does not show.
        nonsense: Strings that mean nothing.

    Raises:
        ValueError: If there are not as many rows of texts as images, a row is empty, or a method's
            maps have another shape or are not finite.
    """
    for name, rows in (("texts", texts), ("absent", absent)):
        if isinstance(rows, str) or any(isinstance(row, str) or not row for row in rows):
            raise ValueError(f"{name} must be a list of texts for each image, got {rows!r:.80}")
        if len(rows) != len(images):
            raise ValueError(
                f"{name} has {len(rows)} entries for {len(images)} images; pass one for each"
            )
    if isinstance(nonsense, str) or not nonsense:
        raise ValueError(f"nonsense must be a list of at least one string, got {nonsense!r:.80}")
    wanted = [[*texts[i], *absent[i], *nonsense] for i in range(len(images))]
    for index, row in enumerate(texts):
        for other in _others(index, len(images)):
            wanted[other] += row
    tables = [
        maps_alone(clip, methods, image, list(dict.fromkeys(row)))
        for image, row in zip(images.split(1), wanted, strict=True)
    ]
    return AskedAlone(texts, absent, nonsense, tables)


def maps_alone(
    clip: ZeroShotClassifier,
    methods: Mapping[str, Method],
    image: Tensor,
    texts: Sequence[str],
    outputs: Outputs | None = None,
) -> MapTable:
    """Return each method's map (h, w) of an image (1, 3, H, W) for each text, on the CPU.

    Args:
        clip: The classifier; its own texts do not matter.
        methods: Creates each method for a classifier, by name.
        image: The image (1, 3, H, W).
        texts: The texts, each of which is the only one of its classifier.
        outputs: Outputs already computed for the image by this tower, to which new ones are added.

    Raises:
        ValueError: If a method's maps have another shape or are not finite.
    """
    outputs = {} if outputs is None else outputs
    maps: dict[str, dict[str, Tensor]] = {name: {} for name in methods}
    for text in texts:
        # Not `clip.with_texts`: the embedded model would warn of nonsense.
        local = ZeroShotClassifier.with_texts(clip, [text])
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
