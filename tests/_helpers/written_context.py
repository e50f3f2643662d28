"""Tiny PASCAL Context: as released, and as mmsegmentation converts it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy import io

from tests._helpers.written_voc import write_jpeg, write_list, write_palette

#: Ids of the 59 classes among the release's 459, in the order of mmsegmentation's `_mapping`.
CONTEXT_IDS = (
    2, 259, 260, 415, 324, 9, 258, 144, 18, 19, 22, 23, 397, 25, 284, 158, 159, 416, 33, 162, 420,
    454, 295, 296, 427, 44, 45, 46, 308, 59, 440, 445, 31, 232, 65, 354, 424, 68, 326, 72, 458, 34,
    207, 80, 355, 85, 347, 220, 349, 360, 98, 187, 104, 105, 366, 189, 368, 113, 115,
)  # fmt: skip
#: Their names in `labels.txt`, by ascending id.
_NAMES = (
    "aeroplane bag bed bedclothes bench bicycle bird boat book bottle building bus cabinet car cat "
    "ceiling chair cloth computer cow cup curtain dog door fence floor flower food grass ground "
    "horse keyboard light motorbike mountain mouse person plate platform pottedplant road rock "
    "sheep shelves sidewalk sign sky snow sofa table track train tree truck tvmonitor wall water "
    "window wood"
)
CONTEXT_NAMES = _NAMES.split()


def label_lines() -> list[str]:
    """`labels.txt`: of the 459 names the 59 that matter, and stand-ins for the rest."""
    names = dict(zip(sorted(CONTEXT_IDS), CONTEXT_NAMES, strict=True))
    return [f"{i}: {names.get(i, f'other thing {i}')}" for i in range(1, 460)]


def write_context(root: Path, ids: Mapping[str, np.ndarray], split: str = "val") -> Path:
    """As released: `LabelMap`s of ids 0 to 459; the folder that holds it."""
    folder = root / "VOCdevkit" / "VOC2010"
    write_list(folder / "ImageSets" / "Main" / f"{split}.txt", list(ids))
    write_list(folder / "labels.txt", label_lines())
    (folder / "trainval").mkdir(parents=True, exist_ok=True)
    for name, values in ids.items():
        height, width = values.shape
        write_jpeg(folder / "JPEGImages" / f"{name}.jpg", width, height)
        path = folder / "trainval" / f"{name}.mat"
        io.savemat(path, {"LabelMap": values.astype(np.uint16)}, do_compression=True)  # type: ignore[attr-defined, no-untyped-call]
    return folder


def converted(ids: np.ndarray) -> np.ndarray:
    """0 for background, 1 to 59: what mmsegmentation's `pascal_context.py` makes of ids."""
    mapping = np.sort(np.array([0, *CONTEXT_IDS]))
    return np.digitize(np.where(np.isin(ids, mapping), ids, 0), mapping, right=True)


def write_context_converted(root: Path, ids: Mapping[str, np.ndarray], split: str = "val") -> Path:
    """As converted, of the same ids; the folder that holds it."""
    folder = root / "VOCdevkit" / "VOC2010"
    write_list(folder / "ImageSets" / "SegmentationContext" / f"{split}.txt", list(ids))
    for name, values in ids.items():
        height, width = values.shape
        write_jpeg(folder / "JPEGImages" / f"{name}.jpg", width, height)
        write_palette(folder / "SegmentationClassContext" / f"{name}.png", converted(values))
    return folder
