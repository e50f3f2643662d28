"""Writes NUS-WIDE, tiny, as it is once unpacked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from captum_clip_surgery.datasets import Classes


def write_nus(
    root: Path,
    shows: Mapping[str, Sequence[str]],
    part: str = "Test",
    images: str = "Flickr",
    flat: bool = False,
    photographs: Sequence[str] | None = None,
) -> None:
    r"""Lists, labels and photographs.

    Args:
        shows: concepts of each image, FOLDER\NAME.jpg.
        part: "Train" or "Test".
        images: the folder of photographs.
        flat: whether they lie in it without folders of their own.
        photographs: those that are there; None is all.
    """
    concepts = Classes.named("nus_wide81").first
    labels, lists = root / "Groundtruth" / "TrainTestLabels", root / "ImageList"
    for folder in (labels, lists, root / "ConceptsList"):
        folder.mkdir(parents=True, exist_ok=True)
    (root / "ConceptsList" / "Concepts81.txt").write_text("\r\n".join(concepts) + "\r\n")
    (lists / f"{part}Imagelist.txt").write_text("".join(f"{name} \r\n" for name in shows))
    for concept in concepts:
        lines = "".join(f"{int(concept in found)}\n" for found in shows.values())
        (labels / f"Labels_{concept}_{part}.txt").write_text(lines)
    for name in shows if photographs is None else photographs:
        album, file = name.split("\\")
        path = root / images / ("" if flat else album) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8 + len(name), 8), (200, 100, 50)).save(path)
