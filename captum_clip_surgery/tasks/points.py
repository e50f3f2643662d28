"""Points, boxes and masks that prompt the Segment Anything Model (SAM) with what CLIP sees.

Sources: Li, Wang, Duan, Zhang, Li, "A Closer Look at the Explainability of Contrastive
Language-Image Pre-training" (arXiv 2304.05653), on interactive segmentation; Kirillov et al.,
"Segment Anything" (ICCV 2023).
"""

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

from captum_clip_surgery.attr.clip_surgery import LayerCLIPSurgery
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.models import validation
from captum_clip_surgery.tasks.pictures import Images, batches, seen_part
from captum_clip_surgery.tasks.regions import components, nearest, peaks, unit_range

INSTANCES = ("one", "components", "peaks")
MASK_SIDE = 256  # of SAM's masks at low resolution
LOGIT = 10.0  # of a mask's highest cell; the lowest has its negative
Sides = tuple[float, float]  # height and width in pixels
PADDING = -10  # the label by which transformers' SAM knows points that only fill up
NO_POINTS = "has no points: all cells of its map are alike. Leave it out, or try down_sample=1"


@dataclass(frozen=True, eq=False)
class Prompt:
    """What asks SAM for one object, in pixels of the image.

    `points` (P, 2) float32 are x, y and `labels` (P,) int64 say 1 on the object, 0 off it; `box`
    (4,) float32 is x0, y0, x1, y1, its first and last columns and rows. `mask` (256, 256) float32
    are logits from -10 to 10, positive in the upper half of the map's range, padded as SAM pads
    images. `score` is the map's highest value there, raw.
    """

    text: str
    points: np.ndarray
    labels: np.ndarray
    box: np.ndarray | None
    mask: np.ndarray | None
    score: float

    def for_predictor(self) -> dict[str, np.ndarray]:
        """Keyword arguments of `segment_anything.SamPredictor.predict`: those that there are.

        Returns:
            `point_coords` (P, 2), `point_labels` (P,), `box` (4,), `mask_input` (1, 256, 256).

        Raises:
            ValueError: nothing to prompt with.
        """
        given = {}
        if len(self.points):
            given = {"point_coords": self.points, "point_labels": self.labels}
        if self.box is not None:
            given["box"] = self.box
        if self.mask is not None:
            given["mask_input"] = self.mask[None]
        if not given:
            raise ValueError(f"the prompt for {self.text!r} {NO_POINTS}")
        return given

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON takes them, arrays as lists."""
        fields = vars(self).items()
        return {name: v.tolist() if isinstance(v, np.ndarray) else v for name, v in fields}


def points_from_map(
    attribution: Tensor, size: tuple[int, int], threshold: float = 0.8, down_sample: int = 2
) -> tuple[Tensor, Tensor]:
    """Points on and off what a map shows, by the published rule.

    The map is reduced bilinearly and min-max normalised. The K highest of its cells are positive
    points and the K lowest negative; K counts the cells that reach the threshold, up to half of
    all. Of equal cells the later in reading order counts as higher. A map that is the same
    everywhere, or one cell once it is reduced, has no points.

    Args:
        attribution: (h, w), raw and signed.
        size: (height, width) of the image in pixels.
        threshold: in 0..1, of the normalised map.
        down_sample: divides the sides of the map, rounding down, to at least 1.

    Returns:
        Points (2K, 2) int64: x, y of the pixels in the middle of the cells, positive ones first,
        both kinds from low to high. Labels (2K,) uint8: 1 positive, 0 negative. Both on the CPU.

    Raises:
        TypeError: no tensor.
        ValueError: another shape, NaN or infinity, a size, threshold or down_sample out of range.

    Source: Li et al. (arXiv 2304.05653), and its published code for what the paper leaves open.

    Example::

        >>> attribution = torch.tensor([[0.1, 0.2, 0.9], [0.3, 0.4, 0.5]])
        >>> points, labels = points_from_map(attribution, size=(40, 60), down_sample=1)
        >>> points.tolist(), labels.tolist()
        ([[50, 10], [10, 10]], [1, 0])
    """
    _check_rule(threshold, down_sample)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size {size!r} is not the image's (height, width) in pixels")
    positive, negative = _published(_checked(attribution), size, threshold, down_sample)
    labels = torch.tensor([1, 0], dtype=torch.uint8).repeat_interleave(len(positive))
    return torch.cat([positive, negative]), labels


def prompts(
    clip: ZeroShotClassifier,
    images: Images,
    targets: Sequence[int] | None = None,
    *,
    union: bool = False,
    instances: str = "one",
    boxes: bool = False,
    masks: bool = False,
    threshold: float = 0.8,
    down_sample: int = 2,
    num_blocks: int | None = None,
    feature_surgery: str | None = "auto",
    size: int | tuple[int, int] | None = None,
    batch_size: int = 8,
) -> list[list[Prompt]]:
    """Prompts for SAM from the maps of CLIP Surgery.

    Args:
        clip: the classifier.
        images: pictures, or a batch (N, 3, H, W) that was preprocessed; see `Images`. Points and
            boxes are in pixels of each picture, or of the batch.
        targets: indices of the texts; None is all.
        union: one prompt for all texts, "a+b"; what is positive for one is no negative.
        instances: "one" prompt for each text by the published rule (see `points_from_map`), or one
            for each place where the map reaches the threshold, the strongest first: "components"
            of cells that touch by a side or corner, or "peaks", which share out a component among
            its local maxima by nearness. Positive points are then on all cells of the component
            or peak; the negative ones are shared, but for those on an instance.
        boxes: also the box around the cells that reach the threshold.
        masks: also the map as a mask; of an instance, where it is the nearest one.
        threshold: in 0..1, of the normalised map.
        down_sample: for points by the published rule; all else comes from the map itself.
        num_blocks, feature_surgery: see `LayerCLIPSurgery`.
        size: of pictures, side or (height, width) that the model sees; None is native.
        batch_size: pictures or rows in one pass.

    Returns:
        For each image its prompts, in the order of the texts. Where a map is the same everywhere,
        "one" prompt has no points, and there are no instances.

    Raises:
        TypeError, ValueError, IndexError, FileNotFoundError: see `LayerCLIPSurgery`,
            `points_from_map` and `clip.preprocess`; unknown instances, or instances of a union.

    Source: points, Li et al. (arXiv 2304.05653); kinds of prompt, Kirillov et al. (ICCV 2023). How
    instances, boxes and masks are found is this project's.

    Example::

        >>> clip = ZeroShotClassifier.demo(["dog", "pizza"])
        >>> found = prompts(clip, torch.rand(1, 3, 128, 160), boxes=True)
        >>> [prompt.text for prompt in found[0]], sorted(found[0][0].for_predictor())
        (['dog', 'pizza'], ['box', 'point_coords', 'point_labels'])
    """
    _check_rule(threshold, down_sample)
    if instances not in INSTANCES:
        raise ValueError(f"instances {instances!r} is none of {', '.join(map(repr, INSTANCES))}")
    if union and instances != "one":
        raise ValueError(f'union joins texts and instances {instances!r} parts them; choose "one"')
    method = LayerCLIPSurgery(clip, num_blocks=num_blocks, feature_surgery=feature_surgery)
    wanted = range(len(clip.texts)) if targets is None else targets
    chosen = validation.resolve_indices(wanted, len(clip.texts), clip.device).tolist()
    texts = [clip.texts[index] for index in chosen]
    found = []
    for batch, sizes in batches(clip, images, size, batch_size):
        with torch.no_grad():
            maps = method.attribute_all(batch, chosen)
        for of_image, own in zip(maps, sizes, strict=True):
            maker = _Maker(
                own, seen_part(clip, batch.shape[-2:], own), threshold, down_sample, boxes, masks
            )
            pairs = zip(texts, of_image, strict=True)
            evidence = [(t, part) for t, m in pairs for part in maker.parts(_checked(m), instances)]
            if union:
                evidence = [("+".join(texts), _united([part for _, part in evidence]))]
            found.append([maker.prompt(text, part) for text, part in evidence])
    return found


def sam_inputs(prompts: Sequence[Sequence[Prompt]]) -> dict[str, list[Any]]:
    """Keyword arguments, beside `images`, of the `SamProcessor` of Hugging Face's transformers.

    Fewer points than the most are filled up by points of label -10, as transformers does; it embeds
    them as zeros, which sways masks a little. Masks are no input of the processor: the model takes
    one for each image as `input_masks` (images, 1, 256, 256).

    Args:
        prompts: for each image its prompts, the same number for all.

    Returns:
        `input_points` [image][prompt][point][x, y], `input_labels` [image][prompt][point] and,
        where every prompt has a box, `input_boxes` [image][prompt][x0, y0, x1, y1].

    Raises:
        TypeError: the prompts of one image, not in a list.
        ValueError: no prompts, not the same number for all images, or one without points.

    Source: Kirillov et al., "Segment Anything" (ICCV 2023), as transformers carries it.

    Example::

        >>> clip = ZeroShotClassifier.demo(["dog", "pizza"])
        >>> inputs = sam_inputs(prompts(clip, torch.rand(1, 3, 128, 128)))
        >>> {name: (len(rows), len(rows[0])) for name, rows in inputs.items()}
        {'input_points': (1, 2), 'input_labels': (1, 2)}
    """
    if any(isinstance(row, Prompt) for row in prompts):
        raise TypeError("prompts are of one image, expected a list for each: sam_inputs([prompts])")
    counts = [len(row) for row in prompts]
    if len(set(counts)) != 1 or not counts[0]:
        raise ValueError(
            f"images have {counts} prompts, expected the same number for all, at least one; pass "
            "those that have any one at a time: sam_inputs([prompts[i]])"
        )
    flat = [prompt for row in prompts for prompt in row]
    for prompt in flat:
        if not len(prompt.points):
            raise ValueError(f"the prompt for {prompt.text!r} {NO_POINTS}")
    most = max(len(prompt.points) for prompt in flat)
    inputs: dict[str, list[Any]] = {
        "input_points": [[_filled(p.points, most, [0.0, 0.0]) for p in row] for row in prompts],
        "input_labels": [[_filled(p.labels, most, PADDING) for p in row] for row in prompts],
    }
    boxes = [[p.box.tolist() for p in row if p.box is not None] for row in prompts]
    return inputs | ({"input_boxes": boxes} if sum(map(len, boxes)) == len(flat) else {})


def _filled(values: np.ndarray, length: int, filler: object) -> list[Any]:
    return [*values.tolist(), *[filler] * (length - len(values))]


@dataclass(frozen=True)
class _Evidence:
    """What a prompt is made of: pixels x, y, and which cells of the map reach the threshold."""

    positive: Tensor  # (P, 2)
    negative: Tensor  # (Q, 2)
    inside: Tensor  # (h, w) of bool
    scaled: Tensor  # (h, w), see `regions.unit_range`
    score: float


@dataclass(frozen=True)
class _Maker:
    """Prompts of one image of `size`, of which the grid of its maps covers `seen`."""

    size: tuple[int, int]
    seen: Sides
    threshold: float
    down_sample: int
    boxes: bool
    masks: bool

    def parts(self, values: Tensor, instances: str) -> list[_Evidence]:
        positive, negative = _published(values, self.seen, self.threshold, self.down_sample)
        scaled = unit_range(values)
        inside = scaled >= self.threshold
        if instances == "one":
            return [_Evidence(positive, negative, inside, scaled, values.max().item())]
        found = [(part, part) for part in components(inside)]
        if instances == "peaks":
            found = [pair for part, _ in found for pair in peaks(scaled, part)]
        (x, y), (rows, columns) = (negative + 0.5).T, values.shape
        places = (y * rows / self.seen[0]).long(), (x * columns / self.seen[1]).long()
        negative = negative[~inside[places]]
        parts = []
        for (seeds, region), own in zip(found, nearest([r for _, r in found]), strict=True):
            positive = _middles(seeds.flatten().nonzero()[:, 0], values.shape, self.seen)
            score = values[seeds].max().item()
            parts.append(_Evidence(positive, negative, region, scaled.where(own, 0.0), score))
        return sorted(parts, key=lambda part: -part.score)

    def prompt(self, text: str, evidence: _Evidence) -> Prompt:
        points = torch.cat([evidence.positive, evidence.negative]).numpy().astype(np.float32)
        labels = np.repeat([1, 0], [len(evidence.positive), len(evidence.negative)])
        shown = bool(evidence.inside.any())
        box = _box(evidence.inside, self.seen) if self.boxes and shown else None
        mask = _mask(evidence.scaled, self.size, self.seen) if self.masks and shown else None
        return Prompt(text, points, labels, box, mask, evidence.score)


def _united(evidence: Sequence[_Evidence]) -> _Evidence:
    positive = torch.cat([e.positive for e in evidence]).unique(dim=0)
    negative = torch.cat([e.negative for e in evidence]).unique(dim=0)
    taken = (negative[:, None] == positive).all(-1).any(-1)
    return _Evidence(
        positive,
        negative[~taken],
        torch.stack([e.inside for e in evidence]).any(0),
        torch.stack([e.scaled for e in evidence]).amax(0),
        max(e.score for e in evidence),
    )


def _published(values: Tensor, seen: Sides, threshold: float, down_sample: int) -> list[Tensor]:
    """Positive and negative points, (K, 2) each, by the published rule."""
    sides = [max(1, side // down_sample) for side in values.shape]
    cells = unit_range(F.interpolate(values[None, None], sides, mode="bilinear")[0, 0])
    order = cells.flatten().argsort(stable=True)
    count = min(int((cells >= threshold).sum()), len(order) // 2)
    chosen = order[len(order) - count :], order[:count]
    return [_middles(places, cells.shape, seen) for places in chosen]


def _middles(cells: Tensor, grid: Sequence[int], seen: Sides) -> Tensor:
    """The pixels (P, 2) x, y in the middle of cells, given by their place in reading order."""
    (rows, columns), (height, width) = grid, seen
    x = (2 * (cells % columns) + 1).double() * width / (2 * columns)
    y = (2 * (cells // columns) + 1).double() * height / (2 * rows)
    return torch.stack([x, y], -1).floor().long()


def _box(inside: Tensor, seen: Sides) -> np.ndarray:
    first, last = [], []
    for axis in (1, 0):
        touched = inside.any(1 - axis).nonzero()
        side, cells = seen[axis], inside.shape[axis]
        # Divided last, or a whole number may come out a little more. SAM takes the ends of a box as
        # pixels, not as the lines between them.
        first.append(math.floor(touched.min().item() * side / cells))
        last.append(math.ceil((touched.max().item() + 1) * side / cells) - 1)
    return np.array(first + last, dtype=np.float32)


def _mask(scaled: Tensor, size: Sides, seen: Sides) -> np.ndarray:
    rows, columns = (max(1, int(MASK_SIDE * side / max(size) + 0.5)) for side in seen)
    mask = F.interpolate(scaled[None, None], (rows, columns), mode="bilinear")[0, 0]
    # SAM enlarges an image until its longer side fits, and pads it below or to the right.
    mask = F.pad(mask, (0, MASK_SIDE - columns, 0, MASK_SIDE - rows))
    return (LOGIT * (2 * mask - 1)).float().numpy()


def _checked(attribution: Tensor) -> Tensor:
    """A map in float64 on the CPU."""
    if not isinstance(attribution, Tensor):
        raise TypeError(f"attribution is a {type(attribution).__name__}, expected a tensor (h, w)")
    if attribution.ndim != 2 or not attribution.numel():
        raise ValueError(
            f"attribution has shape {tuple(attribution.shape)}, expected (h, w): one map, such as "
            "LayerCLIPSurgery(clip).attribute(images, target)[0, 0]"
        )
    if not torch.isfinite(attribution).all():
        raise ValueError("attribution holds NaN or infinity")
    return attribution.detach().cpu().double()


def _check_rule(threshold: float, down_sample: int) -> None:
    if not isinstance(threshold, Real) or not 0 <= threshold <= 1:
        raise ValueError(f"threshold {threshold!r} must be from 0 to 1, of the normalised map")
    if isinstance(down_sample, bool) or not isinstance(down_sample, int) or down_sample < 1:
        raise ValueError(f"down_sample {down_sample!r} must be an int from 1, which keeps the map")
