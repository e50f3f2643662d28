"""Writes Cityscapes, tiny, as it is once unpacked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_city(
    root: Path,
    name: str,
    label_ids: np.ndarray | None = None,
    train_ids: np.ndarray | None = None,
    split: str = "val",
) -> None:
    """An image and its files of labels; `name` is CITY_SEQUENCE_FRAME."""
    city = name.split("_")[0]
    image = root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png"
    labels = root / "gtFine" / split / city
    image.parent.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    stored = label_ids if label_ids is not None else train_ids
    assert stored is not None
    pixels = np.random.default_rng(len(name)).integers(0, 256, (*stored.shape, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(image)
    for what, values in (("labelIds", label_ids), ("labelTrainIds", train_ids)):
        if values is not None:
            Image.fromarray(values.astype(np.uint8)).save(labels / f"{name}_gtFine_{what}.png")
    # What else the archive holds.
    Image.fromarray(pixels.astype(np.uint8)).save(labels / f"{name}_gtFine_color.png")
    (labels / f"{name}_gtFine_polygons.json").write_text("{}")
