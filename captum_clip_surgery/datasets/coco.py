"""COCO: 80 classes of objects, as masks of each class and as tags of images."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from captum_clip_surgery.datasets.base import (
    Classes,
    DataSet,
    Masks,
    Sample,
    Tags,
    check_layout,
    open_rgb,
)
from captum_clip_surgery.datasets.coco_json import Instances, Picture
from captum_clip_surgery.datasets.files import check_files

#: Those with annotations that are public.
SPLITS = ("train", "val")
YEARS = (2014, 2017)


class _Annotated(DataSet):
    """Images that `instances_{split}{year}.json` lists."""

    def __init__(
        self, root: Path | str, split: str, year: int, outlines: bool, unannotated: bool
    ) -> None:
        name = f"COCO {split}{year}"
        self._folder, self._pictures = open_annotated(name, Path(root), split, year, outlines)
        if not unannotated:
            self._pictures = [picture for picture in self._pictures if self._counts(picture)]
        names = [Path(picture.file).stem for picture in self._pictures]
        super().__init__(name, Classes.named("coco80"), names)

    def _counts(self, picture: Picture) -> bool:
        return bool(picture.regions)


class Coco(_Annotated):
    """COCO's objects, where each class is: `Masks` of the classes there are.

    Expected::

        root/annotations/instances_val2017.json   from annotations_trainval2017.zip
        root/val2017/000000000139.jpg             from val2017.zip, or under root/images/val2017

    A class's mask is the union of its instances, as pycocotools draws them; masks of several
    classes may overlap. Regions that are crowds (`iscrowd`) of a class are neither right nor wrong
    in COCO's own evaluation, so they are `ignored` of that class, less its instances. A class of
    which there is only a crowd is not present: COCO's evaluation has nothing to find there either.
    Its pixels are in `ignored` all the same, which tells it from a class that is not there.
    Instances so small that pycocotools draws no pixel of them are left out.

    Images without an instance have nothing to find and are left out: of val2017's 5,000 the 48
    without annotation, and those that hold crowds alone.

    Making one parses the JSON once and reads the header of each annotated image. What it keeps is
    compact, and goes to the workers of a data loader. Outlines without points, or with fewer than
    three, are skipped with a warning that counts them and names the first.

    Args:
        root: the folder of the above.
        split: train or val.
        year: 2014 or 2017.
        unannotated: keep images without an instance; they have no masks.

    Raises:
        FileNotFoundError: files are missing.
        ValueError: annotations that cannot be read, or a split or year that there is not.
        ImportError: no pycocotools.

    Source: Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014, arXiv:1405.0312;
    https://cocodataset.org; crowds after `COCOeval` of pycocotools.
    """

    def __init__(
        self, root: Path | str, split: str = "val", year: int = 2017, unannotated: bool = False
    ) -> None:
        super().__init__(root, split, year, outlines=True, unannotated=unannotated)

    def _counts(self, picture: Picture) -> bool:
        return any(not region.crowd for region in picture.regions)

    def read(self, index: int) -> Sample:
        picture = self._pictures[index]
        image = open_image(self._folder, picture)  # holds the sizes to each other
        masks, ignored = {}, {}
        for label in sorted({region.label for region in picture.regions}):
            regions = [region for region in picture.regions if region.label == label]
            inside = picture.covered(region for region in regions if not region.crowd)
            crowd = picture.covered(region for region in regions if region.crowd) & ~inside
            if inside.any():
                masks[label] = inside
            if crowd.any():
                ignored[label] = crowd
        return Sample(self.names[index], image, Masks(masks, ignored))


class CocoTags(_Annotated):
    """COCO as multi-label recognition has it: `Tags` of the classes an image shows.

    Expected::

        root/annotations/instances_val2014.json              from annotations_trainval2014.zip
        root/val2014/COCO_val2014_000000000042.jpg           from val2014.zip, or under root/images

    Every annotation counts, crowds too: a class of which an image shows only a crowd is present.
    So does the protocol of multi-label recognition (`CocoDetection` of Ridnik et al., ML-Decoder,
    helper_functions.py, which goes over all annotations of an image). Nothing is unknown.

    Images without annotation show none of the classes and are kept, 367 of val2014's 40,504. That
    code leaves them out (its validation is of 40,137 images), and so does `unannotated=False`.

    Args:
        root: the folder of the above.
        split: train or val.
        year: 2014 or 2017.
        unannotated: keep images without annotation.

    Raises:
        FileNotFoundError: files are missing.
        ValueError: annotations that cannot be read, or a split or year that there is not.

    Source: Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014, arXiv:1405.0312;
    https://cocodataset.org; https://github.com/Alibaba-MIIL/ML_Decoder.
    """

    def __init__(
        self, root: Path | str, split: str = "val", year: int = 2014, unannotated: bool = True
    ) -> None:
        super().__init__(root, split, year, outlines=False, unannotated=unannotated)

    def read(self, index: int) -> Sample:
        picture = self._pictures[index]
        tags = Tags(frozenset(region.label for region in picture.regions))
        return Sample(self.names[index], open_image(self._folder, picture), tags)


def open_annotated(
    name: str, root: Path, split: str, year: int, outlines: bool
) -> tuple[Path, list[Picture]]:
    """The folder of COCO's images, and what is known of each, in the order of their ids."""
    check_split(name, split)
    if year not in YEARS:
        raise ValueError(f"{name}: there is no year {year!r}; there are 2014 and 2017")
    images = image_folder(root, split, year)
    annotations = f"annotations/instances_{split}{year}.json"
    hint = (
        f"{split}{year}/*.jpg (of {split}{year}.zip) and {annotations} (of "
        f"annotations_trainval{year}.zip), from https://cocodataset.org/#download"
    )
    check_layout(name, root, [annotations, images], hint)
    instances = Instances(root / annotations, Classes.named("coco80"))
    check_files(name, root / images, instances.files, hint)
    return root / images, instances.pictures(root / images if outlines else None)


def check_split(name: str, split: str) -> None:
    """Refuse what has no public annotations."""
    if split not in SPLITS:
        raise ValueError(f"{name}: there is no split {split!r}; there are train and val")


def image_folder(root: Path, split: str, year: int) -> str:
    """Below `root`, as the zip unpacks or as COCO-Stuff and mmsegmentation have it."""
    plain = f"{split}{year}"
    nested = f"images/{plain}"
    return nested if (root / nested).is_dir() and not (root / plain).is_dir() else plain


def open_image(folder: Path, picture: Picture) -> Image.Image:
    """The image, held to the size that its annotations are of."""
    path = folder / picture.file
    image = open_rgb(path)
    if image.size != (picture.width, picture.height):
        raise ValueError(
            f"{path} is {image.width} x {image.height}, its annotations are of "
            f"{picture.width} x {picture.height}"
        )
    return image
