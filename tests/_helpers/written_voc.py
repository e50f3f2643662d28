"""Tiny PASCAL VOC in the layout of the released archives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

#: VOCinit.m's order: what the numbers 1 to 20 in `SegmentationClass` stand for.
_NAMES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike "
    "person pottedplant sheep sofa train tvmonitor"
)
VOC_NAMES = _NAMES.split()

#: Each image's objects for `write_voc_tags`: class and whether difficult, None where the file does
#: not say; the rule of the kit's lists is in `VOC_LISTS`.
VOC_OBJECTS: Mapping[str, Sequence[tuple[str, int | None]]] = {
    "000001": [("dog", 0), ("person", 0)],
    "000002": [("train", 1)],
    "000003": [("sofa", 1), ("chair", 1), ("chair", 0)],
    "000004": [("car", 0), ("car", 1), ("tvmonitor", None)],
    "000006": [],
}
#: 1 and 0 of `ImageSets/Main/CLASS_test.txt`; everything else is -1.
VOC_LISTS: Mapping[str, Mapping[str, int]] = {
    "dog": {"000001": 1},
    "person": {"000001": 1},
    "train": {"000002": 0},
    "sofa": {"000003": 0},
    "chair": {"000003": 1},
    "car": {"000004": 1},
    "tvmonitor": {"000004": 1},
}


def write_jpeg(
    path: Path, width: int, height: int, mode: str = "RGB", rotation: int | None = None
) -> None:
    """A picture, left half dark and right half bright; `rotation` is EXIF's number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.full((height, width), 40, np.uint8)
    values[:, width // 2 :] = 210
    image = Image.fromarray(values).convert(mode)
    exif = Image.Exif()
    if rotation is not None:
        exif[0x0112] = rotation
    image.save(path, "JPEG", exif=exif)


def write_palette(path: Path, labels: np.ndarray) -> None:
    """A PNG whose palette indices are the labels, as VOC's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette([c for i in range(256) for c in (i * 37 % 256, i * 59 % 256, 255 - i)])
    image.save(path, "PNG")


def write_list(path: Path, names: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))


def write_voc(root: Path, labels: Mapping[str, np.ndarray], split: str = "val") -> Path:
    """VOC2012's images and labels of segmentation; the folder that holds them."""
    folder = root / "VOCdevkit" / "VOC2012"
    write_list(folder / "ImageSets" / "Segmentation" / f"{split}.txt", list(labels))
    for name, values in labels.items():
        height, width = values.shape
        write_jpeg(folder / "JPEGImages" / f"{name}.jpg", width, height)
        write_palette(folder / "SegmentationClass" / f"{name}.png", values)
    return folder


def write_voc_tags(
    root: Path,
    objects: Mapping[str, Sequence[tuple[str, int | None]]] = VOC_OBJECTS,
    year: str = "2007",
    split: str = "test",
) -> Path:
    """Images, annotations and the list of the main tasks; the folder that holds them."""
    folder = root / "VOCdevkit" / f"VOC{year}"
    write_list(folder / "ImageSets" / "Main" / f"{split}.txt", list(objects))
    for name, found in objects.items():
        write_jpeg(folder / "JPEGImages" / f"{name}.jpg", 8, 6)
        path = folder / "Annotations" / f"{name}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_annotation(name, year, found))
    return folder


def _annotation(name: str, year: str, objects: Sequence[tuple[str, int | None]]) -> str:
    things = "".join(_object(what, difficult) for what, difficult in objects)
    return (
        f"<annotation>\n\t<folder>VOC{year}</folder>\n\t<filename>{name}.jpg</filename>\n"
        "\t<size><width>8</width><height>6</height><depth>3</depth></size>\n"
        f"\t<segmented>0</segmented>\n{things}</annotation>\n"
    )


def _object(name: str, difficult: int | None) -> str:
    said = "" if difficult is None else f"\t\t<difficult>{difficult}</difficult>\n"
    # People have parts with names of their own, as in the layout taster.
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>4</ymax></bndbox>"
    part = f"\t\t<part><name>head</name>{box}</part>\n" if name == "person" else ""
    return (
        f"\t<object>\n\t\t<name>{name}</name>\n\t\t<pose>Left</pose>\n"
        f"\t\t<truncated>1</truncated>\n{said}\t\t{box}\n{part}\t</object>\n"
    )
