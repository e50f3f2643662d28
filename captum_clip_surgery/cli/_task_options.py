"""Options of the commands for tasks: `segment`, `recognize`, `points` and `words`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from captum_clip_surgery.cli._choices import (
    MAX_SIDE,
    FeatureSurgery,
    Instances,
    Refinement,
    WordMethod,
)
from captum_clip_surgery.cli._groups import (
    Command,
    Distractors,
    Fine,
    Images,
    Json,
    ModelOptions,
    NumBlocks,
    Output,
    QueryOptions,
    Size,
    Surgery,
    TextOptions,
)


@dataclass(frozen=True, kw_only=True)
class SegmentationOptions:
    """Arguments of `tasks.segment`."""

    size: Annotated[
        int | None,
        Option(
            min=1,
            max=MAX_SIDE,
            help="Side in pixels of the images the model sees (default: 512, or the native size "
            "if larger; 224 for the embedded model).",
        ),
    ] = None
    window: Annotated[
        int | None,
        Option(min=1, help="Side of sliding windows in pixels (default: the whole image)."),
    ] = None
    stride: Annotated[
        int | None,
        Option(min=1, help="Distance between windows in pixels (default: half of the window)."),
    ] = None
    keep_aspect: Annotated[
        bool, Option("--keep-aspect", help="Keep the aspect ratio instead of squashing images.")
    ] = False
    refine: Annotated[
        Refinement | None,
        Option(
            help="Align the segments with image edges: 'guided' is a guided filter (needs kornia), "
            "'pamr' is pixel-adaptive mask refinement."
        ),
    ] = None
    feature_surgery: Annotated[
        FeatureSurgery, Option(help="Variant of feature surgery; the paper uses none.")
    ] = "none"
    num_blocks: NumBlocks = None
    fine: Fine = False


#: An option that explains in its error why the command does not have it.
NotDefined = Annotated[str | None, Option(hidden=True, help="Not defined.")]


@dataclass(frozen=True, kw_only=True)
class ImageQueryOptions(QueryOptions):
    """Queries that are images."""

    minus: NotDefined = None


@dataclass(frozen=True, kw_only=True)
class Segment(Command):
    """Assign every pixel to its best text. Writes label images, their classes, and figures.

    Example:
        clip-surgery segment photos/ --text cat --text sofa --model ViT-B-16 --pretrained openai
    """

    images: Images
    texts: TextOptions
    queries: ImageQueryOptions
    synonyms: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            help="File with one class per line: its name and, after commas, other names for it. "
            "A first class named 'background' describes the background.",
        ),
    ] = None
    distractors: Distractors = None
    background: Annotated[
        list[str] | None,
        Option(
            help="Text that describes the background; repeat for more (default: a list of common "
            "surroundings, which the command prints)."
        ),
    ] = None
    no_background: Annotated[
        bool, Option("--no-background", help="Assign every pixel to one of the texts.")
    ] = False
    threshold: Annotated[
        float | None,
        Option(
            min=0,
            max=1,
            help="Probability of the best text below which a pixel is background as well.",
        ),
    ] = None
    clip: ModelOptions
    segmentation: SegmentationOptions
    masks: Annotated[
        bool, Option("--masks", help="Also write a black and white mask for each class.")
    ] = False
    output: Output = Path("clip-surgery-segments")
    json: Json = False


@dataclass(frozen=True, kw_only=True)
class Recognize(Command):
    """Name what images show. Writes the scores of all classes and figures.

    Example:
        clip-surgery recognize photos/ --texts classes.txt --model ViT-B-16 --pretrained openai
    """

    images: Images
    texts: TextOptions
    queries: QueryOptions
    distractors: Distractors = None
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
        float,
        Option(min=0, max=1, help="Value of the normalized map from which a point is positive."),
    ] = 0.8
    down_sample: Annotated[
        int,
        Option(
            min=1,
            help="Factor by which the map is reduced to place points (--instances one only).",
        ),
    ] = 2
    size: Size = None
    feature_surgery: Surgery = "auto"
    num_blocks: NumBlocks = None


@dataclass(frozen=True, kw_only=True)
class Points(Command):
    """Make prompts for Segment Anything. Writes points and boxes as JSON, figures, and masks.

    Example:
        clip-surgery points photo.jpg --text cat --model ViT-B-16 --pretrained openai
    """

    images: Images
    texts: TextOptions
    queries: QueryOptions
    distractors: Distractors = None
    prompts: PromptOptions
    sam: Annotated[
        Path | None,
        Option(
            metavar="PATH",
            help="SAM or SAM 2 in a folder written by transformers, or an original SAM checkpoint "
            "(needs segment-anything); its masks are drawn and saved.",
        ),
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
            help="'interactions' splits the cosine of image and caption into pairs of a word and a "
            "patch; 'surgery' compares the patches of architecture surgery with the text's tokens."
        ),
    ] = "interactions"
    special: Annotated[bool, Option("--special", help="Add maps for the start and end tokens.")] = (
        False
    )
    size: Size = None
    num_blocks: Annotated[
        int | None,
        Option(min=0, help="Number of last blocks that --method surgery spans (default: 6)."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Words(Command):
    """Locate each word of a caption. Writes figures and prints which words matter.

    Example:
        clip-surgery words photo.jpg --caption "a cat naps" --model ViT-B-16 --pretrained openai
    """

    images: Images
    caption: Annotated[str, Option(help="Sentence; each of its words gets a map.")]
    words: WordOptions
    query_image: Annotated[list[Path] | None, Option(hidden=True, help="Not defined.")] = None
    minus: NotDefined = None
    clip: ModelOptions
    output: Output = Path("clip-surgery-words")
    json: Json = False


@dataclass(frozen=True, kw_only=True)
class Match(Command):
    """Find what two images have in common. Writes a figure of matching regions, and JSON.

    Example:
        clip-surgery match one.jpg other.jpg --model ViT-B-16 --pretrained openai
    """

    images: Annotated[
        list[Path], Argument(help="Two image files: query and image.", show_default=False)
    ]
    pairs: Annotated[int, Option(min=1, help="Largest number of pairs of regions.")] = 3
    size: Size = None
    clip: ModelOptions
    output: Output = Path("clip-surgery-match")
    json: Json = False
