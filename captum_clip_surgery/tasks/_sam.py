"""Points, boxes and masks for the Segment Anything Model (SAM)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_clip_surgery.attr import Method, attribute_many
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.models._validation import resolve_indices
from captum_clip_surgery.tasks._images import Images, Size, batches, choose_method
from captum_clip_surgery.tasks._prompts import (
    NO_POINTS,
    Prompt,
    PromptMaker,
    check_map,
    check_rule,
    covered_part,
    published_points,
)

INSTANCES = ("one", "components", "peaks")
#: The label of padding points in transformers' SAM.
PADDING = -10


def points_from_map(
    attribution: Tensor, size: Size, threshold: float = 0.8, down_sample: int = 2
) -> tuple[Tensor, Tensor]:
    """Return points on and off what a map shows, by the published rule.

    The map is reduced bilinearly and min-max normalized. Its K highest cells are positive points
    and its K lowest are negative; K counts the cells that reach the threshold, up to half of all.
    Of equal cells, the later one in reading order counts as higher. A constant map, or one that is
    reduced to one cell, has no points.

    Args:
        attribution: A map (h, w), raw and signed.
        size: (height, width) of the image in pixels.
        threshold: Threshold in 0..1 of the normalized map.
        down_sample: Divisor of the map's sides, rounded down, to at least 1.

    Returns:
        Points x, y (2K, 2), int64, at the centers of cells, positive ones first, both kinds from
        low to high; and labels (2K,), uint8: 1 positive, 0 negative. Both on the CPU.

    Raises:
        TypeError: If `attribution` is not a tensor.
        ValueError: If it has another shape or contains NaN or infinity, or an option is out of
            range.

    References:
        Li, Wang, Duan, Zhang, Li: A closer look at the explainability of Contrastive
        Language-Image Pre-training. Pattern Recognition 162, 2025 (arXiv 2304.05653), and its
        published code for what the paper leaves open.

    Example::

        >>> attribution = torch.tensor([[0.1, 0.2, 0.9], [0.3, 0.4, 0.5]])
        >>> points, labels = points_from_map(attribution, size=(40, 60), down_sample=1)
        >>> points.tolist(), labels.tolist()
        ([[50, 10], [10, 10]], [1, 0])
    """
    check_rule(threshold, down_sample)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size must be the image's (height, width) in pixels, got {size!r}")
    positive, negative = published_points(check_map(attribution), size, threshold, down_sample)
    labels = torch.tensor([1, 0], dtype=torch.uint8, device="cpu").repeat_interleave(len(positive))
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
    size: int | Size | None = None,
    batch_size: int = 8,
    method: Method | None = None,
) -> list[list[Prompt]]:
    """Return prompts for SAM from the maps of images.

    Args:
        clip: The classifier.
        images: Images (PIL images, arrays, paths), or a preprocessed batch (N, 3, H, W). Points and
            boxes are in pixels of each image, or of the batch.
        targets: Indices of the texts; None means all.
        union: Whether to return one prompt for all texts, "a+b". A point that is positive for one
            text is never a negative point.
        instances: "one" prompt per text by the published rule (see `points_from_map`), or one per
            place where the map reaches the threshold, the strongest first: "components" of cells
            that touch by a side or a corner, or "peaks", which divide a component among its local
            maxima by distance. Positive points are then on all cells of the component or peak;
            negative points are shared, except for those on an instance. Needs scipy (extra `sam`).
        boxes: Whether prompts have a box around the cells that reach the threshold.
        masks: Whether prompts have the map as a mask; that of an instance covers the cells to which
            it is the nearest one.
        threshold: Threshold in 0..1 of the normalized map.
        down_sample: Divisor of the map's sides for points by the published rule; boxes, masks and
            instances come from the map itself.
        num_blocks: Number of last blocks that surgery spans, see `LayerCLIPSurgery`.
        feature_surgery: Variant of feature surgery, see `LayerCLIPSurgery`.
        size: Side or (height, width) in pixels that the model sees; None means the native
            size.
        batch_size: Number of images in one pass.
        method: Function that creates another method, such as one of `METHODS`, instead of CLIP
            Surgery with `num_blocks` and `feature_surgery`.

    Returns:
        For each image its prompts, in the order of the texts. If a map is constant, "one" prompt
        has no points, and there are no instances.

    Raises:
        TypeError: If an image or batch is of the wrong type.
        ValueError: If the images do not fit the model or cannot be read, an option is unknown or
            out of range, or instances of a union are requested.
        IndexError: If a target is out of range.
        FileNotFoundError: If a path does not exist.
        ImportError: If instances are requested and scipy is not installed.

    References:
        Points as in Li, Wang, Duan, Zhang, Li: A closer look at the explainability of Contrastive
        Language-Image Pre-training. Pattern Recognition 162, 2025 (arXiv 2304.05653). Instances,
        boxes and masks are this project's; the prompts are those of Kirillov et al.: Segment
        Anything. ICCV 2023.

    Example::

        >>> clip = ZeroShotClassifier.demo(["dog", "pizza"])
        >>> (of_image,) = prompts(clip, torch.rand(1, 3, 128, 160), boxes=True)
        >>> [prompt.text for prompt in of_image], sorted(of_image[0].for_predictor())
        (['dog', 'pizza'], ['box', 'point_coords', 'point_labels'])
    """
    check_rule(threshold, down_sample)
    check_instances(instances, union)
    explainer = choose_method(method, num_blocks, feature_surgery, "auto")(clip)
    indices = range(len(clip.texts)) if targets is None else targets
    chosen = resolve_indices(indices, len(clip.texts), clip.device).tolist()
    texts = [clip.texts[index] for index in chosen]
    results = []
    for batch, sizes in batches(clip, images, size, batch_size):
        with torch.no_grad():
            maps = attribute_many({"": explainer}, batch, chosen)[""]
        shown = (batch.shape[-2], batch.shape[-1])
        for image_maps, full in zip(maps, sizes, strict=True):
            covered = covered_part(clip, maps, shown, full)
            maker = PromptMaker(full, covered, threshold, down_sample, boxes, masks)
            results.append(maker.prompts(texts, image_maps, instances, union))
    return results


def check_instances(instances: str, union: bool) -> None:
    """Raise a ValueError if `instances` is unknown, or does not fit a union."""
    if instances not in INSTANCES:
        raise ValueError(
            f"instances must be one of {', '.join(map(repr, INSTANCES))}, got {instances!r}"
        )
    if union and instances != "one":
        raise ValueError(
            f"union=True joins texts, and instances={instances!r} separates them; leave one of "
            "them out"
        )


def sam_inputs(prompts: Sequence[Sequence[Prompt]]) -> dict[str, list[Any]]:
    """Return the keyword arguments, besides `images`, of transformers' `SamProcessor`.

    Prompts with fewer points than others are padded with points of label -10, as in transformers,
    which embeds them as zeros: they affect masks slightly. The processor takes no masks; the
    model takes one per image as `input_masks` (images, 1, 256, 256).

    Args:
        prompts: For each image its prompts, the same number for all.

    Returns:
        `input_points` [image][prompt][point][x, y], `input_labels` [image][prompt][point] and, if
        every prompt has a box, `input_boxes` [image][prompt][x0, y0, x1, y1].

    Raises:
        TypeError: If the prompts of one image are not in a list.
        ValueError: If there are no prompts, images have different numbers of them, or a prompt has
            no points.

    References:
        Kirillov et al.: Segment Anything. ICCV 2023, as implemented in transformers.

    Example::

        >>> clip = ZeroShotClassifier.demo(["dog", "pizza"])
        >>> inputs = sam_inputs(prompts(clip, torch.rand(1, 3, 128, 128)))
        >>> {name: (len(rows), len(rows[0])) for name, rows in inputs.items()}
        {'input_points': (1, 2), 'input_labels': (1, 2)}
    """
    if any(isinstance(row, Prompt) for row in prompts):
        raise TypeError(
            "prompts must be a list per image; for one image call sam_inputs([prompts])"
        )
    counts = [len(row) for row in prompts]
    if len(set(counts)) != 1 or not counts[0]:
        raise ValueError(
            f"images must have the same number of prompts, at least one, got {counts}; pass those "
            "that have any one at a time: sam_inputs([prompts[i]])"
        )
    flat = [prompt for row in prompts for prompt in row]
    for prompt in flat:
        if not len(prompt.points):
            raise ValueError(f"the prompt for {prompt.text!r} {NO_POINTS}")
    length = max(len(prompt.points) for prompt in flat)
    inputs: dict[str, list[Any]] = {
        "input_points": [[_pad(p.points, length, [0.0, 0.0]) for p in row] for row in prompts],
        "input_labels": [[_pad(p.labels, length, PADDING) for p in row] for row in prompts],
    }
    boxes = [[p.box.tolist() for p in row if p.box is not None] for row in prompts]
    return inputs | ({"input_boxes": boxes} if sum(map(len, boxes)) == len(flat) else {})


def _pad(values: np.ndarray, length: int, padding: object) -> list[Any]:
    return [*values.tolist(), *[padding] * (length - len(values))]
