"""Your own images with masks, in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from captum_clip_surgery._utils.images import SUFFIXES
from captum_clip_surgery.datasets._base import ImageDataset, Labels, Masks, Sample
from captum_clip_surgery.datasets._classes import Classes
from captum_clip_surgery.datasets._layout import check_layout
from captum_clip_surgery.datasets._own import OwnImage, check_ignored, read_labels, read_mask

HINT = (
    "images/NAME.jpg (or another image format), masks/NAME.png with the same name, and "
    "classes.txt with one class per line"
)


class Folder(ImageDataset):
    """Your own images with one class per pixel, or one mask per class.

    Expected files::

        root/classes.txt                   one class per line: comma-separated names
        root/images/park/bench.jpg
        root/masks/park/bench.png          either: class numbers
        root/masks/park/bench/person.png   or: one mask per class; masks may overlap
        root/masks/park/bench/dog.png

    Images are read as viewers show them: EXIF rotations are applied and transparency is laid on
    white. Masks must match the image as shown. Names of samples are paths below `images` without
    suffix. Links are followed, hidden files are skipped.

    Class numbers are line numbers of `classes.txt`, counted from 0, in gray or palette PNGs. 255 is
    ignored (65535 in 16-bit PNGs), unless it is the number of a class. If the first class is called
    "background" (in any case, with or without underscores), it is the background class.

    The mask of a class is named after the class's first name and holds 0 outside and 1 or 255
    inside. A class without a mask, or with an empty one, is not in the image. All samples have
    class numbers, or all have one mask per class.

    Args:
        root: The folder.

    Raises:
        FileNotFoundError: If a folder, `classes.txt`, the mask of an image or the image of a mask
            is missing.
        ValueError: If two images have the same name, a file is of another kind, both kinds of masks
            exist, `classes.txt` cannot be read, or only one class occurs apart from ignored
            pixels, as in masks of 0 and 255.
    """

    def __init__(self, root: Path | str) -> None:
        root = Path(root)
        title = f"folder {root.resolve().name}"
        check_layout(title, root, ["images", "masks", "classes.txt"], HINT)
        self._folder = root / "masks"
        self._images = _by_name(root / "images", SUFFIXES)
        self._masks = _by_name(self._folder, (".png",))
        self._per_class = _has_masks_per_class(self._images, self._masks, self._folder)
        owners = {n: n.rpartition("/")[0] if self._per_class else n for n in self._masks}
        alone = [self._masks[n] for n, owner in owners.items() if owner not in self._images]
        if alone:
            raise FileNotFoundError(
                f"{len(alone)} of {len(self._masks)} masks have no image, such as {alone[0]}. "
                f"Expected: {HINT}"
            )
        classes = Classes.read(root / "classes.txt")
        super().__init__(title, classes, sorted(self._images), classes.background)
        if not self._per_class:
            check_ignored(title, classes, len(self), lambda i: self._read_labels(self.names[i]))

    def read(self, index: int) -> Sample:
        """Read an image and its labels or masks."""
        name = self.names[index]
        own = OwnImage.read(self._images[name], str(self._images[name]))
        target = self._read_masks(name, own) if self._per_class else self._read_labels(name, own)
        return Sample(name, own.image, target)

    def _read_labels(self, name: str, own: OwnImage | None = None) -> Labels:
        path = self._masks[name]
        return read_labels(path, str(path), self.classes, own)

    def _read_masks(self, name: str, own: OwnImage) -> Masks:
        masks = {}
        folder = self._folder / name
        for path in sorted(p for p in folder.iterdir() if not p.name.startswith(".")):
            if path.suffix.lower() != ".png" or path.stem not in self.classes.first:
                raise ValueError(
                    f"{path} is not the mask of a class, expected the name of a class in "
                    f"classes.txt and .png: {', '.join(self.classes.first[:5])}, ..."
                )
            stored, void = read_mask(path, str(path), own)
            values = {int(value) for value in np.unique(stored)}
            if not (values <= {0, 1} or values <= {0, void}):
                raise ValueError(
                    f"{path} holds {', '.join(map(str, sorted(values)[:5]))}, expected 0 for "
                    "outside and 1 or 255 for inside"
                )
            if stored.any():
                masks[self.classes.first.index(path.stem)] = stored > 0
        return Masks(dict(sorted(masks.items())))


def _has_masks_per_class(images: dict[str, Path], masks: dict[str, Path], folder: Path) -> bool:
    """Return whether images have a folder of masks each, rather than a PNG of class numbers."""
    numbered = [name for name in images if name in masks]
    folders = [name for name in images if name not in masks and (folder / name).is_dir()]
    if numbered and folders:
        raise ValueError(
            f"{folder} has both {numbered[0]}.png, numbers of classes, and a folder {folders[0]}/, "
            "masks of classes; use one of the two for all images"
        )
    missing = sorted(set(images) - set(numbered) - set(folders))
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(images)} images have no mask, such as "
            f"{images[missing[0]]}: expected {folder / missing[0]}.png"
        )
    return bool(folders)


def _by_name(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Return the files below a folder by their path without suffix."""
    files: dict[str, Path] = {}
    for path in _walk(folder):
        if path.suffix.lower() not in suffixes:
            raise ValueError(
                f"files in {folder} must end in one of {', '.join(suffixes)}, got {path}; move it "
                "elsewhere"
            )
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in files:
            raise ValueError(f"two files of one name: {files[name]} and {path}")
        files[name] = path
    return files


def _walk(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yield the files below a folder, following links.

    Unlike `_utils.files.walk` it raises for a link to a folder above, which would hide images.
    """
    real = folder.resolve()
    if real in above:
        raise ValueError(f"{folder} is a link to a folder that contains it")
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _walk(path, (*above, real))
        else:
            yield path
