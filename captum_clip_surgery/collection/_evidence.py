"""The evidence for every class in every image of a collection, from one decomposition each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from captum_clip_surgery.attr import LayerCLIPSurgery
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.datasets import ImageDataset, Labels, Masks, Sample, Tags
from captum_clip_surgery.decomposition import Decomposition, decompose

#: Share of the range of surgery's map from which a patch belongs to the object.
OBJECT_THRESHOLD = 0.5


@dataclass(frozen=True)
class Pair:
    """An image and a class that it shows.

    Args:
        image: Index of the image among those that were read.
        text: Index of the class.
        inside: Patches (h*w) of bool that hold a part of the object.
        outside: Patches (h*w) of bool that hold nothing of it and no unlabeled pixel.
        patches: Evidence for the class by patch, (h*w).
        heads: Evidence for the class by head (blocks, heads), summed over the patches outside.
    """

    image: int
    text: int
    inside: Tensor
    outside: Tensor
    patches: Tensor
    heads: Tensor


@dataclass(frozen=True)
class Evidence:
    """The evidence for K classes in N images.

    The evidence for a class is its cosine minus the mean over all classes, and the exact
    contributions to that difference.

    Args:
        names: Names of the N images.
        texts: Names of the K classes.
        grid: Rows and columns of patches, h and w.
        size: (height, width) in pixels of images as the model sees them.
        covered: (height, width) of the part of them that the patches cover.
        scores: Evidence (N, K), summed over all parts of the model.
        heads: Evidence (N, K, blocks, heads), summed over patches.
        background: Evidence (N, K, blocks, heads) of the mean patch outside all objects; NaN for
            images without such a patch.
        shown: Whether an image shows a class, (N, K): 1, 0, or -1 where it is unknown.
        pairs: The images and classes whose objects are located.
        tagged: Whether images have tags, so that objects are located by surgery's maps.
        unreadable: Reason by name of each image that could not be read.
    """

    names: tuple[str, ...]
    texts: tuple[str, ...]
    grid: tuple[int, int]
    size: tuple[int, int]
    covered: tuple[int, int]
    scores: Tensor
    heads: Tensor
    background: Tensor
    shown: Tensor
    pairs: tuple[Pair, ...]
    tagged: bool = False
    unreadable: dict[str, str] = field(default_factory=dict)


def collect(
    clip: ZeroShotClassifier,
    data: ImageDataset,
    indices: Sequence[int],
    size: int | tuple[int, int] | None,
    batch_size: int,
    progress: bool,
) -> Evidence:
    """Decompose the images of a data set, and keep the evidence.

    Args:
        clip: A classifier of the data set's classes without its background.
        data: The data set.
        indices: Indices of the images to read.
        size: Side or (height, width) in pixels that the model sees.
        batch_size: Number of images per decomposition.
        progress: Whether to show a progress bar.

    Raises:
        TypeError: If a target has another type than labels, masks or tags.
        ValueError: If no image can be read.
    """
    labels = data.foreground
    batches: list[Evidence] = []
    unreadable: dict[str, str] = {}
    bar = tqdm(total=len(indices), desc="audit", unit="image", disable=not progress)
    with bar:
        for start in range(0, len(indices), batch_size):
            samples = []
            for index in indices[start : start + batch_size]:
                try:
                    # Later lookups are by the collection's names, whatever a sample's own is.
                    samples.append(replace(data[index], name=data.names[index]))
                except (OSError, ValueError) as error:
                    unreadable[data.names[index]] = str(error)
            if samples:
                first = sum(len(batch.names) for batch in batches)
                batches.append(_collect_batch(clip, samples, labels, size, first))
            bar.update(len(indices[start : start + batch_size]))
    if not batches:
        name, reason = next(iter(unreadable.items()))
        raise ValueError(f"none of {len(unreadable)} images can be read; {name}: {reason}")
    return replace(
        batches[0],
        names=tuple(name for batch in batches for name in batch.names),
        scores=torch.cat([batch.scores for batch in batches]),
        heads=torch.cat([batch.heads for batch in batches]),
        background=torch.cat([batch.background for batch in batches]),
        shown=torch.cat([batch.shown for batch in batches]),
        pairs=tuple(pair for batch in batches for pair in batch.pairs),
        unreadable=unreadable,
    )


def _collect_batch(
    clip: ZeroShotClassifier,
    samples: Sequence[Sample],
    labels: Sequence[int],
    size: int | tuple[int, int] | None,
    first: int,
) -> Evidence:
    """Decompose a batch whose first image has the index `first`."""
    batch = clip.preprocess([sample.image for sample in samples], size)
    parts = decompose(clip, batch)
    scores, attention = centered(parts)  # (n, K), (n, K, blocks, heads, h*w)
    shown = torch.stack([_shown(sample, labels) for sample in samples])
    for row, score in zip(shown, scores, strict=True):
        if (row == -1).all():  # without any tags, the model's own answer counts
            row[:] = 0
            row[score.argmax()] = 1
    pairs, background = [], []
    for index, sample in enumerate(samples):
        free = torch.ones(attention.shape[-1], dtype=torch.bool)
        texts = (shown[index] == 1).nonzero().flatten().tolist()
        regions = _regions(clip, batch[[index]], sample, texts, labels, parts)
        for text, (inside, outside) in zip(texts, regions, strict=True):
            free &= outside
            own = attention[index, text]
            pairs.append(
                Pair(
                    image=first + index,
                    text=text,
                    inside=inside,
                    outside=outside,
                    patches=own.sum((0, 1)),
                    heads=(own * outside).sum(-1),
                )
            )
        background.append(attention[index][..., free].mean(-1).float())
    return Evidence(
        names=tuple(sample.name for sample in samples),
        texts=clip.texts,
        grid=parts.grid,
        size=parts.shown,
        covered=parts.covered,
        scores=scores,
        heads=attention.sum(-1).float(),
        background=torch.stack(background),
        shown=shown,
        pairs=tuple(pairs),
        tagged=isinstance(samples[0].target, Tags),
    )


def centered(parts: Decomposition) -> tuple[Tensor, Tensor]:
    """Return the evidence for each text: the sums (N, K) and the parts of heads and patches.

    Args:
        parts: A decomposition of the cosines of all classes.

    Returns:
        Sums (N, K) and parts (N, K, blocks, heads, h*w), each minus its mean over the texts.
    """
    cosines, attention = parts.sum(), parts.attention
    return cosines - cosines.mean(1, keepdim=True), attention - attention.mean(1, keepdim=True)


def _shown(sample: Sample, labels: Sequence[int]) -> Tensor:
    """Return whether a sample shows each class (K,): 1, 0 or -1 for unknown."""
    target = sample.target
    if isinstance(target, Labels):
        target = target.masks()
    if isinstance(target, Masks):
        present, unknown = frozenset(target.masks), frozenset[int]()
    elif isinstance(target, Tags):
        present, unknown = target.present, target.unknown
    else:
        raise TypeError(
            f"the target of {sample.name!r} must be labels, masks or tags, got "
            f"{type(target).__name__}"
        )
    return torch.tensor([1 if i in present else -1 if i in unknown else 0 for i in labels])


def _regions(
    clip: ZeroShotClassifier,
    image: Tensor,
    sample: Sample,
    texts: Sequence[int],
    labels: Sequence[int],
    parts: Decomposition,
) -> list[tuple[Tensor, Tensor]]:
    """Return for each shown class the patches inside and outside its object, (h*w) of bool."""
    if not texts:
        return []
    target = sample.target
    if isinstance(target, Tags):
        surgery = LayerCLIPSurgery(clip)
        with torch.no_grad():
            maps = surgery.attribute_all(image, texts)[0].flatten(1).cpu()  # (K', h*w)
        low, high = maps.amin(1, keepdim=True), maps.amax(1, keepdim=True)
        objects = maps >= low + OBJECT_THRESHOLD * (high - low)
        return [(inside, ~inside) for inside in objects]
    masks = target.masks() if isinstance(target, Labels) else target
    assert isinstance(masks, Masks)
    regions = []
    for text in texts:
        label = labels[text]
        inside = _patches(masks.masks[label], parts)
        outside = ~inside
        if label in masks.ignored:
            outside &= ~_patches(masks.ignored[label], parts)
        regions.append((inside, outside))
    return regions


def _patches(mask: object, parts: Decomposition) -> Tensor:
    """Return the patches (h*w) that hold a pixel of a mask (H, W) of the whole image."""
    pixels = torch.as_tensor(mask).float()
    height, width = (
        max(1, round(side * covered / shown))
        for side, covered, shown in zip(pixels.shape, parts.covered, parts.shown, strict=True)
    )
    return F.adaptive_max_pool2d(pixels[None, :height, :width], parts.grid).flatten() > 0
