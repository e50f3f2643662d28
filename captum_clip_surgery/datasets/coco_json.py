"""COCO's `instances_*.json`: the images it lists, and what is outlined in each."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from captum_clip_surgery.datasets.base import Classes, picture_size
from captum_clip_surgery.datasets.files import read_json
from captum_clip_surgery.datasets.outlines import decode_outlines, encode_outline


@dataclass(frozen=True, slots=True)
class Region:
    """An instance, or a crowd of them, of class `label`.

    `outline` is COCO's compressed run-length encoding: some 300 bytes, where polygons of the JSON
    are thousands of Python numbers. It is empty if it was not drawn.
    """

    label: int
    crowd: bool
    outline: bytes = b""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image's file name and size, and its regions in the file's order."""

    file: str
    height: int
    width: int
    regions: tuple[Region, ...] = ()

    def covered(self, regions: Iterable[Region]) -> np.ndarray:
        """Where any of `regions` is, (H, W) of bool."""
        return decode_outlines((region.outline for region in regions), self.height, self.width)


class Instances:
    """An annotation file, checked but for its outlines.

    It is parsed whole, once. A file of the size of 2017's val (36,781 regions) took 2 s and 130 MB
    at the most; train has 23 times as many.

    Args:
        path: the JSON.
        classes: what its categories must be, by id.

    Raises:
        ValueError: a file that is no such JSON, other categories, an annotation of no image or
            category, images without name or size, or that are listed twice.
    """

    def __init__(self, path: Path, classes: Classes) -> None:
        self.path = path
        content = read_json(path)
        try:
            labels = _labels(content["categories"], classes)
            images = {image["id"]: image for image in content["images"]}
            _check_unique("image id", [image["id"] for image in content["images"]])
            self._annotations: dict[Any, list[dict[str, Any]]] = {key: [] for key in images}
            self._regions: dict[Any, list[Region]] = {key: [] for key in images}
            for annotation in content["annotations"]:
                key = annotation["image_id"]
                if key not in images:
                    raise ValueError(f"{_which(annotation)} is of image {key!r:.80}, {UNLISTED}")
                self._regions[key].append(_region(annotation, labels))
                self._annotations[key].append(annotation)
            self._pictures = {key: _picture(images[key]) for key in sorted(images)}
            _check_unique("file_name", self.files)
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{path} is not of COCO's format of instances: {type(error).__name__} "
                f"{error!s:.200}"
            ) from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @property
    def files(self) -> list[str]:
        """The names of the image files, in the order of the images' ids."""
        return [picture.file for picture in self._pictures.values()]

    def pictures(self, folder: Path | None) -> list[Picture]:
        """Return the images in the order of their ids, with what is outlined in each.

        Outlines that cover no pixel are left out, and those that cannot cover any (no points, or
        fewer than three) are warned of. An image is looked at before anything is drawn for it:
        where it cannot be read or is of another size than its annotations, its outlines stay empty.

        Args:
            folder: of the images; None leaves all outlines empty.

        Raises:
            ValueError: an outline that does not fit its image.
            ImportError: outlines, and no pycocotools.
        """
        found, skipped = [], list[str]()
        for key, picture in self._pictures.items():
            regions = self._regions[key]
            if folder is not None and regions and _has_stated_size(folder, picture):
                drawn = []
                for region, annotation in zip(regions, self._annotations[key], strict=True):
                    outline = self._outline(annotation, picture, skipped)
                    if outline:
                        drawn.append(Region(region.label, region.crowd, outline))
                regions = drawn
            found.append(Picture(picture.file, picture.height, picture.width, tuple(regions)))
        if skipped:
            warnings.warn(
                f"{self.path}: outlines skipped because they enclose nothing: {len(skipped)}, the "
                f"first of {skipped[0]}",
                stacklevel=4,
            )
        return found

    def _outline(self, annotation: dict[str, Any], picture: Picture, skipped: list[str]) -> bytes:
        which = _which(annotation)
        try:
            segmentation = annotation.get("segmentation")
            outline, reasons = encode_outline(segmentation, picture.height, picture.width)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.path}: {which} has no readable outline: {error}") from None
        skipped += [f"{which}: {reason}" for reason in reasons]
        return outline


UNLISTED = "which is not listed"


def _which(annotation: dict[str, Any]) -> str:
    return f"annotation {annotation.get('id')!r:.80}"


def _labels(categories: list[dict[str, Any]], classes: Classes) -> dict[int, int]:
    """The label of each category id."""
    ordered = sorted(categories, key=lambda category: category["id"])
    _check_unique("category id", [category["id"] for category in ordered])
    names = tuple(category["name"] for category in ordered)
    if names != classes.first:
        odd = set(names) ^ set(classes.first)
        raise ValueError(
            f"its {len(names)} categories are not COCO's {len(classes)}: "
            f"{', '.join(map(repr, sorted(odd, key=str)[:5]))[:200] or 'another order of ids'}"
        )
    return {category["id"]: label for label, category in enumerate(ordered)}


def _region(annotation: dict[str, Any], labels: dict[int, int]) -> Region:
    """What an annotation says, its outline not drawn yet."""
    category, crowd = annotation["category_id"], annotation.get("iscrowd", 0)
    if category not in labels:
        raise ValueError(f"{_which(annotation)} is of category {category!r:.80}, {UNLISTED}")
    if type(crowd) not in (int, bool) or crowd not in (0, 1):
        raise ValueError(f"{_which(annotation)} has iscrowd {crowd!r:.80}, expected 0 or 1")
    return Region(labels[category], bool(crowd))


def _picture(image: dict[str, Any]) -> Picture:
    file, height, width = image["file_name"], image["height"], image["width"]
    if not isinstance(file, str):
        raise ValueError(f"image {image['id']!r:.80} has the file_name {file!r:.80}, no text")
    for side in (height, width):
        if type(side) is not int or side < 1:
            raise ValueError(
                f"image {image['id']!r:.80} has the size {width!r:.40} x {height!r:.40}, expected "
                "whole numbers of 1 or more"
            )
    return Picture(file, height, width)


def _has_stated_size(folder: Path, picture: Picture) -> bool:
    try:
        return picture_size(folder / picture.file) == (picture.width, picture.height)
    except ValueError:  # told when the image is asked for
        return False


def _check_unique(what: str, values: list[Any]) -> None:
    value, times = Counter(values).most_common(1)[0] if values else ("", 0)
    if times > 1:
        raise ValueError(f"it lists the {what} {value!r:.80} {times} times")
