"""The command line: `clip-surgery demo`, `explain`, `compare`, `evaluate`, `models`, `check`."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import captum_clip_surgery
from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery.catalog import list_models
from captum_clip_surgery.catalog import to_markdown as models_to_markdown
from captum_clip_surgery.checkup import tower_report
from captum_clip_surgery.comparison import compare as compare_methods
from captum_clip_surgery.demo import Scenes, nouns
from captum_clip_surgery.evaluation import MEASURES, evaluate_scenes
from captum_clip_surgery.functional import FORMS
from captum_clip_surgery.methods.base import Method
from captum_clip_surgery.preprocessing import load_picture
from captum_clip_surgery.registry import METHODS, USUAL, choose
from captum_clip_surgery.results import circumstances, to_markdown
from captum_clip_surgery.results import write as write_results
from captum_clip_surgery.surgery import LayerClipSurgery
from captum_clip_surgery.visualization import compare_figure, report_figure

CHECKED_SCENES = 12
EVERYDAY = (  # what images are asked about where nobody says
    "person, dog, cat, bird, horse, car, boat, building, window, tree, flower, grass, road, sky, "
    "water, mountain, chair, table, food, sign"
)
DEMO_SCENE = 39  # of the test scenes of two and three objects: three, large and apart
ABOUT_THE_DEMO_MODEL = (
    "This is the embedded model: small, trained by this project on scenes of emoji, not for "
    "photographs."
)

Model = Annotated[str | None, typer.Option(help="open_clip name, local-dir:FOLDER or hf-hub:REPO.")]
Pretrained = Annotated[str | None, typer.Option(help="open_clip tag or checkpoint file.")]
Size = Annotated[int | None, typer.Option(min=1, help="Side of the images in pixels.")]
Rivals = Annotated[
    Path | None, typer.Option(help="File of texts, one a line, that compete but get no map.")
]
Methods = Annotated[str, typer.Option(help="Names, comma between, or all.")]
USUAL_METHODS = ",".join(USUAL)

app = typer.Typer(
    help="Explain what CLIP sees, and where.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Run the command line; what a user can mend ends in one line, not in a traceback."""
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    try:
        app()
    except (ValueError, TypeError, IndexError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    if show:
        print(captum_clip_surgery.__version__)
        raise typer.Exit


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the figure.")] = Path(
        "clip-surgery-demo"
    ),
    scenes: Annotated[int, typer.Option(min=1, help="Scenes to measure on.")] = 8,
) -> None:
    """Explain a picture with the embedded model and measure each method on scenes."""
    print(ABOUT_THE_DEMO_MODEL)
    split = Scenes("test", max(scenes, DEMO_SCENE + 1), size=256, objects=[2, 3])
    scene = split[DEMO_SCENE]
    clip = ZeroShotClassifier.demo(scene.nouns)
    maps = _explain(clip, clip.preprocess(scene.image))
    path = _write_figure(output / "demo.png", scene.image, maps, clip.texts)
    usual = {name: METHODS[name] for name in USUAL}
    measured = evaluate_scenes(
        clip, split[:scenes], usual, progress=sys.stderr.isatty(), confidence=False
    )
    pairs = measured["CLIP"].measures["pairs"]
    print(
        f"\nHow well the maps find {pairs:.0f} objects in {scenes} test scenes, "
        "against their masks:\n"
    )
    print(to_markdown(measured))
    print(
        "\nmIoU: overlap with the mask in percent. mSC: score inside minus outside, in percent; "
        "below zero\na method points at the background. pointing: percent of maxima inside. "
        "ms: time of an image."
    )
    print(f"\nThe figure is {path}.")
    print(
        "Next: clip-surgery explain photo.jpg --text dog --text cat"
        " --model ViT-B-16 --pretrained openai"
    )


@app.command()
def explain(
    images: Annotated[list[Path], typer.Argument(help="Image files.", show_default=False)],
    text: Annotated[list[str], typer.Option(help="A text to look for; repeat for more.")],
    rivals: Rivals = None,
    model: Model = None,
    pretrained: Pretrained = None,
    size: Size = None,
    feature_surgery: Annotated[
        str, typer.Option(help=f"auto, {', '.join(FORMS)} or none.")
    ] = "auto",
    output: Annotated[Path, typer.Option(help="Folder for figures and maps.")] = Path(
        "clip-surgery-maps"
    ),
    npz: Annotated[bool, typer.Option(help="Also write the raw maps as NPZ files.")] = False,
) -> None:
    """Explain images for texts: a figure each, with the ranking of the texts."""
    clip = _load(model, pretrained, text, _read_lines(rivals))
    surgery = LayerClipSurgery(
        clip, feature_surgery=None if feature_surgery == "none" else feature_surgery
    )
    stems = dict(zip(images, _unique_stems(images), strict=True))
    pictures, failed = _load_pictures(images)
    for path, picture in pictures.items():
        stem = stems[path]
        batch = clip.preprocess(picture, size)
        maps = _explain(clip, batch, surgery)
        with torch.no_grad():
            probabilities = clip(batch)[0].softmax(-1)
        figure = _write_figure(output / f"{stem}-maps.png", np.asarray(picture), maps, clip.texts)
        print(f"{path} -> {figure}")
        for index in probabilities.argsort(descending=True).tolist():
            print(f"  {probabilities[index]:6.1%}  {clip.texts[index]}")
        if npz:
            _write_maps(output / f"{stem}-maps.npz", maps, clip.texts)
    _report_failed(failed, len(images))


@app.command()
def compare(
    images: Annotated[list[Path], typer.Argument(help="Image files.", show_default=False)],
    text: Annotated[list[str], typer.Option(help="A text to look for; repeat for more.")],
    methods: Methods = USUAL_METHODS,
    rivals: Rivals = None,
    model: Model = None,
    pretrained: Pretrained = None,
    size: Size = None,
    shared: Annotated[bool, typer.Option(help="One scale for all maps of a method.")] = False,
    output: Annotated[Path, typer.Option(help="Folder for the figure and the table.")] = Path(
        "clip-surgery-compare"
    ),
) -> None:
    """Explain images by several methods, side by side in one figure."""
    clip = _load(model, pretrained, text, _read_lines(rivals))
    pictures, failed = _load_pictures(images)
    comparison = compare_methods(clip, list(pictures.values()), methods=_names(methods), size=size)
    _report_left_out(comparison.left_out)
    table = comparison.to_markdown()
    print(table)
    path = _save(comparison.figure(shared), output / "compare.png")
    (output / "compare.md").write_text(table + "\n")
    print(f"figure: {path}")
    _report_failed(failed, len(images))


def _names(methods: str) -> list[str]:
    return [name.strip() for name in methods.split(",")]


def _load_pictures(paths: Sequence[Path]) -> tuple[dict[Path, Image.Image], list[Path]]:
    """Pictures by path, and the paths that could not be read."""
    pictures, failed = {}, []
    for path in paths:
        try:
            pictures[path] = load_picture(path)
        except (ValueError, OSError) as error:
            print(f"skipped: {error}", file=sys.stderr)
            failed.append(path)
    if not pictures:
        _report_failed(failed, len(paths))
    return pictures, failed


def _report_failed(failed: Sequence[Path], count: int) -> None:
    if failed:
        names = ", ".join(map(str, failed))
        sys.exit(f"error: {len(failed)} of {count} images could not be read: {names}")


def _report_left_out(left_out: Mapping[str, str]) -> None:
    for name, why in left_out.items():
        print(f"left out: {name}: {why}", file=sys.stderr)


@app.command()
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
    clip = _load(model, pretrained, ["dog"], ())
    chosen, left_out = choose(clip, _names(methods))
    _report_left_out(left_out)
    scenes = Scenes(split, limit, size or clip.native_size[0], objects=[2, 3])
    results = evaluate_scenes(
        clip,
        scenes,
        chosen,
        _read_lines(rivals),
        size,
        progress=sys.stderr.isatty(),
        measures=MEASURES if measures == "all" else _names(measures),
    )
    about = {
        "dataset": f"scenes of 2 or 3 objects, {split}",
        "images": limit,
        "model": clip.tower.describe(),
        "left_out": left_out,
        **circumstances(clip.device),
    }
    write_results(results, output, about)
    print(to_markdown(results, memory=True))
    print(f"\nAll measures, intervals and a chart are in {output}.")


@app.command()
def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List open_clip's configurations: which work, on what grid, and why the others do not."""
    entries = list_models(progress=sys.stderr.isatty())
    if as_json:
        print(json.dumps([entry.to_dict() for entry in entries], indent=2))
    else:
        print(models_to_markdown(entries))


@app.command()
def check(
    images: Annotated[
        list[Path] | None, typer.Argument(help="Image files; scenes of the demo if none.")
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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check up a checkpoint: outlier tokens, what texts share, and a depth of surgery to try."""
    texts = text or (nouns() if model is None else EVERYDAY.split(", "))
    clip = _load(model, pretrained, texts, (), quiet=as_json)
    scenes = Scenes("test", CHECKED_SCENES, clip.native_size[0])
    batch = clip.preprocess(images or [scene.image for scene in scenes], size)
    report = tower_report(clip, batch)
    path = _save(report_figure(report), output / "check.png")
    if not images and not as_json:
        print(
            "No images given: what follows is of scenes of emoji. Give pictures of your own kind."
        )
    print(json.dumps(report.to_dict(), indent=2) if as_json else f"{report}\n\nfigure: {path}")


def _load(
    model: str | None,
    pretrained: str | None,
    texts: Sequence[str],
    rivals: Sequence[str],
    quiet: bool = False,
) -> ZeroShotClassifier:
    if model is None:
        if pretrained is not None:
            raise ValueError("--pretrained needs --model")
        if not quiet:
            print(f"No --model given. {ABOUT_THE_DEMO_MODEL}")
        return ZeroShotClassifier.demo(texts, rivals)
    return ZeroShotClassifier.from_pretrained(model, pretrained, texts, rivals)


def _explain(
    clip: ZeroShotClassifier, batch: Tensor, surgery: LayerClipSurgery | None = None
) -> dict[str, Tensor]:
    """The maps of every method for one image."""
    methods: dict[str, Method] = {name: METHODS[name] for name in USUAL}
    if surgery is not None:
        methods["ClipSurgery"] = lambda _: surgery.attribute_all
    bar = tqdm(methods.items(), leave=False, disable=not sys.stderr.isatty())
    maps = {}
    for name, method in bar:
        bar.set_description(name)
        maps[name] = method(clip)(batch)[0].detach().cpu()
    return maps


def _write_figure(
    path: Path, picture: np.ndarray, maps: Mapping[str, Tensor], texts: Sequence[str]
) -> Path:
    batched = {name: values[None] for name, values in maps.items()}
    return _save(compare_figure([picture], batched, texts), path)


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def _write_maps(path: Path, maps: Mapping[str, Tensor], texts: Sequence[str]) -> None:
    """One array (K, h, w) a method, and the texts."""
    arrays = {name: values.numpy() for name, values in maps.items()}
    np.savez_compressed(path, texts=np.array(texts), **arrays)  # type: ignore[arg-type]


def _unique_stems(paths: Sequence[Path]) -> list[str]:
    """A name for each image's results, numbered where two images share theirs."""
    stems: list[str] = []
    for path in paths:
        stem, number = path.stem, 2
        while stem in stems:
            stem, number = f"{path.stem}-{number}", number + 1
        stems.append(stem)
    return stems


def _read_lines(path: Path | None) -> list[str]:
    if path is None:
        return []
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line]
