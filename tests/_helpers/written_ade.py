"""Writes ADE20K of the scene parsing challenge, tiny, as it is once unpacked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_ade(
    root: Path,
    name: str,
    labels: np.ndarray,
    mode: str = "RGB",
    split: str = "validation",
    exif_rotation: int | None = None,
) -> None:
    """An image, of `mode`, and its labels, 0 to 150."""
    folder = root / "ADEChallengeData2016"
    images, annotations = folder / "images" / split, folder / "annotations" / split
    images.mkdir(parents=True, exist_ok=True)
    annotations.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", labels.shape[::-1], (200, 100, 50)).convert(mode)
    exif = Image.Exif()
    if exif_rotation is not None:
        exif[0x0112] = exif_rotation
    image.save(images / f"{name}.jpg", exif=exif)
    Image.fromarray(labels.astype(np.uint8)).save(annotations / f"{name}.png")
