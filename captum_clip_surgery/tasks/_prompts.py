"""Prompts for the Segment Anything Model (SAM) from maps: points, boxes and masks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_clip_surgery._utils.tensors import check_real
from captum_clip_surgery.attr._coverage import covered_size
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.tasks._images import Size
from captum_clip_surgery.tasks._regions import components, nearest, peaks, unit_range

#: Side of SAM's low-resolution masks.
MASK_SIDE = 256
#: Logit of a mask's highest cell; the lowest cell has its negative.
LOGIT = 10.0
NO_POINTS = "has no points: all cells of its map are alike; leave it out, or lower down_sample"

#: Height and width in pixels, which need not be whole.
Sides = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt for one object, in pixels of the image.

    Attributes:
        text: The text of the object.
        points: Coordinates x, y (P, 2), float32.
        labels: 1 for points on the object, 0 for points off it; (P,), int64.
        box: First and last columns and rows x0, y0, x1, y1, float32; None if not requested or
            empty.
        mask: Logits (256, 256) from -10 to 10, float32, positive in the upper half of the map's
            range, padded as SAM pads images; None if not requested or empty.
        score: The map's highest value on the object, raw.
    """

    text: str
    points: np.ndarray
    labels: np.ndarray
    box: np.ndarray | None
    mask: np.ndarray | None
    score: float

    def foreground(self, size: Size) -> np.ndarray:
        """Return where the mask is positive, without the padding, (h, w) of bool.

        Args:
            size: (height, width) of the image.
        """
        rows, columns = mask_sides(size, size)
        if self.mask is None:
            return np.zeros((rows, columns), dtype=bool)
        return self.mask[:rows, :columns] > 0

    def for_predictor(self) -> dict[str, np.ndarray]:
        """Return the keyword arguments of `segment_anything.SamPredictor.predict`.

        Returns:
            Those of `point_coords` (P, 2), `point_labels` (P,), `box` (4,) and `mask_input`
            (1, 256, 256) that the prompt has.

        Raises:
            ValueError: If the prompt is empty.
        """
        arguments = {}
        if len(self.points):
            arguments = {"point_coords": self.points, "point_labels": self.labels}
        if self.box is not None:
            arguments["box"] = self.box
        if self.mask is not None:
            arguments["mask_input"] = self.mask[None]
        if not arguments:
            raise ValueError(f"the prompt for {self.text!r} {NO_POINTS}")
        return arguments

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes with arrays as lists, for `json.dumps`."""
        fields = vars(self).items()
        return {name: v.tolist() if isinstance(v, np.ndarray) else v for name, v in fields}


@dataclass(frozen=True)
class Evidence:
    """Settings from which prompts are made.

    Attributes:
        positive: Pixels x, y (P, 2) on the object.
        negative: Pixels x, y (Q, 2) off it.
        inside: Mask (h, w) of the map's cells that reach the threshold.
        scaled: The map (h, w) in 0..1.
        score: The map's highest value, raw.
    """

    positive: Tensor
    negative: Tensor
    inside: Tensor
    scaled: Tensor
    score: float


@dataclass(frozen=True)
class PromptMaker:
    """Maker of the prompts of one image from its maps.

    Args:
        size: (height, width) of the image.
        covered: Height and width of its part that the maps cover.
        threshold: Threshold in 0..1 of normalized maps.
        down_sample: Divisor of the map's sides for points by the published rule.
        boxes: Whether prompts have boxes.
        masks: Whether prompts have masks.
    """

    size: tuple[int, int]
    covered: Sides
    threshold: float = 0.8
    down_sample: int = 2
    boxes: bool = False
    masks: bool = False

    def evidence(self, values: Tensor, instances: str) -> list[Evidence]:
        """Return the evidence of one object or of every instance, the strongest first.

        Args:
            values: A map (h, w), checked.
            instances: One of `INSTANCES`.
        """
        positive, negative = published_points(
            values, self.covered, self.threshold, self.down_sample
        )
        scaled = unit_range(values)
        inside = scaled >= self.threshold
        if instances == "one":
            return [Evidence(positive, negative, inside, scaled, values.max().item())]
        pairs = [(region, region) for region in components(inside)]
        if instances == "peaks":
            pairs = [pair for region, _ in pairs for pair in peaks(scaled, region)]
        (x, y), (rows, columns) = (negative + 0.5).T, values.shape
        cells = (y * rows / self.covered[0]).long(), (x * columns / self.covered[1]).long()
        negative = negative[~inside[cells]]
        evidence = []
        areas = nearest([region for _, region in pairs])
        for (seeds, region), area in zip(pairs, areas, strict=True):
            positive = _centers(seeds.flatten().nonzero()[:, 0], values.shape, self.covered)
            score = values[seeds].max().item()
            evidence.append(Evidence(positive, negative, region, scaled.where(area, 0.0), score))
        return sorted(evidence, key=lambda one: -one.score)

    def prompts(
        self, texts: Sequence[str], maps: Tensor, instances: str = "one", union: bool = False
    ) -> list[Prompt]:
        """Return the prompts of maps (K, h, w) of an image for K texts; see `tasks.prompts`."""
        evidence = [
            (text, one)
            for text, attribution in zip(texts, maps, strict=True)
            for one in self.evidence(check_map(attribution), instances)
        ]
        if union:
            evidence = [("+".join(texts), unite([one for _, one in evidence]))]
        return [self.prompt(text, one) for text, one in evidence]

    def prompt(self, text: str, evidence: Evidence) -> Prompt:
        """Return the prompt for a text."""
        points = torch.cat([evidence.positive, evidence.negative]).numpy().astype(np.float32)
        labels = np.repeat([1, 0], [len(evidence.positive), len(evidence.negative)])
        has_inside = bool(evidence.inside.any())
        box = make_box(evidence.inside, self.covered) if self.boxes and has_inside else None
        mask = (
            _mask(evidence.scaled, self.size, self.covered) if self.masks and has_inside else None
        )
        return Prompt(text, points, labels, box, mask, evidence.score)


def unite(evidence: Sequence[Evidence]) -> Evidence:
    """Join the evidence of several texts; a point positive for one of them is never negative."""
    positive = torch.cat([e.positive for e in evidence]).unique(dim=0)
    negative = torch.cat([e.negative for e in evidence]).unique(dim=0)
    both = (negative[:, None] == positive).all(-1).any(-1)
    return Evidence(
        positive,
        negative[~both],
        torch.stack([e.inside for e in evidence]).any(0),
        torch.stack([e.scaled for e in evidence]).amax(0),
        max(e.score for e in evidence),
    )


def published_points(
    values: Tensor, covered: Sides, threshold: float, down_sample: int
) -> list[Tensor]:
    """Return positive and negative points, (K, 2) each, by the published rule."""
    sides = [max(1, side // down_sample) for side in values.shape]
    cells = unit_range(F.interpolate(values[None, None], sides, mode="bilinear")[0, 0])
    order = cells.flatten().argsort(stable=True)
    count = min(int((cells >= threshold).sum()), len(order) // 2)
    chosen = order[len(order) - count :], order[:count]
    return [_centers(indices, cells.shape, covered) for indices in chosen]


def covered_part(clip: ZeroShotClassifier, maps: Tensor, shown: Size, size: Size) -> Sides:
    """Return the height and width in pixels of an image that its maps cover.

    Args:
        clip: The classifier.
        maps: The maps (..., h, w).
        shown: (height, width) at which the model saw the image.
        size: (height, width) of the image.
    """
    mapped = covered_size(clip, maps, shown)
    return size[0] * mapped[0] / shown[0], size[1] * mapped[1] / shown[1]


def _centers(indices: Tensor, grid: Sequence[int], covered: Sides) -> Tensor:
    """Return the pixels x, y (P, 2) at the center of cells with these indices in reading order."""
    (rows, columns), (height, width) = grid, covered
    x = (2 * (indices % columns) + 1).double() * width / (2 * columns)
    y = (2 * (indices // columns) + 1).double() * height / (2 * rows)
    return torch.stack([x, y], -1).floor().long()


def make_box(inside: Tensor, covered: Sides) -> np.ndarray:
    """Return the box x0, y0, x1, y1 around the True cells of a mask (h, w)."""
    first, last = [], []
    for axis in (1, 0):
        touched = inside.any(1 - axis).nonzero()
        side, cells = covered[axis], inside.shape[axis]
        # Divided last, or a whole number may come out a little larger. SAM takes the ends of a box
        # as pixels, not as the lines between them.
        first.append(math.floor(touched.min().item() * side / cells))
        last.append(math.ceil((touched.max().item() + 1) * side / cells) - 1)
    return np.array(first + last, dtype=np.float32)


def mask_sides(covered: Sides, size: Sides) -> tuple[int, int]:
    """Return the rows and columns of a mask that a part of an image fills."""
    rows, columns = (max(1, int(MASK_SIDE * side / max(size) + 0.5)) for side in covered)
    return rows, columns


def _mask(scaled: Tensor, size: Sides, covered: Sides) -> np.ndarray:
    rows, columns = mask_sides(covered, size)
    # A thin strip has fewer rows of the mask than of the map, and none may be skipped.
    fewer = min(rows, scaled.shape[0]), min(columns, scaled.shape[1])
    reduced = F.adaptive_max_pool2d(scaled[None, None], fewer)
    mask = F.interpolate(reduced, (rows, columns), mode="bilinear")[0, 0]
    # SAM enlarges an image until its longer side fits, and pads it below or to the right.
    mask = F.pad(mask, (0, MASK_SIDE - columns, 0, MASK_SIDE - rows))
    return (LOGIT * (2 * mask - 1)).float().numpy()


def check_map(attribution: Tensor) -> Tensor:
    """Check a map (h, w) and return it in float64 on the CPU.

    Raises:
        TypeError: If it is not a tensor.
        ValueError: If it has another shape, or contains NaN or infinity.
    """
    if not isinstance(attribution, Tensor):
        raise TypeError(f"attribution must be a tensor (h, w), got {type(attribution).__name__}")
    check_real(attribution, "attribution")
    if attribution.ndim != 2 or not attribution.numel():
        raise ValueError(
            f"attribution must be one map (h, w), such as "
            "LayerCLIPSurgery(clip).attribute(images, target)[0, 0], got shape "
            f"{tuple(attribution.shape)}"
        )
    if not torch.isfinite(attribution).all():
        raise ValueError("attribution contains NaN or infinity")
    return attribution.detach().cpu().double()


def check_rule(threshold: float, down_sample: int) -> None:
    """Check the options of the published rule.

    Raises:
        ValueError: If one is out of range.
    """
    if not isinstance(threshold, Real) or not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be from 0 to 1, of the normalized map, got {threshold!r}")
    if isinstance(down_sample, bool) or not isinstance(down_sample, int) or down_sample < 1:
        raise ValueError(f"down_sample must be an int of at least 1, got {down_sample!r}")
