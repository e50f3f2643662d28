"""`demo`, `explain` and `compare`: where a model sees texts."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor
from tqdm import tqdm

from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery.attr import attribute_many
from captum_clip_surgery.attr.clip_surgery import LayerCLIPSurgery
from captum_clip_surgery.attr.registry import DEFAULT_METHODS, METHODS, make_all
from captum_clip_surgery.cli.common import (
    ABOUT_THE_DEMO_MODEL,
    USUAL_METHODS,
    Distractors,
    Format,
    Images,
    Methods,
    Model,
    Pictures,
    Pretrained,
    Sign,
    Size,
    check_drawing,
    load_model,
    names_of,
    read_lines,
    report_left_out,
    say,
)
from captum_clip_surgery.comparison import check_rows
from captum_clip_surgery.comparison import compare as compare_methods
from captum_clip_surgery.demo import Scenes
from captum_clip_surgery.evaluation import evaluate_scenes
from captum_clip_surgery.evaluation.results import to_markdown
from captum_clip_surgery.functional import FORMS
from captum_clip_surgery.visualization import compare_figure, save_figure

DEMO_SCENE = 60  # of the test scenes of two and three objects: three, each found by its own map


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
    usual = {name: METHODS[name] for name in DEFAULT_METHODS}
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


def explain(
    images: Images,
    text: Annotated[list[str], typer.Option(help="A text to look for; repeat for more.")],
    distractors: Distractors = None,
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
    sign: Sign = "range",
    kind: Format = "png",
) -> None:
    """Explain images for texts: a figure each, with the ranking of the texts."""
    check_drawing(sign, kind)
    clip = load_model(model, pretrained, text, read_lines(distractors))
    surgery = LayerCLIPSurgery(
        clip, feature_surgery=None if feature_surgery == "none" else feature_surgery
    )
    pictures = Pictures(images)
    for path, picture in pictures:
        stem = pictures.stems[path]
        batch = clip.preprocess(picture, size)
        maps = _explain(clip, batch, surgery)
        with torch.no_grad():
            probabilities = clip(batch)[0].softmax(-1)
        written = output / f"{stem}-maps.{kind}"
        figure = _write_figure(written, np.asarray(picture), maps, clip.texts, sign)
        say(f"{path} -> {figure}")
        for index in probabilities.argsort(descending=True).tolist():
            say(f"  {probabilities[index]:6.1%}  {clip.texts[index]}")
        if npz:
            _write_maps(output / f"{stem}-maps.npz", maps, clip.texts)
    pictures.report()


def compare(
    images: Images,
    text: Annotated[list[str], typer.Option(help="A text to look for; repeat for more.")],
    methods: Methods = USUAL_METHODS,
    distractors: Distractors = None,
    model: Model = None,
    pretrained: Pretrained = None,
    size: Size = None,
    shared: Annotated[bool, typer.Option(help="One scale for all maps of a method.")] = False,
    output: Annotated[Path, typer.Option(help="Folder for the figure and the table.")] = Path(
        "clip-surgery-compare"
    ),
    sign: Sign = "range",
    kind: Format = "png",
) -> None:
    """Explain images by several methods, side by side in one figure."""
    check_drawing(sign, kind)
    clip = load_model(model, pretrained, text, read_lines(distractors))
    pictures = Pictures(images)
    readable = [picture for _, picture in pictures]
    if not readable:
        pictures.report()
    check_rows(len(readable), len(clip.texts))  # before the work, not after it
    comparison = compare_methods(clip, readable, methods=names_of(methods), size=size)
    report_left_out(comparison.left_out)
    table = comparison.to_markdown()
    print(table)
    path = save_figure(comparison.figure(shared, sign), output / f"compare.{kind}")
    (output / "compare.md").write_text(table + "\n")
    print(f"figure: {path}")
    pictures.report()


def _explain(
    clip: ZeroShotClassifier, batch: Tensor, surgery: LayerCLIPSurgery | None = None
) -> dict[str, Tensor]:
    """The maps of every method for one image."""
    methods = make_all(clip, {name: METHODS[name] for name in DEFAULT_METHODS})
    if surgery is not None:
        methods["CLIPSurgery"] = surgery
    bar = tqdm(methods.items(), leave=False, disable=not sys.stderr.isatty())
    maps = {}
    for name, method in bar:
        bar.set_description(name)
        maps[name] = attribute_many({name: method}, batch)[name][0].detach().cpu()
    return maps


def _write_figure(
    path: Path,
    picture: np.ndarray,
    maps: Mapping[str, Tensor],
    texts: Sequence[str],
    sign: str = "range",
) -> Path:
    batched = {name: values[None] for name, values in maps.items()}
    return save_figure(compare_figure([picture], batched, texts, sign=sign), path)


def _write_maps(path: Path, maps: Mapping[str, Tensor], texts: Sequence[str]) -> None:
    """One array (K, h, w) a method, and the texts."""
    arrays = {name: values.numpy() for name, values in maps.items()}
    np.savez_compressed(path, texts=np.array(texts), **arrays)  # type: ignore[arg-type]
