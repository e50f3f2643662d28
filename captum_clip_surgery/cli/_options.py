"""Options of every command, the one place where they are spelled.

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
    AutoFeatureSurgery,
    Dataset,
    FeatureSurgery,
    Instances,
    Precision,
    Refinement,
    WordMethod,
)
from captum_clip_surgery.cli._groups import (
    Array,
    BatchSize,
    Distractors,
    DrawingOptions,
    Fine,
    Images,
    Json,
    Methods,
    ModelOptions,
    NumBlocks,
    Output,
    RayOptions,
    RequiredText,
    Resume,
    RunBy,
    Size,
    Text,
    TextOptions,
    Timeout,
    Trust,
    Workers,
)

# --- where a model sees texts --------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Try the embedded model. Explains a scene and measures the default methods on scenes."""

    scenes: Annotated[int, Option(min=1, help="Number of scenes to measure on.")] = 8
    output: Output = Path("clip-surgery-demo")


@dataclass(frozen=True, kw_only=True)
class Explain:
    """Explain images for texts. Writes one figure per image and prints how well texts match."""

    images: Images
    text: RequiredText
    distractors: Distractors = None
    clip: ModelOptions
    size: Size = None
    fine: Fine = False
    feature_surgery: Annotated[
        AutoFeatureSurgery,
        Option(help="Variant of feature surgery; 'auto' chooses by the number of texts."),
    ] = "auto"
    trust: Trust = False
    npz: Annotated[bool, Option("--npz", help="Also write the raw maps as NPZ files.")] = False
    drawing: DrawingOptions
    output: Output = Path("clip-surgery-maps")


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Compare methods side by side. Writes one figure and a table."""

    images: Images
    text: RequiredText
    methods: Methods = DEFAULT_METHODS
    distractors: Distractors = None
    clip: ModelOptions
    size: Size = None
    fine: Fine = False
    shared: Annotated[
        bool, Option("--shared", help="Use one color scale for all maps of a method.")
    ] = False
    trust: Trust = False
    drawing: DrawingOptions
    output: Output = Path("clip-surgery-compare")


# --- tasks ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SegmentationOptions:
    """Arguments of `tasks.segment`."""

    size: Annotated[
        int | None,
        Option(
            min=1,
            help="Side in pixels of the images the model sees (default: 512, or the native size "
            "if larger).",
        ),
    ] = None
    window: Annotated[
        int | None, Option(help="Side of sliding windows in pixels (default: the whole image).")
    ] = None
    stride: Annotated[
        int | None,
        Option(help="Distance between windows in pixels (default: half of the window)."),
    ] = None
    keep_aspect: Annotated[
        bool, Option("--keep-aspect", help="Keep the aspect ratio instead of squashing images.")
    ] = False
    refine: Annotated[
        Refinement | None,
        Option(
            help="Align the segments with image edges, by a guided filter (needs kornia) or by "
            "pixel-adaptive mask refinement."
        ),
    ] = None
    feature_surgery: Annotated[
        FeatureSurgery, Option(help="Variant of feature surgery; the paper uses none.")
    ] = "none"
    num_blocks: NumBlocks = None
    fine: Fine = False


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Assign every pixel to its best text. Writes label images and figures."""

    images: Images
    texts: TextOptions
    background: Annotated[
        list[str] | None, Option(help="Text that describes the background; repeat for more.")
    ] = None
    threshold: Annotated[
        float | None,
        Option(
            help="Probability of the best class, 0 to 1, below which a pixel is background; "
            "also with --background."
        ),
    ] = None
    clip: ModelOptions
    segmentation: SegmentationOptions
    output: Output = Path("clip-surgery-segments")
    json: Json = False


@dataclass(frozen=True, kw_only=True)
class Recognize:
    """Name what images show. Writes the scores of all classes and figures."""

    images: Images
    texts: TextOptions
    top: Annotated[int, Option(min=1, help="Number of classes to print per image.")] = 5
    threshold: Annotated[
        float | None, Option(help="Print the classes that score above this value instead.")
    ] = None
    feature_surgery: Annotated[FeatureSurgery, Option(help="Variant of feature surgery.")] = (
        "release"
    )
    clip: ModelOptions
    size: Size = None
    output: Output = Path("clip-surgery-recognition")
    json: Json = False


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """Arguments of `tasks.prompts`."""

    union: Annotated[bool, Option("--union", help="Make one prompt for all texts.")] = False
    instances: Annotated[
        Instances,
        Option(help="One prompt per text, per connected component, or per peak of the map."),
    ] = "one"
    boxes: Annotated[bool, Option("--boxes", help="Add bounding boxes.")] = False
    threshold: Annotated[
        float, Option(help="Value of the normalized map, 0 to 1, from which a point is positive.")
    ] = 0.8
    down_sample: Annotated[
        int,
        Option(help="Factor by which the map is reduced to place points (--instances one only)."),
    ] = 2
    size: Size = None
    num_blocks: NumBlocks = None


@dataclass(frozen=True, kw_only=True)
class Points:
    """Make prompts for Segment Anything. Writes points and boxes as JSON, figures, and masks."""

    images: Images
    texts: TextOptions
    prompts: PromptOptions
    sam: Annotated[
        Path | None,
        Option(help="Folder of a SAM checkpoint for transformers; its masks are drawn and saved."),
    ] = None
    clip: ModelOptions
    output: Output = Path("clip-surgery-points")
    json: Json = False


@dataclass(frozen=True, kw_only=True)
class WordOptions:
    """Arguments of `tasks.word_maps`."""

    method: Annotated[
        WordMethod,
        Option(
            help="'interactions' splits the cosine of image and caption into words and patches; "
            "'surgery' compares tokens of architecture surgery with those of the text."
        ),
    ] = "interactions"
    special: Annotated[bool, Option("--special", help="Add maps for the start and end tokens.")] = (
        False
    )
    size: Size = None
    num_blocks: Annotated[
        int | None,
        Option(min=0, help="With 'surgery': number of last blocks that it spans (default: 6)."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Words:
    """Locate each word of a caption. Writes figures and prints which words matter."""

    images: Images
    caption: Annotated[str, Option(help="Sentence; each of its words gets a map.")]
    words: WordOptions
    clip: ModelOptions
    output: Output = Path("clip-surgery-words")
    json: Json = False


# --- measuring, exporting, serving ---------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure methods on a data set. Writes JSON, CSV, Markdown and figures."""

    dataset: Annotated[
        Dataset, Option(help="Data set; 'scenes' are rendered for the embedded model.")
    ] = "scenes"
    root: Annotated[Path | None, Option(help="Folder of the data set.")] = None
    split: Annotated[str | None, Option(help="Data set split (default: its standard one).")] = None
    protocol: Annotated[
        str | None,
        Option(help=f"{', '.join(PROTOCOLS)}, or a .toml file (default: paper)."),
    ] = None
    methods: Methods = DEFAULT_METHODS
    limit: Annotated[
        int | None,
        Option(min=1, help="Number of images, drawn at random (default: all; 500 for scenes)."),
    ] = None
    seed: Annotated[int, Option(help="Seed of the images that --limit draws.")] = 0
    tasks: Annotated[
        str | None,
        Option(
            help=f"Comma-separated tasks: {', '.join(TASKS)} (default: all that the data set "
            "supports)."
        ),
    ] = None
    measures: Annotated[
        str,
        Option(help=f"For scenes, comma-separated measures or 'all': {', '.join(MEASURES)}."),
    ] = "localization"
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
        Path, Option(help="Folder of the export; the same command again goes on with it.")
    ]
    top: Annotated[int, Option(min=0, help="Number of best texts to store per image.")] = 5
    maps: Annotated[bool, Option(help="Store maps, or only embeddings and the best texts.")] = True
    size: Size = None
    batch_size: BatchSize = 8
    shard_size: Annotated[
        int, Option(min=1, help="Images per output file; each input .tar makes one file.")
    ] = 1000
    column: Annotated[
        str | None, Option(help="Column of images in a table (default: the only one).")
    ] = None
    fast: Annotated[
        bool, Option("--fast", help="Resize images faster and slightly less exactly.")
    ] = False
    compile: Annotated[
        bool, Option("--compile", help="Compile the image tower with torch.compile.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class Export:
    """Explain a large collection. Writes maps, embeddings and best texts as Parquet files."""

    export: ExportOptions
    texts: TextOptions
    distractors: Distractors = None
    num_blocks: NumBlocks = None
    clip: ModelOptions
    precision: Annotated[Precision, Option(help="Precision of the model.")] = "fp32"
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
class Models:
    """List models of open_clip and transformers: patch grids, or why they are not supported."""

    json: Json = False


@dataclass(frozen=True, kw_only=True)
class Check:
    """Check a checkpoint. Reports outlier tokens, what texts share, and suggests num_blocks."""

    images: Annotated[
        list[str] | None,
        Argument(help="Image files, folders or glob patterns (default: scenes of emoji)."),
    ] = None
    text: Text = None
    clip: ModelOptions
    size: Size = None
    output: Output = Path("clip-surgery-check")
    json: Json = False


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Arguments of `app.serve`."""

    host: Annotated[str, Option(help="Address to listen on; 0.0.0.0 accepts other machines.")] = (
        "127.0.0.1"
    )
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
class App:
    """Serve the web demo. Images, texts and methods are chosen in the browser."""

    clip: ModelOptions
    server: ServerOptions
