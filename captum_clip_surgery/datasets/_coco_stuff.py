"""COCO with a class for every pixel: COCO-Stuff's things and stuff, and COCO-Object's things."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from captum_clip_surgery._utils.files import read_lines, read_text
from captum_clip_surgery.datasets._base import ImageDataset, Labels, Sample
from captum_clip_surgery.datasets._classes import FOLDER, Classes
from captum_clip_surgery.datasets._coco import SPLITS, AnnotatedCoco, image_folder
from captum_clip_surgery.datasets._files import check_size, image_size, open_labels, open_rgb
from captum_clip_surgery.datasets._layout import check_files, check_layout, check_option
from captum_clip_surgery.datasets._paired import INVALID, lookup_table, relabel

#: Ids of COCO's 1 to 91 without annotations.
REMOVED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
#: Number of COCO's own classes, which come first among COCO-Stuff's labels.
THINGS = 80
#: Suffixes of the names of label maps: as published, and as the converters of mmsegmentation and
#: of NACLIP, TCL and GroupViT write them.
PUBLISHED, STUFF_IDS, OBJECT_IDS = "", "_labelTrainIds", "_instanceTrainIds"


@dataclass(frozen=True)
class _LabelMaps:
    """A folder of images and a folder of label maps, whose names end in `suffix`."""

    images: Path
    folder: Path
    suffix: str
    names: tuple[str, ...]

    def read(self, name: str, table: np.ndarray) -> Sample:
        """Read an image and look up its pixels' values in `table`."""
        image_path = self.images / f"{name}.jpg"
        path = self.folder / f"{name}{self.suffix}.png"
        image = open_rgb(image_path)
        check_size(image, image_path, image_size(path), path)
        return Sample(name, image, Labels(relabel(open_labels(path), table, path)))


class CocoStuff(ImageDataset):
    """COCO-Stuff 2017 (164K): a class of thing or stuff for each pixel.

    Expected files, either as published or as converted by mmsegmentation::

        root/val2017/000000000139.jpg                     from val2017.zip, or root/images/val2017
        root/stuffthingmaps/val2017/000000000139.png      from stuffthingmaps_trainval2017.zip, or
                                                          root/annotations/val2017, root/val2017
        root/annotations/val2017/000000000139_labelTrainIds.png

    Published maps hold COCO-Stuff's ids minus 1, 0 to 181, of which 11 are unused; converted maps
    hold 0 to 170. 255 is unlabeled and ignored. If both exist, the published maps are read.

    The 27 coarse classes are COCO-Stuff's supercategories, 12 of things and 15 of stuff, in the
    order of unsupervised segmentation (IIC, PiCIE). Its published results are on a subset of
    val2017, the list `Coco164kFull_Stuff_Coarse_7.txt` of PiCIE; pass such a list as `listed`.

    Args:
        root: The folder of the data set.
        split: "train" or "val".
        classes: 171, or 27 for the coarse ones.
        listed: File with the names of the images to use, one per line, in this order (default: all
            images).

    Raises:
        FileNotFoundError: If images or maps are missing.
        ValueError: If `split` or `classes` is unknown, or a name is listed twice.

    References:
        Caesar et al.: COCO-Stuff: Thing and Stuff Classes in Context. CVPR 2018 (arXiv 1612.03716);
        https://github.com/nightrome/cocostuff. Ji et al.: Invariant Information Clustering. ICCV
        2019 (arXiv 1807.06653).
    """

    def __init__(
        self,
        root: Path | str,
        split: str = "val",
        classes: int = 171,
        listed: Path | str | None = None,
    ) -> None:
        check_option("COCO-Stuff", "classes", classes, (171, 27))
        name = f"COCO-Stuff{classes} {split}2017"
        check_option(name, "split", split, SPLITS)
        maps = _find_maps(Path(root), split, (PUBLISHED, STUFF_IDS), listed)
        if maps is None:
            raise FileNotFoundError(
                f"{name} has no maps of labels at {root}. Expected: {_hint(split)}"
            )
        self._maps = maps
        self._table = _stuff_table(maps.suffix)
        if classes == 27:
            labeled = self._table >= 0
            self._table[labeled] = coarse_labels()[self._table[labeled]]
        super().__init__(name, Classes.named(f"coco_stuff{classes}"), maps.names)

    def read(self, index: int) -> Sample:
        """Read an image and its labels."""
        return self._maps.read(self.names[index], self._table)


class CocoObject(ImageDataset):
    """COCO's 80 classes and background (label 0), one for each pixel.

    Expected files, the first of these that exists::

        root/annotations/val2017/000000000139_instanceTrainIds.png   as converted for NACLIP, TCL
        root/stuffthingmaps/val2017/000000000139.png                 COCO-Stuff's, as published
        root/annotations/val2017/000000000139_labelTrainIds.png      COCO-Stuff's, as converted
        root/annotations/instances_val2017.json                      COCO's own

    and the images, root/val2017/000000000139.jpg or root/images/val2017/000000000139.jpg.

    The published protocol is based on COCO-Stuff's maps: things keep their class and everything
    else, unlabeled pixels included, is background. Nothing is ignored, and crowds have their class.
    All kinds of maps give these labels.

    From COCO's own annotations they can only be approximated: regions are painted as the authors of
    COCO-Stuff did, crowds included and the last first, so that the region listed first is on top.
    COCO-Stuff drew polygons with another program, so outlines differ by a pixel; the data set's
    `name` then ends in "painted", and results are close to those of the protocol but not equal.

    Args:
        root: The folder of the data set.
        split: "train" or "val".

    Raises:
        FileNotFoundError: If files are missing.
        ValueError: If `split` is unknown, or the annotations cannot be read.
        ImportError: If COCO's own annotations are read and pycocotools is missing.

    References:
        Caesar et al.: COCO-Stuff: Thing and Stuff Classes in Context. CVPR 2018 (arXiv 1612.03716).
        The converter `datasets/cvt_coco_object.py` of https://github.com/sinahmr/NACLIP, after
        GroupViT and TCL. The order of painting: `annotator/code/extractThings.m` of
        https://github.com/nightrome/cocostuff10k.
    """

    def __init__(self, root: Path | str, split: str = "val") -> None:
        name = f"COCO-Object {split}2017"
        check_option(name, "split", split, SPLITS)
        maps = _find_maps(Path(root), split, (OBJECT_IDS, PUBLISHED, STUFF_IDS))
        annotations = f"annotations/instances_{split}2017.json"
        if maps is None and not (Path(root) / annotations).exists():
            raise FileNotFoundError(
                f"{name} has neither maps of labels at {root} nor {annotations}. Expected: "
                f"{_hint(split)}"
            )
        self._maps = maps
        if maps is not None:
            self._table, names = _object_table(maps.suffix), maps.names
        else:
            name = f"{name} painted"
            self._painted = _PaintedCoco(name, Path(root), split, 2017, "coco_object81", True)
            names = self._painted.names
        super().__init__(name, Classes.named("coco_object81"), names, background=0)

    def read(self, index: int) -> Sample:
        """Read an image and its labels."""
        if self._maps is None:
            return self._painted.read(index)
        return self._maps.read(self.names[index], self._table)


class _PaintedCoco(AnnotatedCoco):
    """COCO's images with their regions painted, the first region on top."""

    def read(self, index: int) -> Sample:
        record = self._records[index]
        image = self._read_image(record)  # checks the stated size before it is allocated
        labels = np.zeros((record.height, record.width), np.int32)
        for region in reversed(record.regions):
            labels[record.draw([region])] = region.label + 1
        return Sample(self.names[index], image, Labels(labels))


def coarse_labels() -> np.ndarray:
    """Return the coarse label, 0 to 26, of each of COCO-Stuff's 171 classes."""
    fine = {name: label for label, name in enumerate(Classes.named("coco_stuff171").first)}
    coarse = {name: label for label, name in enumerate(Classes.named("coco_stuff27").first)}
    labels = np.full(len(fine), INVALID, np.int32)
    for group, members in _coarse_members().items():
        labels[[fine[member] for member in members]] = coarse[group]
    return labels


@cache
def _coarse_members() -> dict[str, tuple[str, ...]]:
    """Return the members of each coarse class, from lines of the form "group: member, member"."""
    lines = read_lines(FOLDER / "coco_stuff27_members.txt")
    pairs = [line.split(": ") for line in lines if not line.startswith("#")]
    return {group: tuple(members.split(", ")) for group, members in pairs}


def _stuff_table(suffix: str) -> np.ndarray:
    """Return the table from the values of COCO-Stuff's maps to its 171 labels."""
    used = [value for value in range(182) if value + 1 not in REMOVED]
    table = lookup_table(0, void=255)
    table[used if suffix == PUBLISHED else range(len(used))] = np.arange(len(used))
    return table


def _object_table(suffix: str) -> np.ndarray:
    """Return the table from the values of maps to COCO-Object's labels, background being 0."""
    if suffix == OBJECT_IDS:
        return lookup_table(THINGS + 1)
    table = _stuff_table(suffix)
    things = (table >= 0) & (table < THINGS)
    return np.where(things, table + 1, np.where(table == INVALID, INVALID, 0)).astype(np.int32)


def _find_maps(
    root: Path, split: str, suffixes: Sequence[str], listed: Path | str | None = None
) -> _LabelMaps | None:
    """Return the images and label maps with the first of the suffixes that has any."""
    name, hint = f"COCO {split}2017", _hint(split)
    images = image_folder(root, split, 2017)
    check_layout(name, root, [images], hint)
    image_names = {path.stem for path in (root / images).glob("*.jpg")}
    for suffix in suffixes:
        for parent in ("stuffthingmaps", "annotations", "."):
            folder = root / parent / f"{split}2017"
            stems = [path.stem for path in folder.glob(f"*{suffix}.png")]
            mapped = {
                stem.removesuffix(suffix) for stem in stems if suffix or "TrainIds" not in stem
            }
            if mapped:
                # Neither may be incomplete: results on a part would pass for results on all.
                names = _listed(Path(listed)) if listed else tuple(sorted(image_names | mapped))
                check_files(name, root / images, [f"{stem}.jpg" for stem in names], hint)
                check_files(name, folder, [f"{stem}{suffix}.png" for stem in names], hint)
                return _LabelMaps(root / images, folder, suffix, names)
    return None


def _listed(path: Path) -> tuple[str, ...]:
    """Return the image names in a list, without suffix."""
    names = tuple(line.removesuffix(".jpg") for line in read_text(path).split())
    name, count = Counter(names).most_common(1)[0] if names else ("", 0)
    if count > 1:
        raise ValueError(f"{path} lists {name:.80} {count} times")
    return names


def _hint(split: str) -> str:
    return (
        f"{split}2017/*.jpg (from {split}2017.zip, https://cocodataset.org/#download) and "
        f"stuffthingmaps/{split}2017/*.png (from stuffthingmaps_trainval2017.zip, "
        "https://github.com/nightrome/cocostuff#downloads), one for each image"
    )
