"""COCO's `instances_*.json`: the images it lists, and what is outlined in each."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from captum_clip_surgery.data.base import Classes


@dataclass(frozen=True, slots=True)
class Region:
    """An instance, or a crowd of them, of class `label`.

    `outline` is COCO's compressed run-length encoding: some 300 bytes, where polygons of the JSON
    are thousands of Python numbers. Without outlines it is empty.
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
        size = [self.height, self.width]
        runs = [{"size": size, "counts": region.outline} for region in regions]
        if not runs:
            return np.zeros(size, bool)
        mask = _pycocotools_mask()
        covered: np.ndarray = mask.decode(mask.merge(runs)).astype(bool)
        return covered


def read_pictures(path: Path, classes: Classes, outlines: bool = True) -> list[Picture]:
    """The images of an annotation file, in the order of their ids.

    Args:
        path: the JSON. It is parsed whole, once. A file of the size of 2017's val (36,781 regions)
            took 2 s and 130 MB at the most, of which 11 MB are kept; train has 23 times as many.
        classes: what its categories must be, by id.
        outlines: whether to keep where regions are. Those too small for a single pixel are left
            out then.

    Raises:
        ValueError: a file that is no such JSON, other categories, an annotation of no image or
            category, or whose outline does not fit its image.
        ImportError: outlines, and no pycocotools.
    """
    try:
        with path.open(encoding="utf-8") as file:
            content = json.load(file)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from None
    try:
        labels = _labels(content["categories"], classes)
        found: dict[int, list[Region]] = {image["id"]: [] for image in content["images"]}
        images = {image["id"]: image for image in content["images"]}
        for annotation in content["annotations"]:
            region = _region(annotation, labels, images, outlines)
            if region is not None:
                found[annotation["image_id"]].append(region)
        return [
            Picture(image["file_name"], image["height"], image["width"], tuple(found[key]))
            for key, image in sorted(images.items())
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not of COCO's format of instances: {type(error).__name__} {error}"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _labels(categories: list[dict[str, Any]], classes: Classes) -> dict[int, int]:
    """The label of each category id."""
    ordered = sorted(categories, key=lambda category: category["id"])
    names = tuple(category["name"] for category in ordered)
    if names != classes.first:
        odd = set(names) ^ set(classes.first)
        raise ValueError(
            f"its {len(names)} categories are not COCO's {len(classes)}: "
            f"{', '.join(sorted(odd)[:5]) or 'another order of ids'}"
        )
    return {category["id"]: label for label, category in enumerate(ordered)}


def _region(
    annotation: dict[str, Any],
    labels: dict[int, int],
    images: dict[int, dict[str, Any]],
    outlines: bool,
) -> Region | None:
    """What an annotation says; nothing if it covers no pixel."""
    which = f"annotation {annotation.get('id')}"
    image, category = images.get(annotation["image_id"]), annotation["category_id"]
    if image is None:
        raise ValueError(f"{which} is of image {annotation['image_id']}, which is not listed")
    if category not in labels:
        raise ValueError(f"{which} is of category {category}, which is not listed")
    label, crowd = labels[category], bool(annotation.get("iscrowd", 0))
    if not outlines:
        return Region(label, crowd)
    height, width = image["height"], image["width"]
    mask = _pycocotools_mask()
    try:
        outline = _outline(mask, annotation["segmentation"], height, width)
    except Exception as error:  # pycocotools raises plain ones
        raise ValueError(f"{which} has no readable outline: {error}") from None
    covered = mask.area({"size": [height, width], "counts": outline})
    return Region(label, crowd, outline) if covered else None


def _outline(mask: ModuleType, segmentation: Any, height: int, width: int) -> bytes:
    """Polygons, uncompressed or compressed runs, as pycocotools' `annToRLE` reads them."""
    if isinstance(segmentation, list):
        for polygon in segmentation:
            if len(polygon) < 6 or len(polygon) % 2:
                raise ValueError(f"a polygon of {len(polygon)} numbers, expected x, y of 3 points")
        return bytes(mask.merge(mask.frPyObjects(segmentation, height, width))["counts"])
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(f"it is of size {segmentation['size']}, its image of {[height, width]}")
    counts = segmentation["counts"]
    if isinstance(counts, list):
        if sum(counts) != height * width:
            raise ValueError(f"its runs are of {sum(counts)} pixels, not {height} x {width}")
        return bytes(mask.frPyObjects(segmentation, height, width)["counts"])
    runs = counts.encode("ascii")
    mask.decode({"size": [height, width], "counts": runs})  # refuses what overruns the image
    return bytes(runs)


def _pycocotools_mask() -> ModuleType:
    try:
        from pycocotools import mask
    except ImportError:
        raise ImportError(
            "COCO's outlines need pycocotools; install the extra: "
            "pip install 'captum_clip_surgery[datasets]'"
        ) from None
    return mask
