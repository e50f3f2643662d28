"""Tasks measured end to end on scenes of the embedded model, against their ground truth.

    python benchmarks/tasks.py [--scenes 500] [--split test] [--objects 2,3] [--model FOLDER]
        [--tasks segmentation,outlines,recognition,points,words] [--output FILE.md]

Segmentation among all nouns and among each scene's nouns, recognition among all nouns, location of
points for SAM, and pointing of word maps; in percent, except for the number of prompts per object.
The other figures of docs/tasks.md:

    python benchmarks/tasks.py --tasks points --objects 1 --scenes 100
    python benchmarks/tasks.py --tasks sizes --split validation --scenes 40
    python benchmarks/tasks.py --tasks replaced --split validation --scenes 80
    python benchmarks/tasks.py --tasks words --split validation --scenes 200

`sizes` segments images of several sizes, and windows of them, among all nouns. `replaced` puts an
absent noun in the place of one of each caption's nouns, and measures how often it has the lowest
value of the caption's nouns.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Annotated, Any

import torch
import typer
from _options import ModelFolder, TablesFile, load_model, split_names
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix, MultilabelAveragePrecision
from tqdm import tqdm

from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery._utils.tables import markdown
from captum_clip_surgery.demo import Scene, Scenes, nouns
from captum_clip_surgery.tasks import (
    Prompt,
    interactions,
    prompts,
    recognize,
    segment,
    word_maps,
)
from captum_clip_surgery.tasks._word_maps import METHODS as WORD_METHODS

VOID = -1
#: Backgrounds that segmentation is measured with, besides ignoring the pixels of no object.
BACKGROUNDS: tuple[Any, ...] = (["a background"], 0.5)
TITLES = (", background text", ", below 0.5")
#: Sides and strides in pixels of windows, for images of the native size; the best on validation
#: scenes is the first.
WINDOWS: tuple[dict[str, Any], ...] = tuple(
    {"window": window, "stride": stride}
    for window, stride in ((144, 40), (112, 56), (112, 28), (128, 48), (160, 32))
)


def truth(scene: Scene, classes: Sequence[str]) -> Tensor:
    """Return the class of each pixel, (H, W); `VOID` outside of objects."""
    labels = torch.full(scene.masks.shape[1:], VOID)
    for noun, mask in zip(scene.nouns, torch.from_numpy(scene.masks), strict=True):
        labels[mask] = classes.index(noun)
    return labels


def miou(clip: ZeroShotClassifier, scenes: Sequence[Scene], own: bool, **options: Any) -> float:
    """Return the mean IoU of the classes that occur; VOID counts only with a background."""
    shift = int(options.get("background") is not None)
    matrix = MulticlassConfusionMatrix(len(nouns()) + shift, ignore_index=VOID)
    for scene in tqdm(scenes, desc=f"segmentation {options}", leave=False):
        local = clip.with_texts(scene.nouns) if own else clip
        (found,) = segment(local, [scene.image], **options)
        numbers = torch.tensor(
            [clip.index(n) + shift if n in clip.texts else 0 for n in found.classes]
        )
        expected = truth(scene, nouns())
        expected = torch.where(expected == VOID, VOID + shift, expected + shift)
        matrix.update(numbers[found.labels][None], expected[None])
    counts = matrix.compute().double()
    union = counts.sum(0) + counts.sum(1) - counts.diag()
    there = counts.sum(1) > 0
    return 100 * float((counts.diag() / union)[there].mean())


def recognition(clip: ZeroShotClassifier, scenes: Sequence[Scene], form: str | None) -> float:
    """Return the average precision over images, averaged over the classes that occur."""
    images = [scene.image for scene in scenes]
    scores = torch.stack([found.scores for found in recognize(clip, images, form)])
    shown = torch.tensor([[noun in scene.nouns for noun in nouns()] for scene in scenes])
    there = shown.any(0)
    metric = MultilabelAveragePrecision(int(there.sum()))
    return 100 * float(metric(scores[:, there], shown[:, there].long()))


def points(
    clip: ZeroShotClassifier, scenes: Sequence[Scene], own: bool, **options: Any
) -> tuple[float, ...]:
    """Return percents of points and of objects, and the number of prompts.

    They are the positive points inside, the negative points outside, the objects with a positive
    point inside, the prompts per object, and the objects that contain most positive points of their
    strongest prompt.
    """
    hits: list[bool] = []
    misses: list[bool] = []
    found: list[bool] = []
    counts: list[int] = []
    strongest: list[bool] = []
    for scene in tqdm(scenes, desc=f"points {options}", leave=False):
        local = clip.with_texts(scene.nouns) if own else clip
        targets = [local.index(noun) for noun in scene.nouns]
        (of_scene,) = prompts(local, [scene.image], targets, **options)
        for noun, mask in zip(scene.nouns, scene.masks, strict=True):
            mine = [prompt for prompt in of_scene if prompt.text == noun]
            inside = [[mask[y, x] for x, y in _pixels(p, 1)] for p in mine]
            hits += [hit for of_prompt in inside for hit in of_prompt]
            misses += [not mask[y, x] for p in mine for x, y in _pixels(p, 0)]
            found.append(any(map(any, inside)))
            counts.append(len(mine))
            # Instances come strongest first.
            strongest.append(bool(inside) and 2 * sum(inside[0]) > len(inside[0]))
    shares = [100 * sum(flags) / max(1, len(flags)) for flags in (hits, misses, found, strongest)]
    return (*shares[:3], sum(counts) / len(counts), shares[3])


def _pixels(prompt: Prompt, label: int) -> list[tuple[int, int]]:
    return [(int(x), int(y)) for x, y in prompt.points[prompt.labels == label]]


def words(
    clip: ZeroShotClassifier, scenes: Sequence[Scene], method: str, common: bool
) -> tuple[float, float, float]:
    """Return percents of objects: word's maximum inside, own word highest inside.

    The latter for maps as they are, and for maps that are each scaled to 0..1.
    """
    flags: list[tuple[bool, ...]] = []
    for scene in tqdm(scenes, desc=f"words {method}", leave=False):
        (found,) = word_maps(clip, [scene.image], [scene.caption], method=method, common=common)
        size = scene.masks.shape[1:]
        maps = torch.nn.functional.interpolate(found.maps[None].cpu(), size, mode="bilinear")[0]
        low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
        scaled = (maps - low) / (high - low)
        for noun, mask in zip(scene.nouns, torch.from_numpy(scene.masks), strict=True):
            places = [i for i, word in enumerate(found.words) if word in noun.split()]
            inside = bool(mask.flatten()[scaled[places].mean(0).argmax()])
            best = (int(each[:, mask].mean(1).argmax()) in places for each in (maps, scaled))
            flags.append((inside, *best))
    return tuple((100 * torch.tensor(flags).double().mean(0)).tolist())  # type: ignore[return-value]


def replaced(clip: ZeroShotClassifier, scenes: Sequence[Scene]) -> tuple[float, float]:
    """Return percents of scenes: absent noun lowest in importance, and in contribution.

    One noun of each caption is replaced by an absent one, and compared with the other nouns of the
    caption.
    """
    flags: list[tuple[bool, bool]] = []
    for number, scene in enumerate(tqdm(scenes, desc="replaced", leave=False)):
        draw = random.Random(number)
        shown = draw.choice(scene.nouns)
        absent = draw.choice([noun for noun in nouns() if noun not in scene.nouns])
        caption = re.sub(rf"\b{shown}\b", absent, scene.caption)
        (maps,) = word_maps(clip, [scene.image], [caption])
        (pairs,) = interactions(clip, [scene.image], [caption])
        present = [noun for noun in scene.nouns if noun != shown]
        flags.append(
            tuple(  # type: ignore[arg-type]
                values[maps.words.index(absent)] < min(values[maps.words.index(n)] for n in present)
                for values in (maps.importance, pairs.by_word())
            )
        )
    return tuple((100 * torch.tensor(flags).double().mean(0)).tolist())  # type: ignore[return-value]


def main(
    scenes: Annotated[int, typer.Option(help="Number of scenes.")] = 500,
    split: Annotated[
        str, typer.Option(help="'test', or 'validation' for choosing settings.")
    ] = "test",
    objects: Annotated[
        str, typer.Option(help="Comma-separated numbers of objects of a scene.")
    ] = "2,3",
    sizes: Annotated[
        str, typer.Option(help="Comma-separated image sizes of the task 'sizes'.")
    ] = "224,320,384,448",
    tasks: Annotated[
        str,
        typer.Option(
            help="Comma-separated: segmentation, outlines, recognition, points, words, sizes, "
            "replaced."
        ),
    ] = "segmentation,outlines,recognition,points,words",
    model: ModelFolder = None,
    output: TablesFile = None,
) -> None:
    """Print the tables."""
    clip = load_model(model, nouns())
    counts = [int(count) for count in objects.split(",")]
    scenes_of = partial(Scenes, split, scenes, objects=counts)
    drawn = list(scenes_of(clip.native_size[0]))
    parts: dict[str, Callable[[], str]] = {
        "segmentation": lambda: _segmentation_table(clip, drawn),
        "sizes": lambda: _sizes_table(clip, scenes_of, map(int, sizes.split(","))),
        "outlines": lambda: _outlines_table(clip, drawn),
        "recognition": lambda: markdown(
            ["feature surgery", "mAP"],
            [
                [str(f or "none"), f"{recognition(clip, drawn, f):.1f}"]
                for f in (None, "release", "paper", "empty")
            ],
        ),
        "points": lambda: _points_table(clip, drawn),
        "words": lambda: markdown(
            ["method", "common", "points inside", "own word fits best", "each map in 0..1"],
            [
                [method, str(common), *(f"{v:.1f}" for v in words(clip, drawn, method, common))]
                for method in WORD_METHODS
                for common in (False, True)
            ],
            left=2,
        ),
        "replaced": lambda: markdown(
            ["absent noun lowest", "scenes"],
            [
                [kind, f"{share:.1f}"]
                for kind, share in zip(
                    ("importance", "contribution"), replaced(clip, drawn), strict=True
                )
            ],
        ),
    }
    measures = [parts[name] for name in split_names(tasks, parts, "--tasks")]
    tables = []
    for measure in measures:
        tables.append(measure() + "\n")
        print(tables[-1], flush=True)
    if output is not None:
        output.write_text("\n".join(tables))


def _segmentation_table(clip: ZeroShotClassifier, scenes: Sequence[Scene]) -> str:
    ways: list[dict[str, Any]] = [
        {"feature_surgery": None},
        {"feature_surgery": "release"},
        {"feature_surgery": "release", "refine": "guided"},
        {"feature_surgery": "release", **WINDOWS[0]},
        {"feature_surgery": "release", **WINDOWS[0], "refine": "guided"},
    ]
    size = clip.native_size[0]
    rows = []
    for way in ways:
        figures = [
            miou(clip, scenes, own, background=background, size=size, **way)
            for own in (False, True)
            for background in (None, *BACKGROUNDS)
        ]
        cells = [f"{figure:.1f}" for figure in figures]
        options = [way["feature_surgery"], way.get("window"), way.get("refine")]
        rows.append([*(str(option or "-") for option in options), *cells])
    columns = [f"{which}{name}" for which in ("all", "own") for name in ("", *TITLES)]
    return markdown(["feature surgery", "windows", "refined", *columns], rows, left=3)


def _sizes_table(
    clip: ZeroShotClassifier, scenes_of: Callable[[int], Scenes], sizes: Iterable[int]
) -> str:
    """Measure segmentation by image size and window among all nouns, other pixels ignored."""
    whole = [{"size": size} for size in sizes]
    windows = [{"size": clip.native_size[0], **window} for window in WINDOWS]
    rows = []
    for way in whole + windows:
        scenes = list(scenes_of(way["size"]))
        figure = miou(clip, scenes, False, feature_surgery="release", **way)
        options = [str(way.get(name, "-")) for name in ("size", "window", "stride")]
        rows.append([*options, f"{figure:.1f}"])
    return markdown(["size", "windows", "stride", "all"], rows)


def _outlines_table(clip: ZeroShotClassifier, scenes: Sequence[Scene]) -> str:
    """Measure finer maps and refinement among a scene's own nouns."""
    size = clip.native_size[0]
    rows = []
    for fine in (False, True):
        for refine in (None, "guided", "pamr"):
            figures = [
                miou(clip, scenes, True, background=background, fine=fine, refine=refine, size=size)
                for background in (None, BACKGROUNDS[0])
            ]
            cells = [f"{figure:.1f}" for figure in figures]
            rows.append(["fine" if fine else "-", refine or "-", *cells])
    return markdown(["maps", "refined", "own", f"own{TITLES[0]}"], rows, left=2)


def _points_table(clip: ZeroShotClassifier, scenes: Sequence[Scene]) -> str:
    rows = []
    for kind, own in (("one", True), ("components", True), ("peaks", True), ("one", False)):
        figures = points(clip, scenes, own, instances=kind)
        cells = [f"{figure:.1f}" for figure in figures]
        rows.append([kind, "own" if own else "all", *cells])
    measures = ["positive inside", "negative outside", "objects found"]
    columns = [*measures, "prompts per object", "strongest on object"]
    return markdown(["prompts", "texts", *columns], rows, left=2)


if __name__ == "__main__":
    typer.run(main)
