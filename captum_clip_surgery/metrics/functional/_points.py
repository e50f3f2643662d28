"""IoU of masks with annotated points, which needs no mask as ground truth."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Value above which a map is foreground in the papers.
THRESHOLD = 0.5


def point_confusion(
    prediction: Tensor,
    x: Sequence[float],
    y: Sequence[float],
    positive: Sequence[bool],
    threshold: float = THRESHOLD,
) -> Tensor:
    """Count annotated points as true and false positives, false and true negatives.

    A point belongs to the pixel that contains it; the coordinate 1 belongs to the last pixel.

    Args:
        prediction: Mask (H, W) of bool, or map (H, W) whose values above `threshold` are the mask.
        x: Positions from the left, in 0..1 of the width.
        y: Positions from the top, in 0..1 of the height.
        positive: Whether the class is at the point.
        threshold: Threshold for maps.

    Returns:
        Counts (TP, FP, FN, TN), (4,) of float64.

    Raises:
        TypeError: If `prediction` is neither of bool nor floating-point.
        ValueError: If `prediction` has another shape or is not finite, coordinates are outside
            0..1, or the sequences differ in length.

    Example::

        >>> mask = torch.tensor([[True, False], [False, False]])
        >>> point_confusion(mask, [0.1, 0.9, 0.4], [0.1, 0.9, 0.4], [True, True, False])
        tensor([1., 1., 1., 0.], dtype=torch.float64)
    """
    mask = _to_mask(prediction, threshold)
    if not len(x) == len(y) == len(positive):
        raise ValueError(
            "x, y and positive must have the same length, got "
            f"{len(x)}, {len(y)} and {len(positive)}"
        )
    rows, columns = _pixels(y, mask.shape[0]), _pixels(x, mask.shape[1])
    inside = mask.cpu()[rows, columns]
    present = _on_cpu(positive, torch.bool)
    counts = [inside & present, inside & ~present, ~inside & present, ~inside & ~present]
    return torch.stack([points.sum() for points in counts]).double()


def point_iou(counts: Tensor) -> Tensor:
    """Return the IoU of points, TP / (TP + FP + FN), in 0..1.

    Args:
        counts: Counts (..., 4) from `point_confusion` with at least one positive point.

    Example::

        >>> point_iou(torch.tensor([1.0, 1.0, 1.0, 0.0]))
        tensor(0.3333)
    """
    hits, false_positives, false_negatives, _ = counts.unbind(-1)
    return hits / (hits + false_positives + false_negatives)


def _to_mask(prediction: Tensor, threshold: float) -> Tensor:
    if prediction.ndim != 2 or not prediction.numel():
        raise ValueError(f"prediction has shape {tuple(prediction.shape)}, expected (H, W)")
    if prediction.dtype == torch.bool:
        return prediction
    if not prediction.is_floating_point():
        raise TypeError(f"prediction is {prediction.dtype}, expected bool or floating point")
    if not prediction.isfinite().all():
        raise ValueError("prediction holds NaN or infinity")
    return prediction > threshold


def _on_cpu(values: Sequence[float] | Tensor, dtype: torch.dtype) -> Tensor:
    if isinstance(values, Tensor):
        return values.cpu().to(dtype)  # cast on the CPU, as the device may not have float64
    return torch.as_tensor(values, dtype=dtype, device="cpu")


def _pixels(positions: Sequence[float], size: int) -> Tensor:
    """Return the pixel indices of positions in 0..1 of a side of `size` pixels."""
    coordinates = _on_cpu(positions, torch.float64)
    if not ((coordinates >= 0) & (coordinates <= 1)).all():
        raise ValueError("points have coordinates outside 0..1")
    return (coordinates * size).long().clamp(max=size - 1)
