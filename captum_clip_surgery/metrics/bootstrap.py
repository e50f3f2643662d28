"""Confidence intervals by drawing images anew, and means over images that have them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

#: Resamples that are in memory at once.
CHUNK = 100


def resample(images: int, resamples: int, seed: int) -> Iterator[Tensor]:
    """How often each image is drawn in each resample: (at most `CHUNK`, images) of float64."""
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, resamples, CHUNK):
        rows = min(CHUNK, resamples - start)
        drawn = torch.randint(images, (rows, images), generator=generator)
        ones = torch.ones(rows, images, dtype=torch.float64)
        yield torch.zeros_like(ones).scatter_add_(1, drawn, ones)


def percentiles(
    chunks: Iterable[Mapping[str, Tensor]], level: float
) -> dict[str, tuple[float, float]]:
    """The middle `level` of each figure over resamples, given in chunks: (low, high)."""
    found = list(chunks)
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    intervals = {}
    for name in found[0]:
        low, high = torch.cat([chunk[name] for chunk in found]).quantile(tails).tolist()
        intervals[name] = (low, high)
    return intervals


def check_bootstrap(level: float, resamples: int) -> None:
    """Raises ValueError for a level that is no share, or no resamples."""
    if not 0 < level < 1:
        raise ValueError(f"level {level!r} must lie between 0 and 1; 0.95 is usual")
    if resamples < 1:
        raise ValueError(f"resamples {resamples!r} must be at least 1; 1000 is usual")


class ImageMeans:
    """Figures of images in 0..1, their means in percent, and intervals by bootstrap over images.

    Example::

        >>> means = ImageMeans()
        >>> means.update(insertion=0.25, deletion=0.0)
        >>> means.update(insertion=0.75, deletion=0.0)
        >>> means.compute()
        {'insertion': 50.0, 'deletion': 0.0}
        >>> means.confidence()["insertion"]
        (25.0, 75.0)
    """

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}

    def update(self, **figures: float) -> None:
        """Add an image's figures; not every image needs to have each."""
        for name, value in figures.items():
            self._values.setdefault(name, []).append(value)

    def compute(self) -> dict[str, float]:
        """Means in percent; empty before the first image."""
        return {name: 100 * sum(values) / len(values) for name, values in self._values.items()}

    def confidence(
        self, level: float = 0.95, resamples: int = 1000, seed: int = 0
    ) -> dict[str, tuple[float, float]]:
        """Percentile bootstrap over images: (low, high) for each mean.

        Raises:
            ValueError: a level not between 0 and 1, no resamples.

        Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), ch. 13.
        """
        check_bootstrap(level, resamples)
        intervals: dict[str, tuple[float, float]] = {}
        for name, values in self._values.items():
            figures = 100 * torch.tensor(values, dtype=torch.float64) / len(values)
            chunks = ({name: n @ figures} for n in resample(len(values), resamples, seed))
            intervals |= percentiles(chunks, level)
        return intervals
