"""Tiny ImageNet-S in the layout that its `data_preparation.sh` makes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from timm.data import ImageNetInfo

from tests._helpers.written_voc import write_jpeg

#: WordNet ids of the first categories of ImageNet-S-50.
FIRST = ("n01443537", "n01491361", "n01531178", "n01644373")


def colours(labels: np.ndarray) -> np.ndarray:
    """Numbers as the toolkit stores them: (number % 256, number / 256, 0)."""
    return np.stack([labels % 256, labels // 256, 0 * labels], -1).astype(np.uint8)


def write_imagenet_s(
    root: Path, labels: Mapping[str, np.ndarray], size: int = 50, split: str = "validation"
) -> Path:
    """Images and labels by `wnid/name`, among folders of `size` categories; their folder."""
    folder = root / f"ImageNetS{size}"
    own = sorted({name.split("/")[0] for name in labels})
    others = [wnid for wnid in ImageNetInfo().label_names() if wnid not in own]
    for wnid in [*own, *others[: size - len(own)]]:
        for part in (split, f"{split}-segmentation"):
            (folder / part / wnid).mkdir(parents=True, exist_ok=True)
    for name, values in labels.items():
        height, width = values.shape
        write_jpeg(folder / split / f"{name}.JPEG", width, height)
        Image.fromarray(colours(values)).save(folder / f"{split}-segmentation" / f"{name}.png")
    return folder
