"""`evaluate`, `models` and `check`: how well methods do, and which models work."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from captum_clip_surgery._utils.distributed import TIMEOUT_S, processes, refuse_several
from captum_clip_surgery._utils.provenance import environment_info
from captum_clip_surgery.attr._base import Method
from captum_clip_surgery.attr.registry import choose
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.cli.common import (
    USUAL_METHODS,
    Distractors,
    Json,
    Methods,
    Model,
    Pretrained,
    Size,
    find_images,
    load_model,
    names_of,
    read_lines,
    report_left_out,
)
from captum_clip_surgery.cli.datasets import Asked, run
from captum_clip_surgery.datasets import DATASETS
from captum_clip_surgery.demo import Scenes, nouns
from captum_clip_surgery.diagnostics import tower_report
from captum_clip_surgery.evaluation import MEASURES, TASKS, evaluate_scenes
from captum_clip_surgery.evaluation.results import LONG, SHORT, to_markdown
from captum_clip_surgery.evaluation.results import write as write_results
from captum_clip_surgery.models.catalog import list_models
from captum_clip_surgery.models.catalog import to_markdown as models_to_markdown
from captum_clip_surgery.visualization import report_figure, save_figure

CHECKED_SCENES, SCENES = 12, 500
EVERYDAY = (  # what images are asked about where nobody says
    "person, dog, cat, bird, horse, car, boat, building, window, tree, flower, grass, road, sky, "
    "water, mountain, chair, table, food, sign"
)


def evaluate(
    dataset: Annotated[
        str, typer.Option(help=f"scenes: those of the embedded model; or {', '.join(DATASETS)}.")
    ] = "scenes",
    root: Annotated[Path | None, typer.Option(help="Folder of the data set.")] = None,
    protocol: Annotated[
        str | None,
        typer.Option(help="paper, dense, imagenet-segmentation, present, or a .toml file; paper."),
    ] = None,
    methods: Methods = USUAL_METHODS,
    limit: Annotated[
        int | None, typer.Option(min=1, help="How many images; all, and 500 scenes.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of the data set; the usual one.")] = None,
    tasks: Annotated[
        str | None, typer.Option(help=f"{', '.join(TASKS)}, comma between; all that fit.")
    ] = None,
    measures: Annotated[
        str, typer.Option(help=f"Of scenes: {', '.join(MEASURES)}, comma between, or all.")
    ] = "localization",
    distractors: Distractors = None,
    size: Size = None,
    batch: Annotated[int, typer.Option(min=1, help="Images in one pass.")] = 8,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read ahead.")] = 1,
    model: Model = None,
    pretrained: Pretrained = None,
    output: Annotated[Path, typer.Option(help="Folder for results.")] = Path(
        "clip-surgery-results"
    ),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run that lies in the folder.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(help="Seconds that processes of torchrun wait for each other.")
    ] = TIMEOUT_S,
) -> None:
    """Measure methods against the truth of a data set: JSON, CSV, Markdown and figures."""
    if dataset == "scenes":
        refuse_several("evaluate --dataset scenes")
        if root is not None or tasks is not None or protocol is not None or resume:
            raise ValueError(
                "--root, --tasks, --protocol and --resume are of data sets on disk; scenes are "
                "rendered"
            )
        clip = load_model(model, pretrained, ["dog"], ())
        chosen, left_out = choose(clip, names_of(methods))
        report_left_out(left_out)
        _evaluate_scenes(
            clip, chosen, left_out, limit, split or "test", measures, distractors, size, output
        )
        return
    if dataset not in DATASETS:
        known = ", ".join(["scenes", *DATASETS])
        raise ValueError(f"there is no data set {dataset!r}; there are {known}")
    if root is None:
        raise ValueError(f"--dataset {dataset} needs --root, the folder it was unpacked in")
    if distractors is not None or size is not None or measures != "localization":
        raise ValueError(
            "--distractors, --size and --measures are of scenes; a protocol says the rest"
        )
    asked = Asked(
        dataset,
        root,
        split,
        protocol or "paper",
        names_of(methods),
        names_of(tasks) if tasks else None,
        limit,
        batch,
        workers,
        model,
        pretrained,
        output,
        resume,
    )
    with processes(timeout) as dist:
        run(asked, dist)


def _evaluate_scenes(
    clip: ZeroShotClassifier,
    methods: Mapping[str, Method],
    left_out: Mapping[str, str],
    limit: int | None,
    split: str,
    measures: str,
    distractors: Path | None,
    size: int | None,
    output: Path,
) -> None:
    limit = SCENES if limit is None else limit
    scenes = Scenes(split, limit, size or clip.native_size[0], objects=[2, 3])
    results = evaluate_scenes(
        clip,
        scenes,
        methods,
        read_lines(distractors),
        size,
        progress=sys.stderr.isatty(),
        measures=MEASURES if measures == "all" else names_of(measures),
    )
    about = {
        "dataset": f"scenes of 2 or 3 objects, {split}",
        "images": limit,
        "model": clip.tower.describe(),
        "left_out": left_out,
        **environment_info(clip.device),
    }
    write_results(results, output, about)
    print(to_markdown(results, SHORT if measures == "localization" else LONG, memory=True))
    print(f"\nAll measures, intervals and a chart are in {output}.")


def models(
    as_json: Json = False,
) -> None:
    """List open_clip's configurations: which work, on what grid, and why the others do not."""
    entries = list_models(progress=sys.stderr.isatty())
    if as_json:
        print(json.dumps([entry.to_dict() for entry in entries], indent=2))
    else:
        print(models_to_markdown(entries))


def check(
    images: Annotated[
        list[str] | None,
        typer.Argument(help="Image files, folders or patterns; scenes of the demo if none."),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="A text to ask about; repeat for more.")
    ] = None,
    model: Model = None,
    pretrained: Pretrained = None,
    size: Size = None,
    output: Annotated[Path, typer.Option(help="Folder for the figure.")] = Path(
        "clip-surgery-check"
    ),
    as_json: Json = False,
) -> None:
    """Check a checkpoint: outlier tokens, what texts share, and how many blocks to repair."""
    texts = text or (nouns() if model is None else EVERYDAY.split(", "))
    clip = load_model(model, pretrained, texts, (), quiet=as_json)
    scenes = Scenes("test", CHECKED_SCENES, clip.native_size[0])
    batch = clip.preprocess(
        find_images(images) if images else [scene.image for scene in scenes], size
    )
    report = tower_report(clip, batch)
    path = save_figure(report_figure(report), output / "check.png")
    if not images and not as_json:
        print(
            "No images given: what follows is of scenes of emoji. Give pictures of your own kind."
        )
    print(json.dumps(report.to_dict(), indent=2) if as_json else f"{report}\n\nfigure: {path}")
