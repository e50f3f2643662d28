"""Records of images as a row of numbers, which journals keep and processes exchange."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

#: By method: what an image adds.
Records = dict[str, Tensor]


def pack(records: Mapping[int, Records], names: Sequence[str]) -> Tensor:
    """Records by image as one row of float64: image, and of each method dimensions and content.

    Example::

        >>> row = pack({7: {"CLIP": torch.tensor([[0.5, 1.0]])}}, ["CLIP"])
        >>> row.tolist(), unpack(row, ["CLIP"])[7]["CLIP"].tolist()
        ([7.0, 2.0, 1.0, 2.0, 0.5, 1.0], [[0.5, 1.0]])
    """
    parts = []
    for index, record in records.items():
        parts.append(torch.tensor([index], dtype=torch.float64))
        for name in names:
            content = record[name].double()
            shape = torch.tensor([content.ndim, *content.shape], dtype=torch.float64)
            parts += [shape, content.flatten()]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


def unpack(row: Tensor, names: Sequence[str]) -> dict[int, Records]:
    """Records by image, of what `pack` made with the same names.

    Raises:
        ValueError: a row that it did not make.
    """
    try:
        return _unpacked(row, names)
    except (ValueError, TypeError, IndexError, OverflowError, RuntimeError) as error:
        told = str(error).partition("\n")[0]  # torch's go on
        raise ValueError(f"a row of {len(row)} numbers is no record of images: {told}") from error


def _unpacked(row: Tensor, names: Sequence[str]) -> dict[int, Records]:
    records: dict[int, Records] = {}
    values, place = row.tolist(), 0
    while place < len(values):
        record = records[int(values[place])] = {}
        place += 1
        for name in names:
            dimensions = int(values[place])
            shape = [int(side) for side in values[place + 1 : place + 1 + dimensions]]
            place += 1 + dimensions
            size = math.prod(shape)
            record[name] = row[place : place + size].reshape(shape)
            place += size
    return records


def to_bytes(row: Tensor) -> bytes:
    return row.numpy().astype("<f8").tobytes()


def from_bytes(content: bytes) -> Tensor:
    """Raises ValueError for what is no whole row."""
    if len(content) % 8:
        raise ValueError(
            f"a row of {len(content)} bytes is no record of images: numbers have 8 each"
        )
    return torch.from_numpy(np.frombuffer(content, "<f8").astype(np.float64))
