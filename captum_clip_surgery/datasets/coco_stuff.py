"""COCO with every pixel labelled: COCO-Stuff's things and stuff, and COCO-Object's things."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from captum_clip_surgery.datasets.base import (
    IGNORED,
    Classes,
    DataSet,
    Labels,
    Sample,
    check_layout,
)
from captum_clip_surgery.datasets.coco import (
    check_split,
    image_folder,
    open_annotated,
    open_image,
)
from captum_clip_surgery.datasets.coco_json import Picture
from captum_clip_surgery.datasets.files import check_files, read_text
from captum_clip_surgery.datasets.paired import INVALID, read_pair, relabel

#: Classes that COCO has ids for (1 to 91) and no annotations of.
REMOVED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
#: COCO-Stuff's labels start with these, COCO's own classes.
THINGS = 80
#: How names of maps end: as published, and as the converters of mmsegmentation and of NACLIP,
#: TCL and GroupViT write them.
PUBLISHED, STUFF_IDS, OBJECT_IDS = "", "_labelTrainIds", "_instanceTrainIds"


@dataclass(frozen=True)
class _Maps:
    """Images, and maps of their labels, of the same names but for `ending`."""

    images: Path
    folder: Path
    ending: str
    names: tuple[str, ...]

    def read(self, name: str, table: np.ndarray) -> Sample:
        """The image, and its pixels' values looked up in `table`."""
        path = self.folder / f"{name}{self.ending}.png"
        image, values = read_pair(self.images / f"{name}.jpg", path)
        return Sample(name, image, Labels(relabel(values, table, path)))


class CocoStuff(DataSet):
    """COCO-Stuff 2017 (164K): a class of thing or stuff for each pixel, `Labels`.

    Expected, either as published or as mmsegmentation's converter leaves it::

        root/val2017/000000000139.jpg                     from val2017.zip, or root/images/val2017
        root/stuffthingmaps/val2017/000000000139.png      from stuffthingmaps_trainval2017.zip, or
                                                          root/annotations/val2017, root/val2017
        root/annotations/val2017/000000000139_labelTrainIds.png

    Published maps hold COCO-Stuff's ids less 1, 0 to 181, of which 11 are unused, and converted
    ones 0 to 170. 255 is unlabelled: `IGNORED`. The published are read where there are both.

    The 27 coarse classes are COCO-Stuff's supercategories, 12 of things and 15 of stuff, in the
    order of unsupervised segmentation (IIC, PiCIE). Its published results are of a part of val2017
    (the list `Coco164kFull_Stuff_Coarse_7.txt` that PiCIE curated): `listed` takes such a list.

    Args:
        root: the folder of the above.
        split: train or val.
        classes: 171, or 27 coarse ones.
        listed: a file of the names of images to keep, one a line, in its order. None keeps all.

    Raises:
        FileNotFoundError: images or maps are missing.
        ValueError: a split or number of classes that there is not, or a name listed twice.

    Source: Caesar et al., COCO-Stuff: Thing and Stuff Classes in Context, CVPR 2018,
    arXiv:1612.03716; https://github.com/nightrome/cocostuff; Ji et al., Invariant Information
    Clustering, ICCV 2019, arXiv:1807.06653.
    """

    def __init__(
        self,
        root: Path | str,
        split: str = "val",
        classes: int = 171,
        listed: Path | str | None = None,
    ) -> None:
        if classes not in (171, 27):
            raise ValueError(f"COCO-Stuff has 171 classes or 27 coarse ones, not {classes!r}")
        name = f"COCO-Stuff{classes} {split}2017"
        check_split(name, split)
        maps = _find_maps(Path(root), split, (PUBLISHED, STUFF_IDS), listed)
        if maps is None:
            raise FileNotFoundError(
                f"{name} has no maps of labels at {root}. Expected: {_hint(split)}"
            )
        self._maps = maps
        self._table = _table(maps.ending)
        if classes == 27:
            labelled = self._table >= 0
            self._table[labelled] = coarse_labels()[self._table[labelled]]
        super().__init__(name, Classes.named(f"coco_stuff{classes}"), maps.names)

    def read(self, index: int) -> Sample:
        return self._maps.read(self.names[index], self._table)


class CocoObject(DataSet):
    """COCO's 80 classes and background (label 0), one for each pixel: `Labels`.

    Expected, the first of these there is::

        root/annotations/val2017/000000000139_instanceTrainIds.png   as converted for NACLIP, TCL
        root/stuffthingmaps/val2017/000000000139.png                 COCO-Stuff's, see `CocoStuff`
        root/annotations/val2017/000000000139_labelTrainIds.png      converted, see `CocoStuff`
        root/annotations/instances_val2017.json                      COCO's own

    and the images, root/val2017/000000000139.jpg, or under root/images/val2017.

    The published protocol is made of COCO-Stuff's maps: things keep their class, and all else,
    unlabelled pixels too, is background. Nothing is ignored, crowds are of their class. That is
    what each kind of map gives.

    Of COCO's own annotations it can only be redone: they are painted as the authors of COCO-Stuff
    did, crowds too and the last first, so that of those that overlap the one listed first is
    on top. COCO-Stuff drew polygons by another program, so outlines differ by a pixel; the data
    set's `name` then ends in "painted", and its results are near those of the protocol, not them.

    Args:
        root: the folder of the above.
        split: train or val.

    Raises:
        FileNotFoundError: files are missing.
        ValueError: a split that there is not, or annotations that cannot be read.
        ImportError: it is to be painted, and there is no pycocotools.

    Source: Caesar et al. (see `CocoStuff`); the converter `datasets/cvt_coco_object.py` of
    https://github.com/sinahmr/NACLIP, after GroupViT and TCL; the order of painting:
    `annotator/code/extractThings.m` of https://github.com/nightrome/cocostuff10k.
    """

    def __init__(self, root: Path | str, split: str = "val") -> None:
        name = f"COCO-Object {split}2017"
        check_split(name, split)
        self._maps = _find_maps(Path(root), split, (OBJECT_IDS, PUBLISHED, STUFF_IDS))
        self._pictures: list[Picture] = []
        names: Sequence[str]
        if self._maps is not None:
            names, self._table = self._maps.names, _table(self._maps.ending)
            if self._maps.ending != OBJECT_IDS:
                self._table = _things(self._table)
        else:
            if not (Path(root) / "annotations" / f"instances_{split}2017.json").exists():
                raise FileNotFoundError(
                    f"{name} has neither maps of labels at {root} nor "
                    f"annotations/instances_{split}2017.json. Expected: {_hint(split)}"
                )
            name = f"{name} painted"
            self._images, self._pictures = open_annotated(
                name, Path(root), split, 2017, outlines=True
            )
            names = [Path(picture.file).stem for picture in self._pictures]
        super().__init__(name, Classes.named("coco_object81"), names, background=0)

    def read(self, index: int) -> Sample:
        if self._maps is not None:
            return self._maps.read(self.names[index], self._table)
        picture = self._pictures[index]
        image = open_image(self._images, picture)
        return Sample(self.names[index], image, Labels(_painted(picture)))


def coarse_labels() -> np.ndarray:
    """Of each of the 171 classes of COCO-Stuff the label among the 27 coarse ones."""
    fine = {name: label for label, name in enumerate(Classes.named("coco_stuff171").first)}
    coarse = {name: label for label, name in enumerate(Classes.named("coco_stuff27").first)}
    labels = np.full(len(fine), INVALID, np.int32)
    for group, members in _members().items():
        labels[[fine[member] for member in members]] = coarse[group]
    return labels


@cache
def _members() -> dict[str, tuple[str, ...]]:
    """The classes of each coarse one: `group: member, member` a line."""
    path = Path(__file__).parent / "classes" / "coco_stuff27_members.txt"
    lines = path.read_text(encoding="utf-8").splitlines()
    pairs = [line.split(": ") for line in lines if not line.startswith("#")]
    return {group: tuple(members.split(", ")) for group, members in pairs}


def _table(ending: str) -> np.ndarray:
    """The label of each value of a pixel, of maps whose names end so."""
    table = np.full(256, INVALID, np.int32)
    if ending == OBJECT_IDS:
        table[: THINGS + 1] = np.arange(THINGS + 1)
        return table
    used = [value for value in range(182) if value + 1 not in REMOVED]
    table[used if ending == PUBLISHED else range(len(used))] = np.arange(len(used))
    table[255] = IGNORED
    return table


def _things(table: np.ndarray) -> np.ndarray:
    """A table of COCO-Stuff's labels as one of COCO-Object's: background is 0."""
    thing = (table >= 0) & (table < THINGS)
    return np.where(thing, table + 1, np.where(table == INVALID, INVALID, 0)).astype(np.int32)


def _painted(picture: Picture) -> np.ndarray:
    labels = np.zeros((picture.height, picture.width), np.int32)
    for region in reversed(picture.regions):
        labels[picture.covered([region])] = region.label + 1
    return labels


def _find_maps(
    root: Path, split: str, endings: Sequence[str], listed: Path | str | None = None
) -> _Maps | None:
    """The images and their maps, of the first ending of which there are any."""
    name, hint = f"COCO {split}2017", _hint(split)
    images = image_folder(root, split, 2017)
    check_layout(name, root, [images], hint)
    pictures = {path.stem for path in (root / images).glob("*.jpg")}
    for ending in endings:
        for place in ("stuffthingmaps", "annotations", "."):
            folder = root / place / f"{split}2017"
            stems = [path.stem for path in folder.glob(f"*{ending}.png")]
            mapped = {
                stem.removesuffix(ending) for stem in stems if ending or "TrainIds" not in stem
            }
            if mapped:
                # Of neither may some be missing: results of a part would pass for the whole's.
                names = _listed(Path(listed)) if listed else tuple(sorted(pictures | mapped))
                check_files(name, root / images, [f"{stem}.jpg" for stem in names], hint)
                check_files(name, folder, [f"{stem}{ending}.png" for stem in names], hint)
                return _Maps(root / images, folder, ending, names)
    return None


def _listed(path: Path) -> tuple[str, ...]:
    lines = read_text(path).split()
    names = tuple(line.removesuffix(".jpg") for line in lines)
    name, times = Counter(names).most_common(1)[0] if names else ("", 0)
    if times > 1:
        raise ValueError(f"{path} lists {name:.80} {times} times")
    return names


def _hint(split: str) -> str:
    return (
        f"{split}2017/*.jpg (of {split}2017.zip, https://cocodataset.org/#download) and "
        f"stuffthingmaps/{split}2017/*.png (of stuffthingmaps_trainval2017.zip, "
        "https://github.com/nightrome/cocostuff#downloads), one for each image"
    )
