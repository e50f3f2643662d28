"""Tasks measured end to end on scenes of the embedded model, against their ground truth.

    python benchmarks/tasks.py [--scenes 500] [--split test] [--output FILE.md]

Segmentation among all nouns and among each scene's nouns, recognition among all nouns, location of
points for SAM, and pointing of word maps; all in percent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix, MultilabelAveragePrecision
from tqdm import tqdm

from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery._utils.tables import markdown
from captum_clip_surgery.demo import Scene, Scenes, nouns
from captum_clip_surgery.tasks import Prompt, prompts, recognize, segment, word_maps
from captum_clip_surgery.tasks._word_maps import METHODS as WORD_METHODS

VOID = -1
#: Backgrounds that segmentation is measured with, besides ignoring the pixels of no object.
BACKGROUNDS: tuple[Any, ...] = (["a background"], 0.5)
TITLES = (", background text", ", below 0.5")


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
    clip: ZeroShotClassifier, scenes: Sequence[Scene], **options: Any
) -> tuple[float, float, float]:
    """Return percents: positive points inside, negative outside, objects with a point."""
    hits: list[bool] = []
    misses: list[bool] = []
    found: list[bool] = []
    for scene in tqdm(scenes, desc=f"points {options}", leave=False):
        local = clip.with_texts(scene.nouns)
        (of_scene,) = prompts(local, [scene.image], **options)
        for noun, mask in zip(scene.nouns, scene.masks, strict=True):
            mine = [prompt for prompt in of_scene if prompt.text == noun]
            inside = [mask[y, x] for p in mine for x, y in _pixels(p, 1)]
            outside = [not mask[y, x] for p in mine for x, y in _pixels(p, 0)]
            hits, misses, found = hits + inside, misses + outside, [*found, any(inside)]
    return tuple(100 * sum(flags) / max(1, len(flags)) for flags in (hits, misses, found))  # type: ignore[return-value]


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


def main(
    scenes: Annotated[int, typer.Option(help="Number of scenes, of two or three objects.")] = 500,
    split: Annotated[
        str, typer.Option(help="'test', or 'validation' for choosing settings.")
    ] = "test",
    sizes: Annotated[
        str, typer.Option(help="Comma-separated image sizes for segmentation.")
    ] = "224",
    tasks: Annotated[
        str, typer.Option(help="Comma-separated.")
    ] = "segmentation,outlines,recognition,points,words",
    output: Annotated[Path | None, typer.Option(help="Markdown file for the tables.")] = None,
) -> None:
    """Print the tables."""
    drawn = list(Scenes(split, scenes, 224, objects=[2, 3]))
    clip = ZeroShotClassifier.demo(nouns())
    parts: dict[str, Callable[[], str]] = {
        "segmentation": lambda: _segmentation_table(
            clip, drawn, [int(s) for s in sizes.split(",")]
        ),
        "outlines": lambda: _outlines_table(clip, drawn),
        "recognition": lambda: markdown(
            ["feature surgery", "mAP"],
            [
                [str(f or "none"), f"{recognition(clip, drawn, f):.1f}"]
                for f in (None, "release", "paper", "empty")
            ],
        ),
        "points": lambda: markdown(
            ["prompts", "positive inside", "negative outside", "objects found"],
            [
                [kind, *(f"{value:.1f}" for value in points(clip, drawn, instances=kind))]
                for kind in ("one", "components", "peaks")
            ],
        ),
        "words": lambda: markdown(
            ["method", "common", "points inside", "own word fits best", "each map in 0..1"],
            [
                [method, str(common), *(f"{v:.1f}" for v in words(clip, drawn, method, common))]
                for method in WORD_METHODS
                for common in (False, True)
            ],
            left=2,
        ),
    }
    table = "\n\n".join(parts[name]() for name in tasks.split(","))
    print(table)
    if output is not None:
        output.write_text(table + "\n")


def _segmentation_table(
    clip: ZeroShotClassifier, scenes: Sequence[Scene], sizes: Sequence[int]
) -> str:
    ways: list[dict[str, Any]] = [
        {"feature_surgery": None},
        {"feature_surgery": "release"},
        {"feature_surgery": "release", "refine": "guided"},
    ]
    rows = []
    for size in sizes:
        for way in ways:
            figures = [
                miou(clip, scenes, own, background=background, size=size, **way)
                for own in (False, True)
                for background in (None, *BACKGROUNDS)
            ]
            cells = [f"{figure:.1f}" for figure in figures]
            options = [way["feature_surgery"] or "none", way.get("refine") or "-"]
            rows.append([str(size), *options, *cells])
    columns = [f"{which}{name}" for which in ("all", "own") for name in ("", *TITLES)]
    return markdown(["size", "feature surgery", "refined", *columns], rows, left=3)


def _outlines_table(clip: ZeroShotClassifier, scenes: Sequence[Scene]) -> str:
    """Measure finer maps and refinement among a scene's own nouns."""
    rows = []
    for fine in (False, True):
        for refine in (None, "guided", "pamr"):
            figures = [
                miou(clip, scenes, True, background=background, fine=fine, refine=refine)
                for background in (None, BACKGROUNDS[0])
            ]
            cells = [f"{figure:.1f}" for figure in figures]
            rows.append(["fine" if fine else "-", refine or "-", *cells])
    return markdown(["maps", "refined", "own", f"own{TITLES[0]}"], rows, left=2)


if __name__ == "__main__":
    typer.run(main)
