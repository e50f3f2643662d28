"""Does a class lean on the background?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from captum_clip_surgery._utils.text import quantity
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.collection._cues import locate_cue
from captum_clip_surgery.collection._evidence import Evidence, Pair, collect
from captum_clip_surgery.collection._judging import (
    MIN_CLASSES,
    check_rate,
    critical_value,
    robust_z,
)
from captum_clip_surgery.collection._result import (
    Audit,
    ClassAudit,
    HeadLift,
    Recognition,
    removed,
)
from captum_clip_surgery.datasets import ImageDataset

#: Share of a class's excess that the listed heads carry at least.
CARRIED = 0.5
#: Number of images that are listed for each class.
NUM_STRONGEST = 5


def audit(
    clip: ZeroShotClassifier,
    data: ImageDataset,
    indices: Sequence[int] | None = None,
    size: int | tuple[int, int] | None = None,
    min_images: int = 5,
    false_alarms: float = 0.01,
    cues: Sequence[str] = (),
    batch_size: int = 4,
    progress: bool = False,
) -> Audit:
    """Find the classes of a data set for which a model takes evidence from outside their objects.

    The evidence for a class is its cosine minus the mean over all classes, an exact sum over heads
    and patches (`decompose`). A class's **lift** is, in the median of its images, the evidence from
    the patches outside its object, beyond what as many background patches give in images that do
    not show the class. Most classes have some, because patches around an object read from it. A
    class is named if its lift exceeds the median of the classes by more robust standard deviations
    than the largest of as many normally distributed values does with the probability
    `false_alarms`. So a class is named for leaning more than the others in at least half of its
    images: what all classes have in common is not found.

    Objects are where the data set has labels or masks. For images with tags they are where the
    map of `LayerCLIPSurgery` reaches half of its range; where all tags are unknown, the most likely
    class counts as shown. One decomposition per image takes one forward pass; surgery's map takes a
    second one.

    The cue of a named class is where pasting raises the evidence for it in images that do not show
    it: the border of its images, or the rest of their background. This takes up to 512 forward
    passes for each named class.

    Args:
        clip: A classifier, whose texts are replaced by the first names of the data set's classes.
        data: The data set. Images that cannot be read are left out and listed.
        indices: Indices of the images to read; None means all.
        size: Side or (height, width) in pixels that the model sees; None means the native
            size.
        min_images: Smallest number of images of a class; others are left out.
        false_alarms: Probability, from 0.001 to 0.5, that any class is named if the lifts are
            normally distributed.
        cues: Texts that may describe what is outside the objects; those that fit the cue of a named
            class are reported with it.
        batch_size: Number of images per decomposition. A batch takes images * classes * blocks *
            heads * patches * 16 bytes, and the whole collection images * classes * blocks * heads *
            8 bytes.
        progress: Whether to show a progress bar.

    Returns:
        The audit; `write` writes it to a folder.

    Raises:
        TypeError: If the image tower's embedding is not a sum of parts, or a target is neither
            labels nor masks nor tags.
        ValueError: If there are fewer than two classes, no image can be read, or an option is out
            of range.

    Example::

        >>> from captum_clip_surgery.demo import SceneCollection
        >>> data = SceneCollection(["dog", "pizza", "moon", "truck"], per_noun=2, size=64)
        >>> result = audit(ZeroShotClassifier.demo(["dog"]), data, size=64, min_images=2)
        >>> result.images, result.leaning
        (8, ())
    """
    check_rate(false_alarms)
    if min_images < 1 or batch_size < 1:
        raise ValueError(
            f"min_images and batch_size must be at least 1, got {min_images} and {batch_size}"
        )
    names = [data.classes.first[label] for label in data.foreground]
    if len(names) < 2:
        raise ValueError(
            f"an audit needs at least 2 classes to compare, got {len(names)} from {data.name}"
        )
    chosen = list(range(len(data)) if indices is None else indices)
    cue_texts = clip.with_texts(cues) if cues else None
    clip = clip.with_texts(names)
    evidence = collect(clip, data, chosen, size, batch_size, progress)
    source = "surgery" if evidence.tagged else "masks"
    result = judge(evidence, data, min_images, false_alarms, source)
    classes = tuple(
        replace(entry, cue=locate_cue(clip, data, evidence, entry.name, cue_texts, batch_size))
        if entry.leans
        else entry
        for entry in result.classes
    )
    return replace(result, classes=classes)


def judge(
    evidence: Evidence, data: ImageDataset, min_images: int, false_alarms: float, source: str
) -> Audit:
    """Compare the classes by the evidence that was collected.

    Args:
        evidence: The evidence.
        data: The data set.
        min_images: Smallest number of images of a class.
        false_alarms: Probability that any class is named if the lifts are normally distributed.
        source: How objects were located.
    """
    left_out = _left_out(evidence, min_images)
    texts = [i for i, name in enumerate(evidence.texts) if name not in left_out]
    means = torch.zeros_like(evidence.heads[0], dtype=torch.float64)
    for text in range(len(evidence.texts)):
        absent = evidence.shown[:, text] == 0
        if absent.any():
            means[text] = evidence.heads[absent, text].double().mean(0)
    tables = [_Lifts.of(evidence, text) for text in texts]
    enough = len(tables) >= MIN_CLASSES
    critical = critical_value(len(tables), false_alarms) if enough else None
    lifts = torch.stack([table.heads.mean(0) for table in tables]) if tables else means[:0]
    typical = np.array([table.typical for table in tables])
    scores = robust_z(typical).tolist() if tables else list[float]()
    classes = [
        _class_audit(
            evidence,
            table,
            score,
            critical is not None and score > critical,
            _carriers(lifts, place),
            means[table.text],
        )
        for place, (table, score) in enumerate(zip(tables, scores, strict=True))
    ]
    return Audit(
        data=data,
        texts=evidence.texts,
        images=len(evidence.names),
        source=source,
        classes=tuple(sorted(classes, key=lambda entry: -entry.lift)),
        left_out=left_out,
        unreadable=evidence.unreadable,
        false_alarms=false_alarms,
        critical=critical,
        means=means,
        size=evidence.size,
        covered=evidence.covered,
    )


def _left_out(evidence: Evidence, min_images: int) -> dict[str, str]:
    """Return the reason by name of each class that cannot be audited."""
    left_out = {}
    for text, name in enumerate(evidence.texts):
        shown = int((evidence.shown[:, text] == 1).sum())
        if shown < min_images:
            left_out[name] = f"shown by {quantity(shown, 'image')}, fewer than {min_images}"
        elif not len(_without(evidence, text)):
            left_out[name] = "no image without it has patches outside all objects"
    return left_out


@dataclass(frozen=True)
class _Lifts:
    """The lifts of one class.

    Attributes:
        text: Index of the class.
        pairs: Its images.
        heads: Lifts (images, blocks, heads) of heads.
        patches: Evidence (images, h*w) of patches, beyond the mean background patch of images
            that do not show the class.
    """

    text: int
    pairs: list[Pair]
    heads: Tensor
    patches: Tensor

    @classmethod
    def of(cls, evidence: Evidence, text: int) -> _Lifts:
        """Compute the lifts of a class."""
        pairs = [pair for pair in evidence.pairs if pair.text == text]
        usual = _without(evidence, text).double().mean(0)  # (blocks, heads)
        heads = [pair.heads - usual * pair.outside.sum() for pair in pairs]
        patches = [pair.patches - usual.sum() for pair in pairs]
        return cls(text, pairs, torch.stack(heads), torch.stack(patches))

    @property
    def by_image(self) -> Tensor:
        """Lifts of the images, (images,)."""
        return self.heads.sum((1, 2))

    @property
    def typical(self) -> float:
        """Lift of the median image; the mean could be due to a single one."""
        return float(self.by_image.quantile(0.5))


def _without(evidence: Evidence, text: int) -> Tensor:
    """Return a class's evidence (n, blocks, heads) in the background of images without it."""
    background = evidence.background[evidence.shown[:, text] == 0, text]
    return background[~background.isnan().any(-1).any(-1)]


def _carriers(lifts: Tensor, place: int) -> tuple[HeadLift, ...]:
    """Return the fewest heads that carry half of a class's excess over the other classes.

    Args:
        lifts: Mean lifts (K, blocks, heads) over the images of each audited class.
        place: Index of the class among them.
    """
    if len(lifts) < 2:
        return ()
    others = torch.cat([lifts[:place], lifts[place + 1 :]])
    excess = lifts[place] - others.quantile(0.5, dim=0)  # (blocks, heads)
    total = float(excess.sum())
    if total <= 0:
        return ()
    order = excess.flatten().argsort(descending=True)
    carried = excess.flatten()[order].cumsum(0) / total
    count = int((carried < CARRIED).sum()) + 1
    heads = []
    for index in order[:count].tolist():
        block, head = divmod(index, lifts.shape[2])
        lift, more = float(lifts[place, block, head]), float(excess[block, head])
        heads.append(HeadLift(block, head, lift, more))
    return tuple(heads)


def _class_audit(
    evidence: Evidence,
    table: _Lifts,
    z: float,
    leans: bool,
    heads: tuple[HeadLift, ...],
    means: Tensor,
) -> ClassAudit:
    inside = torch.stack([pair.inside for pair in table.pairs])  # (images, h*w)
    outside = torch.stack([pair.outside for pair in table.pairs])
    positive = table.patches.clamp(min=0)
    out, within = float((positive * outside).sum()), float((positive * inside).sum())
    by_image = table.by_image
    order = by_image.argsort(descending=True)[:NUM_STRONGEST].tolist()
    before = evidence.scores
    after = before.clone()
    after[:, table.text] -= removed(evidence.heads[:, table.text].double(), means, heads)
    return ClassAudit(
        name=evidence.texts[table.text],
        images=len(table.pairs),
        lift=table.typical,
        share=out / (out + within) if out + within else math.nan,
        area=float(outside.sum()) / float(outside.sum() + inside.sum()),
        z=z,
        leans=leans,
        heads=heads,
        before=_recognition(before, evidence.shown, table.text),
        after=_recognition(after, evidence.shown, table.text),
        strongest=tuple(
            (evidence.names[table.pairs[index].image], float(by_image[index])) for index in order
        ),
        maps=(table.patches * outside)[order].unflatten(1, evidence.grid),
    )


def _recognition(scores: Tensor, shown: Tensor, text: int) -> Recognition:
    """Return how a class is recognized by scores (N, K)."""
    present, absent = shown[:, text] == 1, shown[:, text] == 0
    others = scores.masked_fill(shown != 0, -math.inf)
    others[:, text] = -math.inf
    right = scores[present, text] > others[present].amax(1)
    called = scores[absent].argmax(1) == text
    return Recognition(float(right.double().mean()), float(called.double().mean()))
