"""`evaluate`, `models` and `check`: how well methods do, and which models work."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from captum_clip_surgery.catalog import list_models
from captum_clip_surgery.catalog import to_markdown as models_to_markdown
from captum_clip_surgery.checkup import tower_report
from captum_clip_surgery.cli.common import (
    USUAL_METHODS,
    Json,
    Methods,
    Model,
    Pretrained,
    Rivals,
    Size,
    find_images,
    load_model,
    names_of,
    read_lines,
    report_left_out,
    save,
)
from captum_clip_surgery.demo import Scenes, nouns
from captum_clip_surgery.evaluation import MEASURES, evaluate_scenes
from captum_clip_surgery.registry import choose
from captum_clip_surgery.results import LONG, SHORT, circumstances, to_markdown
from captum_clip_surgery.results import write as write_results
from captum_clip_surgery.visualization import report_figure

CHECKED_SCENES = 12
EVERYDAY = (  # what images are asked about where nobody says
    "person, dog, cat, bird, horse, car, boat, building, window, tree, flower, grass, road, sky, "
    "water, mountain, chair, table, food, sign"
)


def evaluate(
    dataset: Annotated[str, typer.Option(help="scenes: those of the embedded model.")] = "scenes",
    methods: Methods = USUAL_METHODS,
    limit: Annotated[int, typer.Option(min=1, help="How many images.")] = 500,
    split: Annotated[str, typer.Option(help="test or validation.")] = "test",
    measures: Annotated[
        str, typer.Option(help=f"{', '.join(MEASURES)}, comma between, or all.")
    ] = "localization",
    rivals: Rivals = None,
    size: Size = None,
    model: Model = None,
    pretrained: Pretrained = None,
    output: Annotated[Path, typer.Option(help="Folder for results.")] = Path(
        "clip-surgery-results"
    ),
) -> None:
    """Measure methods against the masks of a data set: JSON, CSV, Markdown and a chart."""
    if dataset != "scenes":
        raise ValueError(f"there is no data set {dataset!r}; there is scenes")
    clip = load_model(model, pretrained, ["dog"], ())
    chosen, left_out = choose(clip, names_of(methods))
    report_left_out(left_out)
    scenes = Scenes(split, limit, size or clip.native_size[0], objects=[2, 3])
    results = evaluate_scenes(
        clip,
        scenes,
        chosen,
        read_lines(rivals),
        size,
        progress=sys.stderr.isatty(),
        measures=MEASURES if measures == "all" else names_of(measures),
    )
    about = {
        "dataset": f"scenes of 2 or 3 objects, {split}",
        "images": limit,
        "model": clip.tower.describe(),
        "left_out": left_out,
        **circumstances(clip.device),
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
    """Check up a checkpoint: outlier tokens, what texts share, and a depth of surgery to try."""
    texts = text or (nouns() if model is None else EVERYDAY.split(", "))
    clip = load_model(model, pretrained, texts, (), quiet=as_json)
    scenes = Scenes("test", CHECKED_SCENES, clip.native_size[0])
    batch = clip.preprocess(
        find_images(images) if images else [scene.image for scene in scenes], size
    )
    report = tower_report(clip, batch)
    path = save(report_figure(report), output / "check.png")
    if not images and not as_json:
        print(
            "No images given: what follows is of scenes of emoji. Give pictures of your own kind."
        )
    print(json.dumps(report.to_dict(), indent=2) if as_json else f"{report}\n\nfigure: {path}")
