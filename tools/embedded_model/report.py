"""Measure the embedded model and every variant of surgery on scenes, for its model card.

    python -m tools.embedded_model.report [--scenes 500] [--output FILE.json]

`--model FOLDER` measures another model that `train` has written.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

from captum_clip_surgery import LayerCLIPSurgery, LayerFeatureCLIPSurgery, ZeroShotClassifier
from captum_clip_surgery.attr import METHODS, Method
from captum_clip_surgery.demo import Scene, Scenes, nouns, prompt_templates
from captum_clip_surgery.evaluation import evaluate_scenes, to_markdown
from captum_clip_surgery.functional import VARIANTS
from tools.embedded_model import variants  # noqa: F401  (registers the plans' image towers)

BATCH_SIZE = 100
#: The option `--model` of this module and of benchmarks.
ModelFolder = Annotated[
    Path | None,
    typer.Option("--model", help="Folder of a trained model (default: the embedded model)."),
]


def surgery_variants() -> dict[str, Method]:
    """Return CLIP's own maps, architecture surgery, and each variant of feature surgery."""
    methods: dict[str, Method] = {
        "CLIP": METHODS["CLIP"],
        "architecture surgery": _surgery(LayerCLIPSurgery, None),
    }
    methods |= {f"feature surgery, {v}": _surgery(LayerFeatureCLIPSurgery, v) for v in VARIANTS}
    methods |= {f"both, {v}": _surgery(LayerCLIPSurgery, v) for v in VARIANTS}
    return methods


def _surgery(method: type, variant: str | None) -> Method:
    return partial(method, feature_surgery=variant)


def load_trained(folder: Path | None) -> ZeroShotClassifier:
    """Load a model that `train` has written to a folder, or the embedded one, with all nouns."""
    if folder is None:
        return ZeroShotClassifier.demo(nouns())
    templates = prompt_templates()
    return ZeroShotClassifier.from_pretrained(f"local-dir:{folder}", None, nouns(), None, templates)


def top1(clip: ZeroShotClassifier, scenes: Sequence[Scene]) -> float:
    """Return the zero-shot accuracy in percent among all nouns on scenes of one object."""
    clip = clip.with_texts(nouns())
    hits = 0
    for start in range(0, len(scenes), BATCH_SIZE):
        batch = scenes[start : start + BATCH_SIZE]
        with torch.no_grad():
            predictions = clip(clip.preprocess([scene.image for scene in batch])).argmax(1)
        hits += sum(
            nouns()[prediction] == scene.nouns[0]
            for prediction, scene in zip(predictions.tolist(), batch, strict=True)
        )
    return 100 * hits / len(scenes)


def main(
    scenes: Annotated[int, typer.Option(help="Number of scenes.")] = 500,
    size: Annotated[
        int | None,
        typer.Option(
            help="Side in pixels of the images the model sees (default: its native size)."
        ),
    ] = None,
    model: ModelFolder = None,
    captum: Annotated[
        bool, typer.Option("--captum", help="Also measure Captum's methods.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="JSON file for the results.")] = None,
) -> None:
    """Print the tables of the model card."""
    clip = load_trained(model)
    print(clip.tower.describe())
    render = size or clip.native_size[0]
    results: dict[str, object] = {}
    for split in ("validation", "test"):
        accuracy = top1(clip, Scenes(split, scenes, render, objects=[1]))
        results[f"top-1, {split}"] = accuracy
        print(f"top-1 among {len(nouns())} nouns, {scenes} {split} scenes: {accuracy:.1f} %")
    methods = surgery_variants()
    if captum:
        methods |= {name: METHODS[name] for name in ("IntegratedGradients", "GradCam")}
    for counts, texts, distractors in (
        ([2, 3], "the scene's texts", ()),
        ([2, 3], "all nouns", nouns()),
        ([1], "all nouns", nouns()),
    ):
        test = Scenes("test", scenes, render, objects=counts)
        by_method = evaluate_scenes(clip, test, methods, distractors, size, confidence=False)
        pairs = by_method["CLIP"].measures["n_pairs"]
        title = f"{scenes} scenes of {' or '.join(map(str, counts))}, {pairs:.0f} objects, {texts}"
        print(f"\n{title}\n\n{to_markdown(by_method)}")
        results[title] = {name: asdict(result) for name, result in by_method.items()}
    if output is not None:
        output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
