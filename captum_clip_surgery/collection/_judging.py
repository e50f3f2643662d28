"""Selection of the classes that stand out, at a stated rate of false alarms."""

from __future__ import annotations

import numpy as np

#: Number of collections that are drawn to find the critical value.
DRAWS = 10_000
#: Smallest number of classes among which one can stand out.
MIN_CLASSES = 4
#: Standard deviations of a normal distribution per median absolute deviation.
PER_MAD = 1.4826


def robust_z(values: np.ndarray) -> np.ndarray:
    """Return how far values (..., K) are from their median, in robust standard deviations.

    The scale is 1.4826 times the median absolute deviation, which a few outliers do not change.
    Where more than half of the values are equal, the others are infinitely far.

    References:
        Iglewicz, Hoaglin: How to Detect and Handle Outliers. ASQC Quality Press, 1993.
    """
    distance = values - np.median(values, axis=-1, keepdims=True)
    scale = PER_MAD * np.median(np.abs(distance), axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(distance == 0, 0.0, distance / scale)


def critical_value(count: int, rate: float) -> float:
    """Return the robust z that the largest of normal values exceeds with a given probability.

    It is estimated from 10,000 draws with a fixed seed.

    Args:
        count: Number of classes, at least 4.
        rate: Probability, from 0.001 to 0.5.

    Raises:
        ValueError: If an argument is out of range.

    Example::

        >>> 3 < critical_value(30, 0.05) < critical_value(30, 0.01) < critical_value(6, 0.01)
        True
    """
    if count < MIN_CLASSES:
        raise ValueError(f"at least {MIN_CLASSES} classes are needed, got {count}")
    check_rate(rate)
    draws = np.random.default_rng(0).standard_normal((DRAWS, count))
    return float(np.quantile(robust_z(draws).max(-1), 1 - rate))


def check_rate(rate: float) -> None:
    """Check a rate of false alarms.

    Raises:
        ValueError: If it is not from 0.001 to 0.5.
    """
    if not 0.001 <= rate <= 0.5:
        raise ValueError(f"false_alarms must be from 0.001 to 0.5, got {rate!r}")
