"""Where the cue of a class is: in the border of its images, or elsewhere in their background."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.collection._evidence import Evidence
from captum_clip_surgery.collection._result import Cue, Rise
from captum_clip_surgery.datasets import ImageDataset

#: Width of the border as a share of the side, rounded to patches; at least one patch.
BORDER = 1 / 8
#: Largest number of a class's images from which parts are taken, and images that each is pasted in.
MAX_SOURCES, NUM_PASTED = 32, 4
#: Standard errors that a rise must exceed.
NUM_ERRORS = 3
#: Number of cue texts that are kept.
NUM_TEXTS = 5


def locate_cue(
    clip: ZeroShotClassifier,
    data: ImageDataset,
    evidence: Evidence,
    name: str,
    cues: ZeroShotClassifier | None,
    batch_size: int,
) -> Cue:
    """Find the part of a class's images that raises its score in images of other classes.

    The border of the images and the rest of what is outside the object are pasted in turn into
    images that do not show the class, in place. What pasting as such does is subtracted: the same
    patches are pasted from another image that does not show the class. The object itself is never
    pasted; objects of other classes are part of what is outside.

    Args:
        clip: The classifier of the evidence.
        data: The data set.
        evidence: Its evidence.
        name: Name of the class.
        cues: A classifier of the texts that may describe the cue.
        batch_size: Number of images per forward pass.
    """
    text = evidence.texts.index(name)
    features = clip.text_features()[: len(clip.texts)].detach()
    direction = features[text] - features.mean(0)  # (C,)
    changes = _changes(clip, data, evidence, text, batch_size)
    rises = {place: _rise(change @ direction) for place, change in changes.items()}
    sure = [place for place, rise in rises.items() if rise.mean > NUM_ERRORS * rise.error]
    place = max(sure, key=lambda place: rises[place].mean, default=None)
    texts: list[tuple[str, float]] = []
    if cues is not None and place is not None:
        cosines = cues.text_features()[: len(cues.texts)].detach() @ changes[place].mean(0)
        values, order = cosines.topk(min(NUM_TEXTS, len(cosines)))
        ranked = zip(order.tolist(), values.tolist(), strict=True)
        texts = [(cues.texts[index], value) for index, value in ranked if value > 0]
    return Cue(place, rises["border"], rises["background"], tuple(texts))


def border(grid: tuple[int, int]) -> Tensor:
    """Return the patches (h*w) of bool in the outer eighth of an image, at least the outer ring."""
    inner = torch.zeros(grid, dtype=torch.bool)
    rows, columns = (max(1, round(BORDER * side)) for side in grid)
    inner[rows : grid[0] - rows, columns : grid[1] - columns] = True
    return ~inner.flatten()


@torch.no_grad()
def _changes(
    clip: ZeroShotClassifier, data: ImageDataset, evidence: Evidence, text: int, batch_size: int
) -> dict[str, Tensor]:
    """Return how embeddings change (sources, C) if a part of an image of a class is pasted.

    Sources of which no patch can be pasted are left out.
    """
    pairs = [pair for pair in evidence.pairs if pair.text == text]
    chosen = np.linspace(0, len(pairs) - 1, min(len(pairs), MAX_SOURCES)).round().astype(int)
    free = torch.ones(len(evidence.names), len(pairs[0].outside), dtype=torch.bool)
    for pair in evidence.pairs:
        free[pair.image] &= pair.outside
    absent = (evidence.shown[:, text] == 0).nonzero().flatten().numpy()
    at_border = border(evidence.grid)
    places = {"border": at_border, "background": ~at_border}
    changes: dict[str, list[Tensor]] = {place: [] for place in places}
    rng = np.random.default_rng(0)
    for pair in (pairs[index] for index in chosen):
        drawn = rng.choice(absent, 2 * NUM_PASTED, replace=len(absent) < 2 * NUM_PASTED)
        source, *others = _read(clip, data, evidence, [pair.image, *drawn.tolist()])
        pasted = []
        for place, patches in places.items():
            for receiver, other, index in zip(others[::2], others[1::2], drawn[1::2], strict=True):
                region = patches & pair.outside & free[index]
                if region.any():
                    mask = _pixels(region, evidence).to(source.device)
                    pasted.append(
                        (place, source.where(mask, receiver), other.where(mask, receiver))
                    )
        if not pasted:
            continue
        images = torch.stack([image for _, *both in pasted for image in both])
        features = torch.cat([clip.image_features(batch) for batch in images.split(batch_size)])
        by_pair = features[::2] - features[1::2]  # (pasted, C)
        for place in places:
            own = [index for index, (where, *_) in enumerate(pasted) if where == place]
            if own:
                changes[place].append(by_pair[own].mean(0))
    features = clip.text_features()
    return {
        place: torch.stack(change) if change else features.new_empty(0, features.shape[-1])
        for place, change in changes.items()
    }


def _read(
    clip: ZeroShotClassifier, data: ImageDataset, evidence: Evidence, images: Sequence[int]
) -> Tensor:
    """Return images of the evidence as the model sees them, (n, 3, H, W)."""
    indices = [data.names.index(evidence.names[image]) for image in images]
    return clip.preprocess([data[index].image for index in indices], evidence.size)


def _pixels(patches: Tensor, evidence: Evidence) -> Tensor:
    """Return the pixels (H, W) of patches (h*w)."""
    mask = patches.unflatten(0, evidence.grid)
    for axis, (covered, side) in enumerate(zip(evidence.covered, evidence.grid, strict=True)):
        mask = mask.repeat_interleave(covered // side, axis)
    bottom, right = (s - c for s, c in zip(evidence.size, evidence.covered, strict=True))
    return F.pad(mask, (0, right, 0, bottom))


def _rise(values: Tensor) -> Rise:
    """Return the mean of values (n,), with its standard error if there are two or more."""
    if len(values) < 2:
        return Rise(float(values.mean()), math.nan)
    return Rise(float(values.mean()), float(values.std() / len(values) ** 0.5))
