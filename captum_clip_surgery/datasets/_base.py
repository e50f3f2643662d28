"""The base class of data sets, and the types of a sample's target."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from captum_clip_surgery.datasets._classes import Classes

#: Label of pixels without annotation, such as borders and voids. They do not count.
IGNORE_INDEX = -1


@dataclass(frozen=True)
class Labels:
    """One class per pixel.

    Args:
        labels: Array (H, W) of int32: indices of the data set's classes, or `IGNORE_INDEX`.
    """

    labels: np.ndarray

    def masks(self) -> Masks:
        """Return the mask of every class in the image, with the unlabeled pixels as ignored."""
        present = [int(label) for label in np.unique(self.labels) if label != IGNORE_INDEX]
        void = self.labels == IGNORE_INDEX
        ignored = dict.fromkeys(present, void) if void.any() else {}
        return Masks({label: self.labels == label for label in present}, ignored)


@dataclass(frozen=True)
class Masks:
    """One mask per class; masks may overlap.

    Args:
        masks: For every class in the image, an array (H, W) of bool.
        ignored: For some classes, an array (H, W) of bool: pixels that count neither as inside nor
            as outside the class's mask, such as crowds.
    """

    masks: Mapping[int, np.ndarray]
    ignored: Mapping[int, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Tags:
    """The classes that an image shows.

    Args:
        present: Classes that are in the image.
        unknown: Classes without annotation for this image, which do not count.
    """

    present: frozenset[int]
    unknown: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Point:
    """An annotated point.

    Args:
        label: Index of the class.
        x: Position from the left, in 0..1 of the width.
        y: Position from the top, in 0..1 of the height.
        positive: Whether the class is at this point.
    """

    label: int
    x: float
    y: float
    positive: bool


@dataclass(frozen=True)
class Points:
    """The annotated points of an image.

    Args:
        points: The points.
    """

    points: tuple[Point, ...]


#: What is known of an image.
Target = Labels | Masks | Tags | Points


@dataclass(frozen=True)
class Sample:
    """An image and its annotation.

    Args:
        name: Name of the sample, unique in its data set.
        image: The image, RGB.
        target: Its labels, masks, tags or points.
    """

    name: str
    image: Image.Image
    target: Target


class ImageDataset(Dataset[Sample], ABC):
    r"""Base class of data sets: a torch `Dataset` of `Sample`s.

    A subclass implements `read` only. It keeps names and opens files on demand, so that it is cheap
    to create, can be sent to the workers of a `DataLoader`, and can be read in any order.

    Args:
        name: Name of the data set in results.
        classes: Names of its classes.
        names: Names of the samples, in order.
        background: Index of the class for everything that belongs to no other class, or None.

    Raises:
        ValueError: If `names` is empty.

    Example::

        >>> class Squares(ImageDataset):
        ...     def __init__(self):
        ...         super().__init__("Squares", Classes.parse("red\nblue"), ["red", "blue"])
        ...
        ...     def read(self, index):
        ...         image = Image.new("RGB", (8, 8), self.names[index])
        ...         return Sample(self.names[index], image, Tags(frozenset([index])))
        >>> squares = Squares()
        >>> len(squares), squares[1].target.present
        (2, frozenset({1}))
    """

    def __init__(
        self, name: str, classes: Classes, names: Sequence[str], background: int | None = None
    ) -> None:
        if not names:
            raise ValueError(f"{name} holds no images")
        self.name = name
        self.classes = classes
        self.names = tuple(names)
        self.background = background

    @property
    def foreground(self) -> list[int]:
        """Indices of the classes, without the background."""
        return [label for label in range(len(self.classes)) if label != self.background]

    @abstractmethod
    def read(self, index: int) -> Sample:
        """Read one sample from disk.

        Args:
            index: Index of the sample, 0 to `len(self) - 1`.
        """

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        if isinstance(index, slice):
            raise TypeError(
                f"{type(self).__name__} takes one index, got a slice; use torch.utils.data.Subset"
            )
        return self.read(range(len(self))[index])

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))
