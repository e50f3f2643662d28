"""Tiny COCO and COCO-Stuff on disk, laid out and named as the real ones are once unpacked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torchvision.models._meta import _COCO_CATEGORIES

#: COCO's category ids and names, 1 to 90, as torchvision lists them for its detectors.
CATEGORIES = {
    key: name for key, name in enumerate(_COCO_CATEGORIES) if name not in ("__background__", "N/A")
}
ID = {name: key for key, name in CATEGORIES.items()}


def image_file(key: int, year: int = 2017, split: str = "val") -> str:
    return f"{key:012}.jpg" if year == 2017 else f"COCO_{split}{year}_{key:012}.jpg"


def write_image(path: Path, width: int, height: int, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(path.name.encode())
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, quality=95)


def polygons(name: str, *outlines: Sequence[float]) -> dict[str, Any]:
    """An instance as polygons of x, y, x, y ..."""
    return {"category_id": ID[name], "iscrowd": 0, "segmentation": [list(o) for o in outlines]}


def runs(name: str, mask: np.ndarray, crowd: int = 1) -> dict[str, Any]:
    """A region as uncompressed runs down the columns, as COCO has its crowds."""
    flat = mask.T.ravel().astype(int)
    starts = np.flatnonzero(np.diff(flat, prepend=0))
    counts = np.diff(np.concatenate([[0], starts, [flat.size]])).tolist()
    segmentation = {"size": list(mask.shape), "counts": counts}
    return {"category_id": ID[name], "iscrowd": crowd, "segmentation": segmentation}


def compressed(name: str, mask: np.ndarray, crowd: int = 0) -> dict[str, Any]:
    """A region as compressed runs, as pycocotools writes results."""
    from pycocotools import mask as _untyped_coder

    coder: Any = _untyped_coder

    encoded = coder.encode(np.asfortranarray(mask.astype(np.uint8)))
    segmentation = {"size": list(mask.shape), "counts": encoded["counts"].decode()}
    return {"category_id": ID[name], "iscrowd": crowd, "segmentation": segmentation}


def box(height: int, width: int, top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = True
    return mask


#: Of each image width, height and annotations: ids out of order, as in COCO's own file.
WIDTH, HEIGHT = 24, 16
PICTURES: Mapping[int, Sequence[dict[str, Any]]] = {
    # two people, one in two parts; a crowd of people over one of them; a dog on the other
    285: (
        polygons("person", [1, 1, 8, 1, 8, 9, 1, 9]),
        polygons("person", [12, 2, 15, 2, 15, 8, 12, 8], [12, 10, 15.5, 10, 13, 14]),
        compressed("dog", box(HEIGHT, WIDTH, 5, 5, 12, 14)),
        runs("person", box(HEIGHT, WIDTH, 0, 6, 7, 24)),
    ),
    # an instance, and a crowd of another class
    139: (
        polygons("toothbrush", [2.5, 3.5, 20.25, 4, 10, 12]),
        runs("book", box(HEIGHT, WIDTH, 9, 0, 16, 24)),
    ),
    # a crowd and nothing else
    724: (compressed("broccoli", box(HEIGHT, WIDTH, 2, 2, 6, 6), crowd=1),),
    # nothing
    632: (),
    # an instance that covers no pixel, and one that does; one beyond the border
    776: (
        polygons("fork", [3.1, 3.1, 3.2, 3.1, 3.2, 3.2]),
        polygons("cup", [20, 10, 30, 10, 30, 20, 20, 20]),
    ),
}


def write_coco(
    root: Path,
    pictures: Mapping[int, Sequence[dict[str, Any]]] = PICTURES,
    split: str = "val",
    year: int = 2017,
) -> Path:
    """Images of `WIDTH` x `HEIGHT` and their instances_*.json, whose path it returns."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for key, regions in pictures.items():
        name = image_file(key, year, split)
        mode = "L" if key == 139 else "RGB"  # COCO has grey images
        write_image(root / f"{split}{year}" / name, WIDTH, HEIGHT, mode)
        images.append({"id": key, "file_name": name, "width": WIDTH, "height": HEIGHT})
        for region in regions:
            extra = {"id": len(annotations) + 1, "image_id": key, "area": 1.0}
            annotations.append(extra | {"bbox": [0.0, 0.0, 1.0, 1.0]} | dict(region))
    categories = [{"id": k, "name": n, "supercategory": "any"} for k, n in CATEGORIES.items()]
    path = root / "annotations" / f"instances_{split}{year}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"images": images, "annotations": annotations, "categories": categories[::-1]}
    path.write_text(json.dumps({"info": {}, "licenses": []} | content))
    return path


def write_maps(
    root: Path, maps: Mapping[int, np.ndarray], folder: str, ending: str = "", images: str = ""
) -> None:
    """Maps of labels and their images, e.g. in stuffthingmaps/val2017; `images` is above theirs."""
    for key, values in maps.items():
        height, width = values.shape
        write_image(root / images / "val2017" / image_file(key), width, height)
        path = root / folder / "val2017" / f"{key:012}{ending}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.astype(np.uint8)).save(path)
