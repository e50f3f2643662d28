"""Options that several commands share, and the groups that always go together.

Nothing heavy is imported here, because `--help` reads these classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from captum_clip_surgery.cli._choices import (
    MAX_SIDE,
    METHODS,
    AutoFeatureSurgery,
    Dataset,
    Device,
    Engine,
    FigureFormat,
    Positions,
    Precision,
    Repair,
    Sign,
)

#: Titles under which `--help` lists options, and their fields. Others are under "Options".
PANELS = {
    field: title
    for title, fields in {
        "Texts": "text texts query query_image minus caption synonyms background "
        "no_background distractors",
        "Model": "model pretrained also positions device precision",
        "Method": "methods method size fine repair feature_surgery num_blocks window stride "
        "keep_aspect refine threshold union instances boxes down_sample special trust sam "
        "min_images false_alarms cues exact",
        "Data": "dataset root split protocol limit seed tasks measures scenes column",
        "Results": "output json sign format scales npz top maps shard_size masks pairs",
        "Processes": "batch_size workers array engine timeout actors num_gpus address retries "
        "resume verify plan fast compile",
        "Server": "host port password share",
    }.items()
    for field in fields.split()
}

Images = Annotated[
    list[str],
    Argument(help="Image files, folders or glob patterns.", show_default=False),
]
Text = Annotated[list[str] | None, Option(help="Text to look for; repeat for more.")]
Minus = Annotated[
    str | None,
    Option(
        metavar="TEXT",
        help="Text to subtract: maps show what matches each text or image better than this text.",
    ),
]
Texts = Annotated[
    Path | None,
    Option(metavar="FILE", help="File with one text per line."),
]
Distractors = Annotated[
    Path | None,
    Option(
        metavar="FILE",
        help="File with one text per line; these texts compete but get no map.",
    ),
]
Methods = Annotated[
    str,
    Option(
        metavar="NAMES",
        help=f"Comma-separated method names, or 'all': {', '.join(METHODS)}.",
    ),
]
Surgery = Annotated[
    AutoFeatureSurgery,
    Option(help="Variant of feature surgery; 'auto' chooses by the number of texts."),
]
Fine = Annotated[
    bool,
    Option(
        "--fine",
        help="Average maps over four shifted copies of the enlarged image, for finer maps at about "
        "six times the cost.",
    ),
]
Repaired = Annotated[
    Repair | None,
    Option(
        "--repair",
        help="Remedy for outlier tokens, which 'check' reports: replace them ('auto' only those of "
        "extreme norm), aggregate patches by likeness, or move them to registers found from the "
        "images.",
    ),
]
Size = Annotated[
    int | None,
    Option(
        min=1,
        max=MAX_SIDE,
        help="Side in pixels of the images the model sees (default: its native size).",
    ),
]
Trust = Annotated[
    bool,
    Option(
        "--trust",
        help="Show below each map how much it depends on its text; 'explain' also writes a report "
        "on the first method. Runs the methods again for each text alone and for four absent "
        "texts.",
    ),
]
NumBlocks = Annotated[
    int | None,
    Option(
        min=0,
        help="Number of last blocks that surgery spans (default: 6, or all if there are fewer; 0 "
        "for towers pooled by learned queries).",
    ),
]
BatchSize = Annotated[int, Option(min=1, help="Images per forward pass.")]
Workers = Annotated[int, Option(min=0, help="Number of processes that load images.")]
Resume = Annotated[
    bool,
    Option(
        "--resume/--no-resume",
        help="Reuse statistics in the output folder, or measure all images again.",
    ),
]
Timeout = Annotated[
    float, Option(help="Seconds that the processes of torchrun wait for each other.")
]
Array = Annotated[
    str | None,
    Option(
        metavar="I/N",
        help="Task i of n of a job array, as i/n from 0; all share the output folder.",
    ),
]
RunBy = Annotated[Engine, Option(help="This process or those of torchrun, or Ray's actors.")]
Output = Annotated[
    Path,
    Option("--output", "-o", file_okay=False, metavar="FOLDER", help="Folder for the results."),
]
Json = Annotated[bool, Option("--json", help="Print the results as JSON.")]


DatasetName = Annotated[
    Dataset, Option(help="Data set; 'scenes' are rendered for the embedded model.")
]
Root = Annotated[Path | None, Option(metavar="FOLDER", help="Folder of the data set.")]
Split = Annotated[
    str | None, Option(metavar="NAME", help="Data set split (default: its standard one).")
]


@dataclass(frozen=True, kw_only=True)
class Command:
    """Options of every command."""

    verbose: Annotated[
        bool, Option("--verbose", help="Show where an error comes from, as a traceback.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The model."""

    model: Annotated[
        str | None,
        Option(
            metavar="NAME",
            help="open_clip model name, or a folder or hub repository in open_clip or "
            "transformers format (default: the small embedded model).",
        ),
    ] = None
    pretrained: Annotated[
        str | None,
        Option(metavar="TAG", help="open_clip pretrained tag or checkpoint file."),
    ] = None
    positions: Annotated[
        Positions | None,
        Option(
            help="How positional embeddings are resized at sizes other than the native one: "
            "'bilinear' as in CLIP Surgery, or 'bicubic' as in NACLIP and other dense methods "
            "(default: as a protocol says, otherwise 'bilinear')."
        ),
    ] = None
    device: Annotated[
        Device | None,
        Option(help="Device that computes (default: 'cuda' if there is one, otherwise 'cpu')."),
    ] = None
    precision: Annotated[Precision, Option(help="Precision of the model's weights.")] = "fp32"


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """Texts, given on the command line, in a file, or both."""

    text: Text = None
    texts: Texts = None


@dataclass(frozen=True, kw_only=True)
class QueryOptions:
    """Queries other than texts."""

    query_image: Annotated[
        list[Path] | None,
        Option(metavar="FILE", help="Image to look for, in addition to texts; repeat for more."),
    ] = None
    minus: Minus = None

    def absolute(self) -> QueryOptions:
        """Return the same queries for processes that run in other folders."""
        paths = self.query_image
        return replace(self, query_image=paths and [path.absolute() for path in paths])


@dataclass(frozen=True, kw_only=True)
class DrawingOptions:
    """Style and file format of figures."""

    sign: Annotated[
        Sign,
        Option(
            help="Which values to draw. 'auto' draws two colors around zero for maps of both signs "
            "and otherwise colors from the lowest to the highest value ('range')."
        ),
    ] = "auto"
    format: Annotated[FigureFormat, Option(help="File format of the figures.")] = "png"


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """Arguments of `run_on_ray`."""

    actors: Annotated[int, Option(min=1, help="With Ray: number of actors.")] = 1
    num_gpus: Annotated[float, Option(min=0, help="With Ray: GPUs per actor.")] = 0.0
    address: Annotated[
        str | None,
        Option(help="With Ray: address of a cluster, or 'auto' (default: Ray on this machine)."),
    ] = None
    retries: Annotated[
        int, Option(min=0, help="With Ray: number of lost actors that are replaced.")
    ] = 3
