"""What every data set gives: named pictures, and what is known of each.

A reader is a sequence of `Sample`s. It holds names and opens files only when a sample is asked for,
so that it is cheap to make, goes to the workers of a data loader, and can be read in any order.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

import numpy as np
from PIL import Image

from captum_clip_surgery.datasets.files import read_text
from captum_clip_surgery.preprocessing import open_image

#: The label of pixels that nobody judged: borders, voids. They count for nothing.
IGNORED = -1


@dataclass(frozen=True)
class Labels:
    """One class a pixel: `labels` (H, W) of int32, an index of `DataSet.classes` or `IGNORED`."""

    labels: np.ndarray

    def masks(self) -> Masks:
        """Each class that is there, and where it was not judged."""
        found = [int(label) for label in np.unique(self.labels) if label != IGNORED]
        void = self.labels == IGNORED
        ignored = dict.fromkeys(found, void) if void.any() else {}
        return Masks({label: self.labels == label for label in found}, ignored)


@dataclass(frozen=True)
class Masks:
    """Classes that may overlap: a mask (H, W) of bool for each class that is there.

    `ignored`, by class, are pixels that count neither inside nor outside that class's mask, such as
    crowds; no entry is none of them.
    """

    masks: Mapping[int, np.ndarray]
    ignored: Mapping[int, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Tags:
    """Which classes an image shows, and of which that is not known (difficult, not judged)."""

    present: frozenset[int]
    unknown: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Point:
    """A place that was judged: `x`, `y` in 0..1 of the sides, and whether `label` is there."""

    label: int
    x: float
    y: float
    positive: bool


@dataclass(frozen=True)
class Points:
    """Places of an image that were judged."""

    points: tuple[Point, ...]


Truth = Labels | Masks | Tags | Points


@dataclass(frozen=True)
class Sample:
    """An image in RGB, its name (unique in the data set), and what is known of it."""

    name: str
    image: Image.Image
    truth: Truth


class DataSet(Sequence[Sample]):
    """A data set on disk.

    Args:
        name: how results call it.
        classes: each class's names, the one it goes by first.
        names: of the samples, in order.
        background: the class that stands for whatever is none of the others, if there is one.

    Raises:
        ValueError: no names.
    """

    def __init__(
        self,
        name: str,
        classes: Classes,
        names: Sequence[str],
        background: int | None = None,
    ) -> None:
        if not names:
            raise ValueError(f"{name} holds no images")
        self.name = name
        self.classes = classes
        self.names = tuple(names)
        self.background = background

    @abstractmethod
    def read(self, index: int) -> Sample:
        """Open sample `index`, 0 to len - 1."""

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            raise TypeError(f"{type(self).__name__} takes one index; torch's Subset takes many")
        return self.read(range(len(self))[index])


@dataclass(frozen=True)
class Classes:
    """Names of classes, the one each goes by first and then its synonyms, and where they are from.

    Example::

        >>> classes = Classes.parse("# source: nobody\\nperson, man, woman\\npotted plant\\n")
        >>> classes.first, classes.synonyms[0], classes.source
        (('person', 'potted plant'), ('person', 'man', 'woman'), 'nobody')
    """

    synonyms: tuple[tuple[str, ...], ...]
    source: str = ""

    @property
    def first(self) -> tuple[str, ...]:
        """The name each class goes by."""
        return tuple(names[0] for names in self.synonyms)

    def __len__(self) -> int:
        return len(self.synonyms)

    @classmethod
    def parse(cls, text: str) -> Classes:
        """A class a line, its names with commas between; lines of `#` are remarks.

        Raises:
            ValueError: no class, an empty name, or a name that two classes go by.
        """
        lines = [(i, line.strip()) for i, line in enumerate(text.splitlines(), 1)]
        source = [
            line.removeprefix("# source:").strip() for _, line in lines if "# source:" in line
        ]
        rows = []
        for number, line in lines:
            if not line or line.startswith("#"):
                continue
            names = tuple(name.strip() for name in line.split(","))
            if not all(names):
                raise ValueError(f"line {number} of the classes, {line!r:.80}, has an empty name")
            rows.append(names)
        if not rows:
            raise ValueError("no classes: write one a line, its names with commas between")
        name, times = Counter(row[0] for row in rows).most_common(1)[0]
        if times > 1:
            raise ValueError(f"two classes go by the name {name!r:.80}")
        return cls(tuple(rows), "; ".join(source))

    @classmethod
    def read(cls, path: Path) -> Classes:
        """A file of `parse`'s format."""
        text = read_text(path)
        try:
            return cls.parse(text)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def named(cls, name: str) -> Classes:
        """Those that come with the package, `classes/NAME.txt`."""
        return cls.read(Path(__file__).parent / "classes" / f"{name}.txt")


def check_layout(name: str, root: Path, needed: Iterable[str], hint: str) -> None:
    """Whether the files and folders of a data set are where they belong.

    Args:
        name: of the data set.
        root: its folder.
        needed: paths below it.
        hint: what to download and unpack where.

    Raises:
        FileNotFoundError: what is missing, and the hint.
    """
    missing = [path for path in needed if not (root / path).exists()]
    if missing:
        what = ", ".join(missing) if root.is_dir() else "no such folder"
        found = f"missing: {what}" if root.is_dir() else what
        raise FileNotFoundError(f"{name} is not whole at {root} ({found}). Expected: {hint}")


def open_rgb(path: Path) -> Image.Image:
    """A picture as the data sets' own tools open it: RGB, the way its pixels are stored.

    Grayscale, CMYK and palettes are converted; a rotation noted in EXIF is not followed, since
    annotations are of the stored pixels.

    Raises:
        ValueError: a file that is no picture, or is cut short.
    """
    try:
        with open_image(path) as image:
            picture = image.convert("RGB")
            picture.info.clear()  # or what turns pictures upright would still follow the note
            return picture
    except FileNotFoundError:
        raise
    except Exception as error:  # decoders fail in their own ways
        raise ValueError(f"{path} cannot be read as a picture: {error}") from None


def picture_size(path: Path) -> tuple[int, int]:
    """Read the (width, height) of a picture, as its pixels are stored, from its header.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is no picture.
    """
    try:
        with open_image(path) as image:
            return image.size
    except FileNotFoundError:
        raise
    except Exception as error:  # decoders fail in their own ways
        raise ValueError(f"{path} cannot be read as a picture: {error}") from None


def open_labels(path: Path) -> np.ndarray:
    """The whole numbers in a PNG of labels, (H, W): palette indices, 8 or 16 bits of grey.

    Raises:
        ValueError: a file that cannot be read, or holds colours.
    """
    try:
        with open_image(path) as image:
            if image.mode not in ("P", "L", "I", "I;16", "I;16B", "1"):
                raise ValueError(
                    f"it is of mode {image.mode}, expected a palette or grey values, the labels"
                )
            # Pillow spreads grey of 2 and 4 bits over 0..255; labels are what the file holds.
            spread = {"L;2": 85, "L;4": 17}.get(str(image.tile[0][3]), 1) if image.tile else 1
            labels = np.asarray(image).astype(np.int32)
            labels //= spread
            return labels
    except FileNotFoundError:
        raise
    except Exception as error:  # decoders fail in their own ways
        raise ValueError(f"{path} cannot be read as labels: {error}") from None
