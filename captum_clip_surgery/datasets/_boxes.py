"""Images with boxes, and images without any annotation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from captum_clip_surgery._utils.files import read_lines
from captum_clip_surgery.datasets._base import ImageDataset, Masks, Sample, Tags
from captum_clip_surgery.datasets._classes import Classes
from captum_clip_surgery.preprocessing import load_image

HINT = (
    '{"file_name": "a.jpg", "objects": {"bbox": [[left, top, width, height], ...], '
    '"categories": ["dog", ...]}}'
)


class Boxes(ImageDataset):
    """Images with boxes in a JSON Lines file, as Hugging Face's `imagefolder` has them.

    Each line describes an image::

        {"file_name": "a.jpg", "objects": {"bbox": [[302, 109, 73, 52]], "categories": ["dog"]}}

    `file_name` is relative to the file's folder. A box is left, top, width and height in pixels of
    the image as shown. A class's mask is the union of its boxes.

    Args:
        path: The file, such as `photos/metadata.jsonl`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is not of this form, or there are no boxes.
    """

    def __init__(self, path: Path | str) -> None:
        path = Path(path)
        rows: dict[str, list[tuple[str, tuple[float, ...]]]] = {}
        for number, line in enumerate(read_lines(path), 1):
            try:
                name, boxes = _parse(json.loads(line))
            except (ValueError, KeyError, TypeError):
                raise ValueError(
                    f"line {number} of {path} is {line!r:.80}, expected {HINT}"
                ) from None
            rows.setdefault(name, []).extend(boxes)
        names = sorted({label for boxes in rows.values() for label, _ in boxes})
        if not names:
            raise ValueError(f"{path} has no boxes, expected lines such as {HINT}")
        classes = Classes(tuple((name,) for name in names), str(path))
        super().__init__(f"boxes of {path.resolve().parent.name}", classes, list(rows))
        self._folder = path.parent
        self._boxes = rows

    def read(self, index: int) -> Sample:
        """Read an image, and draw the masks of its boxes.

        Raises:
            ValueError: Also if a box holds no pixel of the image.
        """
        name = self.names[index]
        image = load_image(self._folder / name)
        masks: dict[int, np.ndarray] = {}
        for label, box in self._boxes[name]:
            number = self.classes.first.index(label)
            mask = masks.setdefault(number, np.zeros((image.height, image.width), bool))
            _fill(mask, box, name)
        return Sample(name, image, Masks(masks))


class PlainImages(ImageDataset):
    """Image files whose classes are unknown.

    Args:
        paths: The files.
        classes: Names of the classes.
    """

    def __init__(self, paths: Sequence[Path | str], classes: Sequence[str]) -> None:
        names = [str(path) for path in paths]
        super().__init__("images", Classes(tuple((name,) for name in classes)), names)

    def read(self, index: int) -> Sample:
        """Read an image."""
        name = self.names[index]
        unknown = Tags(frozenset(), frozenset(range(len(self.classes))))
        return Sample(name, load_image(name), unknown)


def _parse(row: Mapping[str, Any]) -> tuple[str, list[tuple[str, tuple[float, ...]]]]:
    """Return an image's name, and its boxes with their classes."""
    objects = row["objects"]
    labels, boxes = objects["categories"], [tuple(map(float, box)) for box in objects["bbox"]]
    pairs = list(zip(labels, boxes, strict=True))
    if not isinstance(row["file_name"], str) or not all(
        isinstance(label, str) and label and len(box) == 4 and np.isfinite(box).all()
        for label, box in pairs
    ):
        raise ValueError
    return row["file_name"], pairs


def _fill(mask: np.ndarray, box: tuple[float, ...], name: str) -> None:
    """Set the pixels of a box, which covers every pixel that it touches."""
    left, top, width, height = box
    rows = slice(max(0, int(np.floor(top))), max(0, int(np.ceil(top + height))))
    columns = slice(max(0, int(np.floor(left))), max(0, int(np.ceil(left + width))))
    if not mask[rows, columns].size or width <= 0 or height <= 0:
        raise ValueError(
            f"the box {list(box)} holds no pixel of {name}, {mask.shape[1]} x "
            f"{mask.shape[0]} (width x height)"
        )
    mask[rows, columns] = True
