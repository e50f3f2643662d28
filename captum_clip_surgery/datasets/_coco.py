"""COCO: 80 classes of objects, as masks and as tags of images."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from captum_clip_surgery.datasets._base import ImageDataset, Masks, Sample, Tags
from captum_clip_surgery.datasets._classes import Classes
from captum_clip_surgery.datasets._coco_json import ImageRecord, Instances
from captum_clip_surgery.datasets._files import open_rgb
from captum_clip_surgery.datasets._layout import check_files, check_layout, check_option

#: Splits with public annotations.
SPLITS = ("train", "val")
YEARS = (2014, 2017)


class AnnotatedCoco(ImageDataset):
    """Images listed in `instances_{split}{year}.json`.

    Args:
        name: Name of the data set in results.
        root: The folder of the data set.
        split: "train" or "val".
        year: 2014 or 2017.
        classes: Names of its classes.
        outlines: Whether to read the outlines of the instances.
        background: Index of the background class, or None.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        split: str,
        year: int,
        classes: str,
        outlines: bool,
        unannotated: bool = True,
        background: int | None = None,
    ) -> None:
        check_option(name, "split", split, SPLITS)
        check_option(name, "year", year, YEARS)
        images = image_folder(root, split, year)
        annotations = f"annotations/instances_{split}{year}.json"
        hint = (
            f"{split}{year}/*.jpg (from {split}{year}.zip) and {annotations} (from "
            f"annotations_trainval{year}.zip), https://cocodataset.org/#download"
        )
        check_layout(name, root, [annotations, images], hint)
        instances = Instances(root / annotations, Classes.named("coco80"))
        self._folder = root / images
        check_files(name, self._folder, instances.files, hint)
        records = instances.records(self._folder if outlines else None)
        self._records = [record for record in records if unannotated or self._is_annotated(record)]
        names = [Path(record.file).stem for record in self._records]
        super().__init__(name, Classes.named(classes), names, background)

    def _is_annotated(self, record: ImageRecord) -> bool:
        """Return whether an image has an annotation that counts."""
        return bool(record.regions)

    def _read_image(self, record: ImageRecord) -> Image.Image:
        """Read an image and check that it has the size of its annotations."""
        path = self._folder / record.file
        image = open_rgb(path)
        if image.size != (record.width, record.height):
            raise ValueError(
                f"{path} is {image.width} x {image.height} pixels, its annotations are for "
                f"{record.width} x {record.height}"
            )
        return image


class Coco(AnnotatedCoco):
    """COCO's objects as one mask per class.

    Expected files::

        root/annotations/instances_val2017.json   from annotations_trainval2017.zip
        root/val2017/000000000139.jpg             from val2017.zip, or in root/images/val2017

    A class's mask is the union of its instances, as pycocotools draws them; masks of different
    classes may overlap. Crowd regions (`iscrowd`) count neither as right nor as wrong in COCO's
    evaluation, so the crowd of a class, without its instances, is `ignored` for that class. A class
    with only a crowd is not present, but has its pixels in `ignored`, which distinguishes it from a
    class that is not in the image. Instances without a single pixel are left out.

    Images without an instance are left out by default: of val2017's 5,000, the 48 without
    annotation and those with crowds only.

    The constructor parses the JSON once and reads the header of each annotated image. The result is
    compact and can be sent to the workers of a `DataLoader`. Outlines with fewer than three points
    are skipped with a warning that counts them and names the first.

    Args:
        root: The folder that contains `annotations`.
        split: "train" or "val".
        year: 2014 or 2017.
        unannotated: Whether to keep images without an instance; they have no masks.

    Raises:
        FileNotFoundError: If files are missing.
        ValueError: If the annotations cannot be read, or `split` or `year` is unknown.
        ImportError: If pycocotools is missing.

    References:
        Lin et al.: Microsoft COCO: Common Objects in Context. ECCV 2014 (arXiv 1405.0312);
        https://cocodataset.org. Crowds follow `COCOeval` of pycocotools.
    """

    def __init__(
        self, root: Path | str, split: str = "val", year: int = 2017, unannotated: bool = False
    ) -> None:
        name = f"COCO {split}{year}"
        super().__init__(name, Path(root), split, year, "coco80", True, unannotated)

    def _is_annotated(self, record: ImageRecord) -> bool:
        return any(not region.crowd for region in record.regions)

    def read(self, index: int) -> Sample:
        """Read an image and the masks of its classes."""
        record = self._records[index]
        image = self._read_image(record)
        masks, ignored = {}, {}
        for label in sorted({region.label for region in record.regions}):
            regions = [region for region in record.regions if region.label == label]
            inside = record.draw(region for region in regions if not region.crowd)
            crowd = record.draw(region for region in regions if region.crowd) & ~inside
            if inside.any():
                masks[label] = inside
            if crowd.any():
                ignored[label] = crowd
        return Sample(self.names[index], image, Masks(masks, ignored))


class CocoTags(AnnotatedCoco):
    """COCO for multi-label recognition: the classes that an image shows.

    Expected files::

        root/annotations/instances_val2014.json              from annotations_trainval2014.zip
        root/val2014/COCO_val2014_000000000042.jpg           from val2014.zip, or in root/images

    Every annotation counts, crowds included, as in the usual protocol of multi-label recognition
    (`CocoDetection` of ML-Decoder, which reads all annotations of an image). No class is unknown.

    Images without annotation are kept, 367 of val2014's 40,504. ML-Decoder leaves them out (its
    validation set has 40,137 images), as does `unannotated=False`.

    Args:
        root: The folder that contains `annotations`.
        split: "train" or "val".
        year: 2014 or 2017.
        unannotated: Whether to keep images without annotation.

    Raises:
        FileNotFoundError: If files are missing.
        ValueError: If the annotations cannot be read, or `split` or `year` is unknown.

    References:
        Lin et al.: Microsoft COCO: Common Objects in Context. ECCV 2014 (arXiv 1405.0312);
        https://cocodataset.org. Ridnik et al.: ML-Decoder. WACV 2023;
        https://github.com/Alibaba-MIIL/ML_Decoder, `helper_functions.py`.
    """

    def __init__(
        self, root: Path | str, split: str = "val", year: int = 2014, unannotated: bool = True
    ) -> None:
        name = f"COCO {split}{year}"
        super().__init__(name, Path(root), split, year, "coco80", False, unannotated)

    def read(self, index: int) -> Sample:
        """Read an image and its classes."""
        record = self._records[index]
        tags = Tags(frozenset(region.label for region in record.regions))
        return Sample(self.names[index], self._read_image(record), tags)


def image_folder(root: Path, split: str, year: int) -> str:
    """Return the folder of a split's images below `root`.

    It is `val2017`, as the zip unpacks, or `images/val2017`, as for COCO-Stuff and mmsegmentation.
    """
    plain = f"{split}{year}"
    nested = f"images/{plain}"
    return nested if (root / nested).is_dir() and not (root / plain).is_dir() else plain
