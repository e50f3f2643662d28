"""Average precision of classes, by torchmetrics."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def average_precisions(scores: Tensor, answers: Tensor) -> Tensor:
    """Return the average precision of each class.

    It is the area under the precision-recall curve without interpolation, as in scikit-learn.

    Args:
        scores: Scores (N, K) of images.
        answers: 1 (present), 0 (absent) or -1 (left out), (N, K).

    Returns:
        Average precisions (K,), NaN for classes that no image shows.

    Raises:
        ImportError: If torchmetrics is not installed.
    """
    precision = binary_average_precision()
    precisions = []
    for column, target in zip(scores.T, answers.T, strict=True):
        valid = target >= 0
        if not (target == 1).any():
            precisions.append(torch.tensor(torch.nan, dtype=torch.float64))
            continue
        # Ranks, since torchmetrics takes scores in 0..1 and squashes others to that range.
        ranks = column[valid].unique(return_inverse=True)[1].double()
        ranks = ranks / max(1.0, float(ranks.max()))
        precisions.append(precision(ranks, target[valid].long()).double())
    return torch.stack(precisions)


def binary_average_precision() -> Callable[[Tensor, Tensor], Tensor]:
    """Import the function of torchmetrics.

    Raises:
        ImportError: If torchmetrics is not installed.
    """
    try:
        from torchmetrics.functional.classification import binary_average_precision
    except ImportError as error:
        raise ImportError(
            "recognition needs torchmetrics; install the extra: "
            "pip install 'captum_clip_surgery[metrics]'"
        ) from error
    return binary_average_precision
