"""Image files that commands are given."""

from __future__ import annotations

import glob
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from captum_clip_surgery._utils.images import is_image_name
from captum_clip_surgery.preprocessing import load_image

#: Largest number of files that an error names.
MAX_NAMES = 5


def find_images(names: Sequence[str]) -> list[Path]:
    """Return the image files that names stand for.

    Args:
        names: Files, returned as they are; folders, whose images are returned by name; or glob
            patterns.

    Raises:
        FileNotFoundError: If files do not exist.
        ValueError: If a folder has no images, or a pattern matches no file.
    """
    paths: list[Path] = []
    missing = [name for name in names if not (Path(name).exists() or glob.has_magic(name))]
    if missing:
        more = f" and {len(missing) - MAX_NAMES} more" if len(missing) > MAX_NAMES else ""
        raise FileNotFoundError(f"no image file at {', '.join(missing[:MAX_NAMES])}{more}")
    for name in names:
        path = Path(name)
        if path.is_dir():
            images = sorted(file for file in path.iterdir() if is_image_name(file))
            if not images:
                raise ValueError(f"no images in the folder {path}")
            paths += images
        elif not path.exists() and glob.has_magic(name):
            matches = sorted(map(Path, glob.glob(name, recursive=True)))  # noqa: PTH207
            if not matches:
                raise ValueError(f"no file matches {name!r}")
            paths += matches
        else:
            paths.append(path)
    return paths


class ImageFiles:
    """Iterable of (path, image) over files, with a progress bar; unreadable files are skipped.

    Args:
        names: Files, folders or patterns, as `find_images` takes them.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.paths = list(dict.fromkeys(find_images(names)))
        self.stems = dict(zip(self.paths, unique_stems(self.paths), strict=True))
        self.unreadable: list[Path] = []

    def __iter__(self) -> Iterator[tuple[Path, Image.Image]]:
        show_bar = len(self.paths) > 1 and sys.stderr.isatty()
        for path in tqdm(self.paths, disable=not show_bar, unit="image", leave=False):
            if path in self.unreadable:  # reported by an earlier pass
                continue
            try:
                image = load_image(path)
            except (ValueError, OSError) as error:
                tqdm.write(f"skipped: {error}", file=sys.stderr)
                self.unreadable.append(path)
                continue
            yield path, image

    def exit_if_unreadable(self) -> None:
        """End the process with an error if files were skipped, each with its own line."""
        if self.unreadable:
            sys.exit(f"error: {len(self.unreadable)} of {len(self.paths)} images were skipped")


def unique_stems(paths: Sequence[Path]) -> list[str]:
    """Return a name for the results of each image, numbered where images share their name."""
    stems: dict[str, None] = {}
    numbers: Counter[str] = Counter()  # per name, so that many equal ones take no quadratic time
    for path in paths:
        stem = path.stem
        while stem in stems:
            numbers[path.stem] += 1
            stem = f"{path.stem}-{numbers[path.stem] + 1}"
        stems[stem] = None
    return list(stems)
