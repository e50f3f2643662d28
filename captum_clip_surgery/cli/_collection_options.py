"""Options of the commands for collections of images: `audit` and `search`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from captum_clip_surgery.cli._groups import (
    BatchSize,
    Command,
    DatasetName,
    Json,
    Minus,
    ModelOptions,
    Output,
    Root,
    Size,
    Split,
    TextOptions,
)


@dataclass(frozen=True, kw_only=True)
class Audit(Command):
    """Find classes that lean on the background. Writes a report with pictures, and JSON.

    Example:
        clip-surgery audit --boxes photos/metadata.jsonl --model ViT-B-16 --pretrained openai
    """

    images: Annotated[
        list[str] | None,
        Argument(
            help="Image files, folders or glob patterns; their classes are what the model answers "
            "among --text and --texts (default: a data set).",
            show_default=False,
        ),
    ] = None
    texts: TextOptions
    boxes: Annotated[
        Path | None,
        Option(help="File metadata.jsonl next to images, with their boxes and classes."),
    ] = None
    dataset: DatasetName = "scenes"
    root: Root = None
    split: Split = None
    limit: Annotated[
        int | None, Option(min=1, help="Number of images, drawn at random (default: all).")
    ] = None
    seed: Annotated[int, Option(help="Seed of the images that --limit draws.")] = 0
    min_images: Annotated[
        int, Option(min=1, help="Number of images below which a class is left out.")
    ] = 5
    false_alarms: Annotated[
        float,
        Option(
            min=0.001,
            max=0.5,
            help="Probability that any class is named although none leans more than the others.",
        ),
    ] = 0.01
    cues: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            help="File with one text per line, to describe what named classes lean on.",
        ),
    ] = None
    size: Size = None
    batch_size: BatchSize = 4
    clip: ModelOptions
    output: Output = Path("clip-surgery-audit")
    json: Json = False


@dataclass(frozen=True, kw_only=True)
class Search(Command):
    """Search images by a text or an image. Prints a ranking; writes it and a sheet of pictures.

    Example:
        clip-surgery search photos/ --query "a red bicycle" --model ViT-B-16 --pretrained openai
    """

    source: Annotated[
        str,
        Argument(help="Folder of images, or of an export, whose embeddings are read."),
    ]
    query: Annotated[str | None, Option(help="Text to look for.")] = None
    query_image: Annotated[Path | None, Option(help="Image to look for, instead of a text.")] = None
    minus: Minus = None
    top: Annotated[int, Option(min=1, help="Number of images.")] = 20
    exact: Annotated[
        bool | None,
        Option(
            "--exact/--index",
            help="Compare all images, or those that an index of faiss finds (default: --exact up "
            "to 100,000 images).",
        ),
    ] = None
    batch_size: BatchSize = 16
    clip: ModelOptions
    output: Output = Path("clip-surgery-search")
    json: Json = False
