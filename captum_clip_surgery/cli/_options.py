"""Options of every command but those for tasks, the one place where they are spelled.

A dataclass per command, whose docstring is the command's help; groups of options are dataclasses
too, which commands include as fields. A group of a function's arguments has their names, so that it
is passed on whole: `segment(clip, images, **vars(group))`.

Nothing heavy is imported here, because `--help` reads these classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from captum_clip_surgery.cli._choices import (
    DEFAULT_METHODS,
    MEASURES,
    PROTOCOLS,
    TASKS,
    TIMEOUT_S,
    Scales,
)
from captum_clip_surgery.cli._groups import (
    Array,
    BatchSize,
    Command,
    DatasetName,
    Distractors,
    DrawingOptions,
    Fine,
    Images,
    Json,
    Methods,
    ModelOptions,
    NumBlocks,
    Output,
    QueryOptions,
    RayOptions,
    Repaired,
    Resume,
    Root,
    RunBy,
    Size,
    Split,
    Surgery,
    TextOptions,
    Timeout,
    Trust,
    Workers,
)

# --- where a model sees texts --------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Demo(Command):
    """Try the embedded model. Explains a scene and measures the default methods on scenes.

    Example:
        clip-surgery demo
    """

    scenes: Annotated[int, Option(min=1, help="Number of scenes to measure on.")] = 8
    output: Output = Path("clip-surgery-demo")


@dataclass(frozen=True, kw_only=True)
class Explain(Command):
    """Explain images for texts. Writes one figure per image and prints how well texts match.

    Example:
        clip-surgery explain photo.jpg --text dog --text cat --model ViT-B-16 --pretrained openai
    """

    images: Images
    texts: TextOptions
    queries: QueryOptions
    distractors: Distractors = None
    clip: ModelOptions
    methods: Methods = "CLIPSurgery"
    feature_surgery: Surgery = "auto"
    size: Size = None
    fine: Fine = False
    repair: Repaired = None
    trust: Trust = False
    npz: Annotated[bool, Option("--npz", help="Also write the raw maps as NPZ files.")] = False
    drawing: DrawingOptions
    output: Output = Path("clip-surgery-maps")
    json: Json = False


@dataclass(frozen=True, kw_only=True)
class Compare(Command):
    """Compare methods side by side. Writes one figure and a table.

    Example:
        clip-surgery compare photo.jpg --text dog --methods all --model ViT-B-16 --pretrained openai
    """

    images: Images
    texts: TextOptions
    queries: QueryOptions
    distractors: Distractors = None
    clip: ModelOptions
    methods: Methods = DEFAULT_METHODS
    feature_surgery: Surgery = "auto"
    size: Size = None
    fine: Fine = False
    repair: Repaired = None
    scales: Annotated[
        Scales,
        Option(
            help="Which maps share a color scale: those of a method, those of the figure, or none "
            "('map')."
        ),
    ] = "method"
    trust: Trust = False
    drawing: DrawingOptions
    output: Output = Path("clip-surgery-compare")
    json: Json = False


# --- measuring, exporting, serving ---------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Evaluate(Command):
    """Measure methods on a data set. Writes JSON, CSV, Markdown and figures.

    Example:
        clip-surgery evaluate --dataset voc21 --root VOC --model ViT-B-16 --pretrained openai
    """

    dataset: DatasetName = "scenes"
    root: Root = None
    split: Split = None
    protocol: Annotated[
        str | None,
        Option(metavar="NAME", help=f"{', '.join(PROTOCOLS)}, or a .toml file (default: paper)."),
    ] = None
    methods: Methods = DEFAULT_METHODS
    feature_surgery: Surgery = "auto"
    limit: Annotated[
        int | None,
        Option(min=1, help="Number of images, drawn at random (default: all; 500 for scenes)."),
    ] = None
    seed: Annotated[int, Option(help="Seed of the images that --limit draws.")] = 0
    tasks: Annotated[
        str | None,
        Option(
            metavar="NAMES",
            help=f"Comma-separated tasks: {', '.join(TASKS)} (default: all that the data set "
            "supports).",
        ),
    ] = None
    measures: Annotated[
        str,
        Option(
            metavar="NAMES",
            help=f"For scenes, comma-separated measures or 'all': {', '.join(MEASURES)}.",
        ),
    ] = "localization"
    query_image: Annotated[
        list[str] | None,
        Option(
            metavar="CLASS=FILE",
            help="Example image that takes the place of a class's names; repeat for more classes, "
            "or for the mean of several images.",
        ),
    ] = None
    distractors: Distractors = None
    size: Size = None
    batch_size: BatchSize = 8
    workers: Workers = 1
    clip: ModelOptions
    resume: Resume = True
    array: Array = None
    engine: RunBy = "processes"
    ray: RayOptions
    timeout: Timeout = TIMEOUT_S
    output: Output = Path("clip-surgery-results")
    json: Json = False


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Arguments of `export.plan`."""

    source: Annotated[
        str,
        Argument(
            help="Folder of images, .tar or .parquet files, pattern of such files, data set saved "
            "by Hugging Face datasets, or file that lists paths.",
            show_default=False,
        ),
    ]
    output: Annotated[
        Path,
        Option(
            "--output",
            "-o",
            file_okay=False,
            metavar="FOLDER",
            help="Folder of the export; the same command again resumes it.",
        ),
    ]
    top: Annotated[int, Option(min=0, help="Number of best texts to store per image.")] = 5
    maps: Annotated[bool, Option(help="Store maps, or only embeddings and the best texts.")] = True
    size: Size = None
    batch_size: BatchSize = 8
    shard_size: Annotated[
        int, Option(min=1, help="Images per output file; each input .tar makes one file.")
    ] = 1000
    column: Annotated[
        str | None,
        Option(metavar="NAME", help="Column of images in a table (default: the only one)."),
    ] = None
    fast: Annotated[
        bool, Option("--fast", help="Resize images faster and slightly less exactly.")
    ] = False
    compile: Annotated[
        bool, Option("--compile", help="Compile the image tower with torch.compile.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class Export(Command):
    """Explain a large collection. Writes maps, embeddings and best texts as Parquet files.

    Example:
        clip-surgery export photos/ --texts texts.txt -o maps --model ViT-B-16 --pretrained openai
    """

    export: ExportOptions
    texts: TextOptions
    queries: QueryOptions
    distractors: Distractors = None
    feature_surgery: Surgery = "auto"
    num_blocks: NumBlocks = None
    clip: ModelOptions
    workers: Workers = 1
    verify: Annotated[
        bool, Option("--verify", help="First read all files, and compute damaged ones anew.")
    ] = False
    plan: Annotated[
        bool, Option("--plan", help="Only list the collection and say how much is left.")
    ] = False
    array: Array = None
    engine: RunBy = "processes"
    ray: RayOptions
    timeout: Timeout = TIMEOUT_S


@dataclass(frozen=True, kw_only=True)
class Models(Command):
    """List models of open_clip and transformers: patch grids, or why they are not supported.

    Example:
        clip-surgery models
    """

    json: Json = False


@dataclass(frozen=True, kw_only=True)
class Check(Command):
    """Check a checkpoint. Prints a verdict and its numbers: outlier tokens, what texts share.

    Example:
        clip-surgery check photos/ --model ViT-L-14 --pretrained openai
    """

    images: Annotated[
        list[str] | None,
        Argument(
            help="Image files, folders or glob patterns (default: scenes of emoji).",
        ),
    ] = None
    texts: TextOptions
    distractors: Distractors = None
    clip: ModelOptions
    size: Size = None
    output: Output = Path("clip-surgery-check")
    json: Json = False


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Arguments of `app.serve`."""

    host: Annotated[
        str,
        Option(metavar="ADDRESS", help="Address to listen on; 0.0.0.0 accepts other machines."),
    ] = "127.0.0.1"
    port: Annotated[
        int | None,
        Option(min=1, max=65535, help="Port to listen on (default: the first free one from 7860)."),
    ] = None
    password: Annotated[
        str | None,
        Option(
            envvar="CLIP_SURGERY_PASSWORD",
            help="Password that visitors must enter, with any user name.",
        ),
    ] = None
    share: Annotated[
        bool, Option("--share", help="Get a public address from Gradio's servers.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class App(Command):
    """Serve the web demo. Images, texts and methods are chosen in the browser.

    Example:
        clip-surgery app --model ViT-B-16 --pretrained openai
    """

    clip: ModelOptions
    also: Annotated[
        list[str] | None,
        Option(
            metavar="NAME[:TAG]",
            help="Further model that visitors can choose, with its pretrained tag after a colon "
            "(names that begin with hf-hub:, hf: or local-dir: have none); repeat for more.",
        ),
    ] = None
    server: ServerOptions
