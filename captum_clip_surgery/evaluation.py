"""Methods measured on scenes with ground truth: the same model, texts and measures for each."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.costs import Cost, measure
from captum_clip_surgery.demo.scenes import Scene
from captum_clip_surgery.metrics import PairMeasures
from captum_clip_surgery.registry import Method
from captum_clip_surgery.tables import markdown
from captum_clip_surgery.visualization import bar_figure

#: Columns of the short table, and of the long one.
SHORT = {"explanation_iou": "mIoU", "msc": "mSC", "pointing": "pointing"}
LONG = SHORT | {
    "energy": "energy",
    "auroc": "AUROC",
    "average_precision": "AP",
    "pixel_accuracy": "pixel acc.",
    "segmentation_miou": "seg. mIoU",
}


@dataclass(frozen=True)
class Result:
    """One method on a data set.

    `measures` in percent (see docs/measures.md), their 95 % confidence `intervals` by bootstrap
    over images, `seconds` an image in the mean, and `peak_bytes`, the most that any image took
    above what was in use. On the CPU that is resident memory, to which memory used again adds
    nothing: it compares methods only where each runs in a process of its own.
    """

    measures: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    seconds: float
    peak_bytes: int | None

    def row(self, columns: Iterable[str]) -> list[str]:
        cells = [f"{self.measures[column]:{'+' * (column == 'msc')}.1f}" for column in columns]
        return [*cells, f"{1000 * self.seconds:.0f}"]


def evaluate_scenes(
    clip: ZeroShotClassifier,
    scenes: Sequence[Scene],
    methods: Mapping[str, Method],
    rivals: Iterable[str] = (),
    size: int | None = None,
    progress: bool = True,
    confidence: bool = True,
) -> dict[str, Result]:
    """Localisation of every method on scenes with ground truth, one pair for each object.

    Args:
        clip: a classifier, whose texts are replaced by each scene's nouns.
        scenes: pictures with masks.
        methods: by name; see `registry`.
        rivals: further texts that compete in feature surgery; a scene's own nouns among them are
            left out.
        size: side of the images shown to the model; None is the native size.
        progress: whether to draw a progress bar.
        confidence: whether to take intervals, which costs a second or so a method.
    """
    rivals = tuple(rivals)
    measures = {name: PairMeasures() for name in methods}
    costs: dict[str, list[Cost]] = {name: [] for name in methods}
    for index, scene in enumerate(
        tqdm(scenes, disable=not progress, desc="measuring", unit="scene")
    ):
        image = clip.preprocess(scene.image, size)
        others = [rival for rival in rivals if rival not in scene.nouns]
        local = clip.with_texts(scene.nouns, others)
        masks = torch.from_numpy(scene.masks)
        for name, method in methods.items():
            with torch.no_grad():
                maps, cost = measure(partial(method(local), image), image.device)
            costs[name].append(cost)
            for attribution, mask in zip(maps[0].detach().cpu(), masks, strict=True):
                measures[name].update(attribution, mask, index)
    return {
        name: Result(
            found.compute(),
            found.confidence() if confidence else {},
            sum(cost.seconds for cost in costs[name]) / len(scenes),
            max((c.peak_bytes for c in costs[name] if c.peak_bytes is not None), default=None),
        )
        for name, found in measures.items()
    }


def to_markdown(results: Mapping[str, Result], columns: Mapping[str, str] = SHORT) -> str:
    """A table with one row for each method; the last column is milliseconds an image."""
    rows = [[name, *result.row(columns)] for name, result in results.items()]
    return markdown(["method", *columns.values(), "ms"], rows)


def write(results: Mapping[str, Result], folder: Path, about: Mapping[str, Any]) -> None:
    """Results as `results.json` (with what they are about), `.csv`, `.md` and a chart `.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        **about,
        "methods": {
            name: {
                "measures": dict(result.measures),
                "intervals": {key: list(value) for key, value in result.intervals.items()},
                "seconds": result.seconds,
                "peak_bytes": result.peak_bytes,
            }
            for name, result in results.items()
        },
    }
    (folder / "results.json").write_text(json.dumps(content, indent=2) + "\n")
    (folder / "results.md").write_text(to_markdown(results, LONG) + "\n")
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["method", "measure", "value", "low", "high", "seconds_an_image", "peak_bytes"]
        )
        for name, result in results.items():
            for key, value in result.measures.items():
                low, high = result.intervals.get(key, ("", ""))
                writer.writerow([name, key, value, low, high, result.seconds, result.peak_bytes])
    bars = {
        title: {
            name: (result.measures[key], result.intervals.get(key))
            for name, result in results.items()
        }
        for key, title in LONG.items()
    }
    bar_figure(bars).savefig(folder / "results.png", dpi=150)
