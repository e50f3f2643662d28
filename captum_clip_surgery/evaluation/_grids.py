"""Grid pointing on data sets: four images as one, of which only one shows a class."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from captum_clip_surgery.datasets import ImageDataset, Masks, Sample, Tags, Target
from captum_clip_surgery.evaluation._faithfulness import PairMeansEvaluator, shown_classes
from captum_clip_surgery.evaluation._predictors import MapPredictor
from captum_clip_surgery.evaluation._store import Columns
from captum_clip_surgery.metrics import grid_pointing_game

#: Number of images per row and per column of a grid.
GRID = 2
#: Side in pixels of an image in a grid.
TILE = 512
#: Number of images drawn in search of those that do not show a class.
MAX_DRAWS = 100


class GridDataset(ImageDataset):
    """Grids of a data set's images: each image among others that do not show a class of its own.

    The annotation is the mask of the image's cell, for a class drawn from those it shows; there is
    none if the image shows no class or too few others were found. What is drawn depends only on the
    data set and the image's index.

    Args:
        data: The data set.
    """

    def __init__(self, data: ImageDataset) -> None:
        super().__init__(data.name, data.classes, data.names, data.background)
        self.data = data

    def read(self, index: int) -> Sample:
        """Read an image and its neighbors in the grid."""
        sample, draw = self.data[index], random.Random(index)
        shown = sorted(shown_classes(sample.target) - {self.background})
        cell, masks = draw.randrange(GRID**2), {}
        tiles = [_tile(sample)]
        if shown:
            label = draw.choice(shown)
            tiles += self._others(index, label, draw)
            if len(tiles) == GRID**2:
                mask = np.zeros((GRID, GRID), dtype=bool)
                mask.flat[cell] = True
                masks[label] = mask.repeat(TILE, 0).repeat(TILE, 1)
        tiles += [np.zeros_like(tiles[0])] * (GRID**2 - len(tiles))
        tiles.insert(cell, tiles.pop(0))
        rows = [np.concatenate(tiles[i : i + GRID], 1) for i in range(0, GRID**2, GRID)]
        return Sample(sample.name, Image.fromarray(np.concatenate(rows)), Masks(masks))

    def _others(self, index: int, label: int, draw: random.Random) -> list[np.ndarray]:
        """Return the tiles of other readable images that do not show a class, up to a grid's."""
        drawn, tiles = {index}, list[np.ndarray]()
        for other in (draw.randrange(len(self.data)) for _ in range(MAX_DRAWS)):
            if other in drawn or len(tiles) == GRID**2 - 1:
                continue
            drawn.add(other)
            with suppress(OSError, ValueError):  # listed as unreadable in a grid of its own
                sample = self.data[other]
                target = sample.target
                if label not in shown_classes(target) | _uncertain_classes(target):
                    tiles.append(_tile(sample))
        return tiles


def _tile(sample: Sample) -> np.ndarray:
    return np.asarray(sample.image.resize((TILE, TILE), Image.Resampling.BICUBIC))


def _uncertain_classes(target: Target) -> frozenset[int]:
    """Return the classes of which it is not known whether an image shows them."""
    if isinstance(target, Tags):
        return target.unknown
    return frozenset(target.ignored) if isinstance(target, Masks) else frozenset()


class GridEvaluator(PairMeansEvaluator):
    """The share of a map's positive mass in the cell of the image that shows the class."""

    predictor = MapPredictor
    columns: ClassVar[Columns] = {"grid_pointing": 1}
    nothing = f"no image shows a class that {GRID**2 - 1} others do not show"

    def __init__(self, data: ImageDataset) -> None:
        super().__init__(data)
        self.images = GridDataset(data)

    def labels(self, target: Target) -> list[int]:
        """Return the class that only one image of the grid shows, if there is one."""
        assert isinstance(target, Masks)
        return list(target.masks)

    def stats(self, target: Target, prediction: Tensor) -> Tensor:
        """Return the share for the class."""
        assert isinstance(target, Masks)
        rows = []
        for (label, mask), attribution in zip(target.masks.items(), prediction, strict=True):
            cell = int(mask[::TILE, ::TILE].argmax())
            rows.append([label, grid_pointing_game(attribution, GRID, GRID, cell)])
        return torch.tensor(rows, dtype=torch.float64).view(-1, 2)
