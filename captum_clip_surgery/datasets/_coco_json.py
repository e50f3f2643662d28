"""COCO's `instances_*.json`: the images it lists and the outlines in each."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from captum_clip_surgery._utils.files import read_json
from captum_clip_surgery.datasets._classes import Classes
from captum_clip_surgery.datasets._files import image_size
from captum_clip_surgery.datasets._outlines import decode_outlines, encode_outline

#: End of messages about references to something that the file does not list.
UNLISTED = "which is not listed"


@dataclass(frozen=True, slots=True)
class Region:
    """An instance, or a crowd of instances.

    Args:
        label: Index of its class.
        crowd: Whether it is a crowd.
        outline: COCO's compressed run-length encoding, or empty if it was not encoded. It takes
            some 300 bytes, where the JSON's polygons are thousands of Python numbers.
    """

    label: int
    crowd: bool
    outline: bytes = b""


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image's file name and size in pixels, and its regions in the order of the JSON."""

    file: str
    height: int
    width: int
    regions: tuple[Region, ...] = ()

    def draw(self, regions: Iterable[Region]) -> np.ndarray:
        """Return the union (H, W) of regions as an array of bool."""
        return decode_outlines((region.outline for region in regions), self.height, self.width)


class Instances:
    """An annotation file, of which everything but the outlines has been checked.

    The file is parsed once, as a whole. A file of the size of 2017's val (36,781 regions) took 2 s
    and at most 130 MB; train has 23 times as many regions.

    Args:
        path: The JSON file.
        classes: The expected categories, in the order of their ids.

    Raises:
        ValueError: If the file is not in COCO's format, has other categories, annotations of
            unlisted images or categories, or images without name or size or listed twice.
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
                    raise ValueError(
                        f"{_which(annotation)} belongs to image {key!r:.80}, {UNLISTED}"
                    )
                self._regions[key].append(_region(annotation, labels))
                self._annotations[key].append(annotation)
            self._records = {key: _record(images[key]) for key in sorted(images)}
            _check_unique("file_name", self.files)
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{path} is not in COCO's format for instances: {type(error).__name__} "
                f"{error!s:.200}"
            ) from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @property
    def files(self) -> list[str]:
        """The names of the image files, in the order of the image ids."""
        return [record.file for record in self._records.values()]

    def records(self, folder: Path | None) -> list[ImageRecord]:
        """Return the images and their regions, in the order of the image ids.

        Regions without a pixel are left out; a warning counts those that cannot have any because
        they have fewer than three points. For an image that cannot be read, or has another size
        than its annotations, outlines stay empty; reading the sample reports the error.

        Args:
            folder: Folder of the images, or None to leave all outlines empty.

        Raises:
            ValueError: If an outline does not fit its image.
            ImportError: If there are outlines and pycocotools is missing.
        """
        records, skipped = [], list[str]()
        for key, record in self._records.items():
            regions = self._regions[key]
            if folder is not None and regions and _has_stated_size(folder, record):
                pairs = zip(regions, self._annotations[key], strict=True)
                outlined = [
                    replace(region, outline=self._outline(annotation, record, skipped))
                    for region, annotation in pairs
                ]
                regions = [region for region in outlined if region.outline]
            records.append(replace(record, regions=tuple(regions)))
        if skipped:
            warnings.warn(
                f"{self.path}: outlines skipped because they enclose no pixel: {len(skipped)}, the "
                f"first of {skipped[0]}",
                stacklevel=4,
            )
        return records

    def _outline(
        self, annotation: dict[str, Any], record: ImageRecord, skipped: list[str]
    ) -> bytes:
        """Encode the outline of an annotation; append reasons for skipped parts to `skipped`."""
        which = _which(annotation)
        try:
            segmentation = annotation.get("segmentation")
            outline, reasons = encode_outline(segmentation, record.height, record.width)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.path}: {which} has no readable outline: {error}") from None
        skipped += [f"{which}: {reason}" for reason in reasons]
        return outline


def _which(annotation: dict[str, Any]) -> str:
    return f"annotation {annotation.get('id')!r:.80}"


def _labels(categories: list[dict[str, Any]], classes: Classes) -> dict[int, int]:
    """Return the label of each category id."""
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
    """Return the region of an annotation without its outline."""
    category, crowd = annotation["category_id"], annotation.get("iscrowd", 0)
    if category not in labels:
        raise ValueError(f"{_which(annotation)} has category {category!r:.80}, {UNLISTED}")
    if type(crowd) not in (int, bool) or crowd not in (0, 1):
        raise ValueError(f"{_which(annotation)} has iscrowd {crowd!r:.80}, expected 0 or 1")
    return Region(labels[category], bool(crowd))


def _record(image: dict[str, Any]) -> ImageRecord:
    file, height, width = image["file_name"], image["height"], image["width"]
    if not isinstance(file, str):
        raise ValueError(f"image {image['id']!r:.80} has the file_name {file!r:.80}, expected text")
    for side in (height, width):
        if type(side) is not int or side < 1:
            raise ValueError(
                f"image {image['id']!r:.80} has the size {width!r:.40} x {height!r:.40}, expected "
                "whole numbers of 1 or more"
            )
    return ImageRecord(file, height, width)


def _has_stated_size(folder: Path, record: ImageRecord) -> bool:
    try:
        return image_size(folder / record.file) == (record.width, record.height)
    except ValueError:  # raised again when the sample is read
        return False


def _check_unique(what: str, values: list[Any]) -> None:
    value, times = Counter(values).most_common(1)[0] if values else ("", 0)
    if times > 1:
        raise ValueError(f"it lists the {what} {value!r:.80} {times} times")
