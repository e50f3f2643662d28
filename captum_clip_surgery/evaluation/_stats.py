"""Per-image statistics as a row of numbers, which journals store and processes exchange."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

#: The statistics of one image by method.
ImageStats = dict[str, Tensor]


def serialize(stats: Mapping[int, ImageStats], names: Sequence[str]) -> Tensor:
    """Write the statistics of images into one row of float64.

    Args:
        stats: Statistics by the index of the image.
        names: Names of the methods.

    Returns:
        For each image its index, and for each method the number of dimensions, the shape and the
        values.

    Example::

        >>> row = serialize({7: {"CLIP": torch.tensor([[0.5, 1.0]])}}, ["CLIP"])
        >>> row.tolist(), deserialize(row, ["CLIP"])[7]["CLIP"].tolist()
        ([7.0, 2.0, 1.0, 2.0, 0.5, 1.0], [[0.5, 1.0]])
    """
    parts = []
    for index, image_stats in stats.items():
        parts.append(torch.tensor([index], dtype=torch.float64))
        for name in names:
            values = image_stats[name].double()
            shape = torch.tensor([values.ndim, *values.shape], dtype=torch.float64)
            parts += [shape, values.flatten()]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


def deserialize(row: Tensor, names: Sequence[str]) -> dict[int, ImageStats]:
    """Read the statistics of images from a row that `serialize` made with the same names.

    Raises:
        ValueError: If the row is malformed.
    """
    try:
        return _deserialize(row, names)
    except (ValueError, TypeError, IndexError, OverflowError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]  # torch's messages go on
        raise ValueError(
            f"a row of {len(row)} numbers holds no statistics of images: {reason}"
        ) from error


def _deserialize(row: Tensor, names: Sequence[str]) -> dict[int, ImageStats]:
    stats: dict[int, ImageStats] = {}
    values, place = row.tolist(), 0
    while place < len(values):
        image_stats = stats[int(values[place])] = {}
        place += 1
        for name in names:
            dimensions = int(values[place])
            shape = [int(side) for side in values[place + 1 : place + 1 + dimensions]]
            place += 1 + dimensions
            size = math.prod(shape)
            image_stats[name] = row[place : place + size].reshape(shape)
            place += size
    return stats


def to_bytes(row: Tensor) -> bytes:
    """Return a row of float64 as bytes."""
    return row.numpy().astype("<f8").tobytes()


def from_bytes(content: bytes) -> Tensor:
    """Return the row that `to_bytes` wrote.

    Raises:
        ValueError: If the number of bytes is not a multiple of 8.
    """
    if len(content) % 8:
        raise ValueError(
            f"a row of {len(content)} bytes holds no statistics of images: numbers have 8 each"
        )
    return torch.from_numpy(np.frombuffer(content, "<f8").astype(np.float64))
