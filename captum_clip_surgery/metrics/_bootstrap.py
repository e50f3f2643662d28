"""Confidence intervals by bootstrap over images.

Figures are functions of sums over images, so resampled figures are those of `counts @ sums`, one
matrix product for a chunk of resamples. `scipy.stats.bootstrap` and torchmetrics' `BootStrapper`
would build every resample from its images again, and draw other resamples than the published
intervals.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

#: Number of resamples in memory at once.
CHUNK = 100


def resample(images: int, resamples: int, seed: int) -> Iterator[Tensor]:
    """Draw images with replacement, in chunks of at most `CHUNK` resamples.

    Args:
        images: Number of images.
        resamples: Number of resamples.
        seed: Seed of the draw.

    Yields:
        How often each image is drawn in each resample, (chunk, images) of float64.

    Example::

        >>> [counts.sum(1).tolist() for counts in resample(4, 2, seed=0)]
        [[4.0, 4.0]]
    """
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, resamples, CHUNK):
        rows = min(CHUNK, resamples - start)
        drawn = torch.randint(images, (rows, images), generator=generator, device="cpu")
        ones = torch.ones(rows, images, dtype=torch.float64, device="cpu")
        yield torch.zeros_like(ones).scatter_add_(1, drawn, ones)


def percentiles(
    chunks: Iterable[Mapping[str, Tensor]], level: float
) -> dict[str, tuple[float, float]]:
    """Return the interval with the middle `level` of each figure's values over resamples.

    Args:
        chunks: Values by figure, (chunk,) each, in chunks of resamples.
        level: Fraction of resamples inside the interval, in 0..1.

    Returns:
        Intervals (low, high) by figure.

    Example::

        >>> percentiles([{"iou": torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)}], 0.5)
        {'iou': (0.5, 1.5)}
    """
    parts = list(chunks)
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64, device="cpu")
    intervals = {}
    for name in parts[0]:
        low, high = torch.cat([part[name] for part in parts]).quantile(tails).tolist()
        intervals[name] = (low, high)
    return intervals


def check_bootstrap(level: float, resamples: int) -> None:
    """Check the options of a bootstrap.

    Raises:
        ValueError: If `level` is not between 0 and 1, or `resamples` is less than 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, such as 0.95, got {level!r}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, such as 1000, got {resamples!r}")


class ImageMeans:
    """Means over images of figures in 0..1, in percent, with bootstrap intervals.

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
        """Add an image's figures; an image can lack some of them."""
        for name, value in figures.items():
            self._values.setdefault(name, []).append(value)

    def compute(self) -> dict[str, float]:
        """Return the means in percent; empty before the first image."""
        return {name: 100 * sum(values) / len(values) for name, values in self._values.items()}

    def confidence(
        self, level: float = 0.95, resamples: int = 1000, seed: int = 0
    ) -> dict[str, tuple[float, float]]:
        """Return percentile intervals of the means by bootstrap over images.

        Args:
            level: Fraction of resamples inside the interval, between 0 and 1.
            resamples: Number of resamples.
            seed: Seed of the draw.

        Returns:
            Intervals (low, high) in percent by figure.

        Raises:
            ValueError: If `level` is not between 0 and 1, or `resamples` is less than 1.

        References:
            Efron and Tibshirani: An Introduction to the Bootstrap. 1993, ch. 13.
        """
        check_bootstrap(level, resamples)
        intervals: dict[str, tuple[float, float]] = {}
        for name, values in self._values.items():
            shares = 100 * torch.tensor(values, dtype=torch.float64, device="cpu") / len(values)
            chunks = ({name: counts @ shares} for counts in resample(len(values), resamples, seed))
            intervals |= percentiles(chunks, level)
        return intervals
