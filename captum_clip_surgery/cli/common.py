"""What commands share: options, models, pictures and files."""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image
from tqdm import tqdm

from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery.attr.registry import DEFAULT_METHODS
from captum_clip_surgery.datasets.files import read_text
from captum_clip_surgery.models.text.templates import Template
from captum_clip_surgery.preprocessing import load_picture
from captum_clip_surgery.visualization import FORMATS, SIGNS, View

ABOUT_THE_DEMO_MODEL = (
    "This is the embedded model: small, trained by this project on scenes of emoji, not for "
    "photographs."
)

Images = Annotated[
    list[str], typer.Argument(help="Image files, folders or patterns.", show_default=False)
]
Model = Annotated[str | None, typer.Option(help="open_clip name, local-dir:FOLDER or hf-hub:REPO.")]
Pretrained = Annotated[str | None, typer.Option(help="open_clip tag or checkpoint file.")]
Size = Annotated[int | None, typer.Option(min=1, help="Side of the images in pixels.")]
Distractors = Annotated[
    Path | None, typer.Option(help="File of texts, one a line, that compete but get no map.")
]
Methods = Annotated[str, typer.Option(help="Names, comma between, or all.")]
USUAL_METHODS = ",".join(DEFAULT_METHODS)
Depth = Annotated[int | None, typer.Option(min=0, help="How many blocks surgery spans.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Sign = Annotated[
    str,
    typer.Option(
        help=f"Of values to draw: {', '.join(SIGNS)}. With range, colours run from the lowest "
        "value to the highest."
    ),
]
Format = Annotated[str, typer.Option("--format", help=f"Of figures: {', '.join(FORMATS)}.")]


def load_model(
    model: str | None,
    pretrained: str | None,
    texts: Sequence[str],
    distractors: Sequence[str] = (),
    quiet: bool = False,
    templates: Sequence[Template] | None = None,
    device: str | None = None,
) -> ZeroShotClassifier:
    """The model asked for, on a GPU where there is one; without a name the embedded one."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if model is None:
        if pretrained is not None:
            raise ValueError("--pretrained needs --model")
        if not quiet:
            print(f"No --model given. {ABOUT_THE_DEMO_MODEL}")
        return ZeroShotClassifier.demo(texts, distractors, templates).to(device)
    return ZeroShotClassifier.from_pretrained(
        model, pretrained, texts, distractors, templates, device=device
    )


def read_lines(path: Path | None) -> list[str]:
    """The lines of a file that are not empty."""
    if path is None:
        return []
    lines = [line.strip() for line in read_text(path).splitlines()]
    return [line for line in lines if line]


# --- pictures ------------------------------------------------------------------------------------


def find_images(given: Sequence[str]) -> list[Path]:
    """Files as they are, folders' pictures by name, and what patterns match.

    Raises:
        ValueError: a folder without pictures, a pattern that matches nothing.
    """
    found: list[Path] = []
    for name in given:
        path = Path(name)
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in _suffixes())
            if not inside:
                raise ValueError(f"no pictures in the folder {path}")
            found += inside
        elif not path.exists() and glob.has_magic(name):
            matching = sorted(map(Path, glob.glob(name, recursive=True)))  # noqa: PTH207
            if not matching:
                raise ValueError(f"no file matches {name!r}")
            found += matching
        else:
            found.append(path)
    return found


def _suffixes() -> set[str]:
    """Of the formats that Pillow reads; some it only writes."""
    return {end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN}


class Pictures:
    """Pictures one after another, past those that cannot be read, with a progress bar."""

    def __init__(self, given: Sequence[str]) -> None:
        self.paths = list(dict.fromkeys(find_images(given)))
        self.stems = dict(zip(self.paths, _unique_stems(self.paths), strict=True))
        self.failed: list[Path] = []

    def __iter__(self) -> Iterator[tuple[Path, Image.Image]]:
        several = len(self.paths) > 1 and sys.stderr.isatty()
        for path in tqdm(self.paths, disable=not several, unit="image", leave=False):
            try:
                picture = load_picture(path)
            except (ValueError, OSError) as error:
                tqdm.write(f"skipped: {error}", file=sys.stderr)
                self.failed.append(path)
                continue
            yield path, picture

    def report(self) -> None:
        """Ends the process where a picture could not be read."""
        if self.failed:
            names = ", ".join(map(str, self.failed))
            count = len(self.paths)
            sys.exit(f"error: {len(self.failed)} of {count} images could not be read: {names}")


def _unique_stems(paths: Sequence[Path]) -> list[str]:
    """A name for each image's results, numbered where two images share theirs."""
    stems: list[str] = []
    for path in paths:
        stem, number = path.stem, 2
        while stem in stems:
            stem, number = f"{path.stem}-{number}", number + 1
        stems.append(stem)
    return stems


def say(text: str, quiet: bool = False) -> None:
    """A line for people, above the progress bar."""
    if not quiet:
        tqdm.write(text)


def check_drawing(sign: str, kind: str) -> None:
    """Raises ValueError for a sign or a format that is not known, before the work."""
    View(sign=sign)
    if kind not in FORMATS:
        raise ValueError(f"--format {kind!r} is not one of {', '.join(FORMATS)}")


def names_of(methods: str) -> list[str]:
    """Names with commas between."""
    return [name.strip() for name in methods.split(",")]


def report_left_out(left_out: Mapping[str, str]) -> None:
    """Methods that do not take part, and why."""
    for name, why in left_out.items():
        print(f"left out: {name}: {why}", file=sys.stderr)
