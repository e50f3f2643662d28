"""One's own pictures and masks, in the layout that `Folder` reads."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from captum_clip_surgery.datasets import IGNORE_INDEX, Labels, Masks, Sample


def write_folder(samples: Iterable[Sample], root: Path, classes: str) -> Path:
    """Samples as files: PNG pictures, and masks of the kind that each has; the root."""
    names = [line.split(",")[0].strip() for line in classes.splitlines() if line[:1] != "#"]
    (root / "images").mkdir(parents=True, exist_ok=True)
    (root / "masks").mkdir(exist_ok=True)
    (root / "classes.txt").write_text(classes)
    for sample in samples:
        path = root / "images" / f"{sample.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        sample.image.save(path)
        if isinstance(sample.target, Labels):
            write_numbers(root / "masks" / f"{sample.name}.png", sample.target.labels)
        else:
            assert isinstance(sample.target, Masks)
            own = root / "masks" / sample.name
            own.mkdir(parents=True, exist_ok=True)
            for label, mask in sample.target.masks.items():
                Image.fromarray(mask).save(own / f"{names[label]}.png")
    return root


def write_numbers(path: Path, labels: np.ndarray) -> None:
    """A PNG of labels in 8 bits of grey, of 16 where they are many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = np.uint8 if labels.max() < 255 else np.uint16
    Image.fromarray(np.where(labels == IGNORE_INDEX, np.iinfo(kind).max, labels).astype(kind)).save(
        path
    )


def write_few_bits(path: Path, labels: np.ndarray, bits: int) -> None:
    """A grey PNG of 1, 2 or 4 bits a pixel, which shrinking tools make and Pillow does not."""
    height, width = labels.shape
    each = 8 // bits
    padded = np.zeros((height, -(-width // each) * each), np.uint8)
    padded[:, :width] = labels
    shifts = np.arange(each)[::-1] * bits
    rows = (padded.reshape(height, -1, each) << shifts).sum(-1).astype(np.uint8)
    content = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(content)), (b"IEND", b""))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks))


def _chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )
