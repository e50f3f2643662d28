"""PASCAL VOC: pixels of 20 classes (VOC 2012), and the classes that an image shows (VOC 2007)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from captum_clip_surgery.datasets._base import IGNORE_INDEX, ImageDataset, Sample, Tags
from captum_clip_surgery.datasets._classes import Classes
from captum_clip_surgery.datasets._files import open_rgb
from captum_clip_surgery.datasets._layout import (
    check_files,
    check_layout,
    check_option,
    read_names,
)
from captum_clip_surgery.datasets._paired import PairedDataset, lookup_table

SITE = "host.robots.ox.ac.uk/pascal/VOC"
#: Value of object borders and of objects too difficult to segment.
VOID = 255
YEARS = ("2007", "2008", "2009", "2010", "2011", "2012")
SPLITS = ("train", "val", "trainval")


class PascalVoc(PairedDataset):
    """PASCAL VOC 2012 segmentation: one class per pixel, background, or ignored.

    Expected files::

        root/VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt
        root/VOCdevkit/VOC2012/JPEGImages/2007_000033.jpg
        root/VOCdevkit/VOC2012/SegmentationClass/2007_000033.png

    Label files hold 0 for background, 1 to 20 for the classes, and 255 for object borders and
    unlabeled objects, which is ignored. With background, labels are the stored values ("VOC21").
    Without, the classes are 0 to 19 and background is ignored too, so that nothing is scored there
    ("VOC20").

    Args:
        root: The folder that contains `VOCdevkit`, as in torchvision; or `VOCdevkit`, or `VOC2012`.
        split: "train", "val" or "trainval"; the labels of the test split are not published.
        background: Whether background is a class.

    Raises:
        FileNotFoundError: If the list, an image or a label file is missing.
        ValueError: If `split` is unknown.

    References:
        Everingham et al.: The PASCAL Visual Object Classes Challenge: A Retrospective. IJCV 2015;
        the VOC2012 development kit.
    """

    def __init__(self, root: Path | str, split: str = "val", background: bool = True) -> None:
        classes = Classes.named("voc21" if background else "voc20")
        title = f"PASCAL VOC 2012 {split}, {len(classes)} classes"
        check_option("PASCAL VOC 2012", "split", split, SPLITS)
        folder = voc_folder(root, "2012")
        hint = (
            f"VOCtrainval_11-May-2012.tar from {SITE}, unpacked there: "
            f"VOCdevkit/VOC2012/JPEGImages/*.jpg, SegmentationClass/*.png, "
            f"ImageSets/Segmentation/{split}.txt"
        )
        listed = f"ImageSets/Segmentation/{split}.txt"
        check_layout(title, folder, [listed, "JPEGImages", "SegmentationClass"], hint)
        images, labels = folder / "JPEGImages", folder / "SegmentationClass"
        files = listed_files(title, folder / listed, (images, ".jpg"), (labels, ".png"), hint)
        table = lookup_table(21, VOID)
        if not background:
            table[:21] = [IGNORE_INDEX, *range(20)]
        super().__init__(title, classes, files, table, 0 if background else None)


class PascalVocTags(ImageDataset):
    """PASCAL VOC classification: which of 20 classes an image shows.

    Expected files::

        root/VOCdevkit/VOC2007/ImageSets/Main/test.txt
        root/VOCdevkit/VOC2007/JPEGImages/000001.jpg
        root/VOCdevkit/VOC2007/Annotations/000001.xml

    A class whose objects are all marked difficult is unknown; one object that is not difficult
    makes it present. This is the rule of the development kit's `ImageSets/Main/CLASS_SPLIT.txt`,
    which hold 1 for present, 0 for difficult only (the kit's evaluation leaves these out) and -1
    for absent.

    Args:
        root: The folder that contains `VOCdevkit`, as in torchvision; or `VOCdevkit`, or `VOC2007`.
        split: "train", "val", "trainval", or for 2007 "test".
        year: "2007" to "2012".

    Raises:
        FileNotFoundError: If the list, an image or its annotation is missing.
        ValueError: If `split` or `year` is unknown.

    References:
        Everingham et al.: The PASCAL Visual Object Classes (VOC) Challenge. IJCV 2010; the VOC2007
        development kit, `VOCevalcls.m`.
    """

    def __init__(self, root: Path | str, split: str = "test", year: str = "2007") -> None:
        check_option("PASCAL VOC", "year", year, YEARS)
        splits = (*SPLITS, "test") if year == "2007" else SPLITS
        check_option(f"PASCAL VOC {year}", "split", split, splits)
        title = f"PASCAL VOC {year} {split}, tags"
        folder = voc_folder(root, year)
        hint = (
            f"VOC{'test' if split == 'test' else 'trainval'}_*.tar of {year} from {SITE}, unpacked "
            f"there: VOCdevkit/VOC{year}/JPEGImages/*.jpg, Annotations/*.xml, "
            f"ImageSets/Main/{split}.txt"
        )
        listed = f"ImageSets/Main/{split}.txt"
        check_layout(title, folder, [listed, "JPEGImages", "Annotations"], hint)
        images, annotations = folder / "JPEGImages", folder / "Annotations"
        self._files = listed_files(
            title, folder / listed, (images, ".jpg"), (annotations, ".xml"), hint
        )
        super().__init__(title, Classes.named("voc20"), list(self._files))

    def read(self, index: int) -> Sample:
        """Read an image and the classes of its objects."""
        name = self.names[index]
        image_path, path = self._files[name]
        return Sample(name, open_rgb(image_path), self._read_tags(path))

    def _read_tags(self, path: Path) -> Tags:
        labels = {official_name(first): label for label, first in enumerate(self.classes.first)}
        clear: set[int] = set()
        difficult: set[int] = set()
        for name, is_difficult in _read_objects(path):
            if name not in labels:
                raise ValueError(
                    f"{path} has an object {name!r:.80}, expected one of {', '.join(labels)}"
                )
            (difficult if is_difficult else clear).add(labels[name])
        return Tags(frozenset(clear), frozenset(difficult - clear))


def voc_folder(root: Path | str, year: str) -> Path:
    """Return the folder of a year: `root` itself, or below it, with or without `VOCdevkit`."""
    root = Path(root)
    if root.resolve().name == f"VOC{year}":
        return root
    below = root / f"VOC{year}"
    return below if below.is_dir() else root / "VOCdevkit" / f"VOC{year}"


def listed_files(
    title: str,
    listed: Path,
    images: tuple[Path, str],
    annotations: tuple[Path, str],
    hint: str,
) -> dict[str, tuple[Path, Path]]:
    """Return the image file and annotation file of every name in a list, checked to exist.

    Args:
        title: Name of the data set, for messages.
        listed: The list.
        images: Folder and suffix of the images.
        annotations: Folder and suffix of the annotations.
        hint: What to download and where to unpack it, for messages.

    Raises:
        FileNotFoundError: If a file is missing.
    """
    names = read_names(listed)
    for folder, suffix in (images, annotations):
        check_files(title, folder, [name + suffix for name in names], hint, listed)
    return {
        name: (images[0] / (name + images[1]), annotations[0] / (name + annotations[1]))
        for name in names
    }


def official_name(name: str) -> str:
    """Return a class as the data set spells it, such as "pottedplant"."""
    return name.replace(" ", "")


def _read_objects(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield each object's class and whether it is marked difficult, which some files omit."""
    try:
        elements = ElementTree.parse(path).getroot().findall("object")
    # ValueError and LookupError: encodings that Python or expat does not know.
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise ValueError(f"{path} cannot be read as an annotation: {error}") from None
    for element in elements:
        # Only direct children: parts of a person, such as the head, have names too.
        difficult = element.findtext("difficult", "0").strip()
        if difficult not in ("0", "1"):
            raise ValueError(f"{path} has difficult {difficult!r:.80}, expected 0 or 1")
        yield element.findtext("name", "").strip(), difficult == "1"
