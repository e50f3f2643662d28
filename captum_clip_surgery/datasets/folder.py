"""Anyone's own pictures with their masks, in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from captum_clip_surgery.datasets.base import (
    Classes,
    DataSet,
    Labels,
    Masks,
    Sample,
    check_layout,
    open_labels,
    picture_size,
)
from captum_clip_surgery.datasets.paired import own_numbers, relabel
from captum_clip_surgery.preprocessing import load_image, open_image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
BACKGROUND = "background"
HINT = (
    "images/NAME.jpg (or another kind of picture), masks/NAME.png of the same name, and "
    "classes.txt, a class a line"
)


class Folder(DataSet):
    """One's own pictures: each pixel one class, or a mask for each class.

    Layout::

        root/classes.txt                   a class a line, its names with commas between
        root/images/park/bench.jpg
        root/masks/park/bench.png          either: numbers of classes
        root/masks/park/bench/person.png   or: where a class is, for classes that may overlap
        root/masks/park/bench/dog.png

    Pictures lie upright as a viewer shows them (a rotation noted in EXIF is followed, what is
    transparent is laid on white), and masks are of the picture so shown. Names of samples are paths
    below `images` without ending. Links are followed; hidden files are passed over.

    Numbers of classes count the lines of classes from 0, in grey or palette PNGs. 255 is ignored,
    in 16 bits 65535 instead, unless there are so many classes. A first class "background" is the
    background.

    A class's own mask is named like the class first goes by; it has 0 for outside, and 1 or 255 for
    inside. A class without one, or with one that is empty, is not there. All samples are of the one
    kind or all of the other.

    Args:
        root: the folder.

    Raises:
        FileNotFoundError: a folder or `classes.txt`, the mask of an image or the image of a mask is
            missing.
        ValueError: two images of one name, a file that is none of the above, both kinds of masks,
            or `classes.txt` cannot be read.
    """

    def __init__(self, root: Path | str) -> None:
        root = Path(root)
        title = f"folder {root.resolve().name}"
        check_layout(title, root, ["images", "masks", "classes.txt"], HINT)
        self._images = _by_name(root / "images", SUFFIXES)
        files = _by_name(root / "masks", (".png",))
        self._folder, self._files = root / "masks", files
        self._overlap = _overlap(self._images, files, self._folder)
        owners = {n: n.rpartition("/")[0] if self._overlap else n for n in files}
        alone = [files[n] for n, owner in owners.items() if owner not in self._images]
        if alone:
            raise FileNotFoundError(
                f"{len(alone)} of {len(files)} masks have no image, such as {alone[0]}. "
                f"Expected: {HINT}"
            )
        classes = Classes.read(root / "classes.txt")
        background = 0 if classes.first[0] == BACKGROUND else None
        super().__init__(title, classes, sorted(self._images), background)

    def read(self, index: int) -> Sample:
        name = self.names[index]
        path = self._images[name]
        image = load_image(path)
        if self._overlap:
            return Sample(name, image, self._read_masks(self._folder / name, image, path))
        mask_path = self._files[name]
        _check_size(image, path, mask_path)
        labels = self._read_labels(mask_path)
        return Sample(name, image, Labels(labels))

    def _read_labels(self, path: Path) -> np.ndarray:
        stored = open_labels(path)
        with open_image(path) as image:
            void = 65_535 if image.mode.startswith("I") else 255
        return relabel(stored, own_numbers(len(self.classes), void), path)

    def _read_masks(self, folder: Path, image: Image.Image, image_path: Path) -> Masks:
        found = {}
        for path in sorted(p for p in folder.iterdir() if not p.name.startswith(".")):
            if path.suffix.lower() != ".png" or path.stem not in self.classes.first:
                raise ValueError(
                    f"{path} is no mask of a class, expected the name of one in classes.txt and "
                    f".png: {', '.join(self.classes.first[:5])}, ..."
                )
            _check_size(image, image_path, path)
            stored = open_labels(path)
            values = {int(value) for value in np.unique(stored)}
            if not (values <= {0, 1} or values <= {0, 255}):
                raise ValueError(
                    f"{path} holds {', '.join(map(str, sorted(values)[:5]))}, expected 0 for "
                    "outside and 1 or 255 for inside"
                )
            if stored.any():
                found[self.classes.first.index(path.stem)] = stored > 0
        return Masks(dict(sorted(found.items())))


def _overlap(images: dict[str, Path], masks: dict[str, Path], folder: Path) -> bool:
    """Whether images have a folder of masks each, rather than a PNG of numbers."""
    own = [name for name in images if name in masks]
    folders = [name for name in images if name not in masks and (folder / name).is_dir()]
    if own and folders:
        raise ValueError(
            f"{folder} has both {own[0]}.png, numbers of classes, and a folder {folders[0]}/, "
            "masks of classes; use one of the two for all images"
        )
    missing = sorted(set(images) - set(own) - set(folders))
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(images)} images have no mask, such as "
            f"{images[missing[0]]}: expected {folder / missing[0]}.png"
        )
    return bool(folders)


def _by_name(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files below a folder by their path without ending."""
    found: dict[str, Path] = {}
    for path in _files(folder):
        if path.suffix.lower() not in suffixes:
            raise ValueError(f"{path} is none of {', '.join(suffixes)}; move it elsewhere")
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise ValueError(f"two files of one name: {found[name]} and {path}")
        found[name] = path
    return found


def _files(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Files below a folder, links followed."""
    real = folder.resolve()
    if real in above:
        raise ValueError(f"{folder} is a link to a folder that it is in")
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _files(path, (*above, real))
        else:
            yield path


def _check_size(image: Image.Image, path: Path, mask_path: Path) -> None:
    """Whether a mask is of the image as shown, and if not, whether its rotation explains it."""
    width, height = picture_size(mask_path)
    if (width, height) == image.size:
        return
    message = (
        f"{mask_path} is {width} x {height} pixels, its image {path} is {image.width} x "
        f"{image.height}"
    )
    if picture_size(path) == (width, height):
        message += (
            f" as shown: it is stored as {width} x {height} and turned by a note in EXIF. Turn "
            "the mask as well, or store the image upright"
        )
    raise ValueError(message)
