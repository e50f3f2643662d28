"""Scenes of the embedded model as data sets on disk, and data sets that are given in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from captum_clip_surgery.datasets import (
    Classes,
    Folder,
    ImageDataset,
    Labels,
    Sample,
    Target,
)
from captum_clip_surgery.datasets._voc import PascalVoc
from captum_clip_surgery.demo import Scene, nouns
from tests._helpers.written_folder import write_folder
from tests._helpers.written_voc import VOC_NAMES, write_list, write_palette

NAMES = ("background", *nouns())


def labels_of(scene: Scene, names: Sequence[str] = NAMES) -> np.ndarray:
    """The class of each pixel, 0 where no object is."""
    labels = np.zeros(scene.image.shape[:2], np.int32)
    for noun, mask in zip(scene.nouns, scene.masks, strict=True):
        labels[mask] = names.index(noun)
    return labels


def names_of(scenes: Iterable[Scene]) -> tuple[str, ...]:
    """The classes that scenes show: fewer prompts than of all nouns."""
    return ("background", *sorted({noun for scene in scenes for noun in scene.nouns}))


def scene_folder(
    scenes: Iterable[Scene], root: Path, jpeg: bool = False, names: Sequence[str] = NAMES
) -> Folder:
    """One's own pictures: PNG, or JPEG of quality 95."""
    samples = [
        Sample(f"{number:05}", Image.fromarray(scene.image), Labels(labels_of(scene, names)))
        for number, scene in enumerate(scenes)
    ]
    write_folder(samples, root, "\n".join(names))
    if jpeg:
        for sample in samples:
            (root / "images" / f"{sample.name}.png").unlink()
            sample.image.save(root / "images" / f"{sample.name}.jpg", quality=95)
    return Folder(root)


def of_few_nouns(scenes: Iterable[Scene], most: int = len(VOC_NAMES)) -> list[Scene]:
    """Those of at most so many nouns together, as many as VOC has classes."""
    known: set[str] = set()
    chosen = []
    for scene in scenes:
        if len(known | set(scene.nouns)) <= most:
            known |= set(scene.nouns)
            chosen.append(scene)
    return chosen


def scene_voc(scenes: Sequence[Scene], root: Path) -> PascalVoc:
    """VOC's layout, JPEG pictures and palette PNGs; its numbers stand for the scenes' nouns."""
    found = sorted({noun for scene in scenes for noun in scene.nouns})
    free = [noun for noun in nouns() if noun not in found]
    names = ("background", *(found + free)[: len(VOC_NAMES)])
    folder = root / "VOCdevkit" / "VOC2012"
    stems = [f"2007_{number:06}" for number in range(len(scenes))]
    write_list(folder / "ImageSets" / "Segmentation" / "val.txt", stems)
    (folder / "JPEGImages").mkdir(parents=True)
    for stem, scene in zip(stems, scenes, strict=True):
        path = folder / "JPEGImages" / f"{stem}.jpg"
        Image.fromarray(scene.image).save(path, quality=95)
        write_palette(folder / "SegmentationClass" / f"{stem}.png", labels_of(scene, names))
    data = PascalVoc(root, "val")
    data.classes = Classes(tuple((name,) for name in names), "the scenes' nouns")
    return data


class Given(ImageDataset):
    """Pictures and truths that are there already."""

    def __init__(
        self,
        classes: str,
        pictures: Sequence[np.ndarray],
        truths: Sequence[Target],
        background: int | None = None,
    ) -> None:
        names = [f"given {number}" for number in range(len(pictures))]
        super().__init__("given", Classes.parse(classes), names, background)
        self.pictures, self.truths = pictures, truths

    def read(self, index: int) -> Sample:
        return Sample(self.names[index], Image.fromarray(self.pictures[index]), self.truths[index])
