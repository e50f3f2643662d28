"""Measure the embedded model and every form of surgery on scenes, as its model card reports.

    python -m tools.embedded_model.report [--scenes 500] [--output FILE.json]

With `--model FOLDER` a model trained by another plan of `demo.train` instead.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer

from captum_clip_surgery import LayerCLIPSurgery, LayerFeatureCLIPSurgery, ZeroShotClassifier
from captum_clip_surgery.attr import METHODS, Method
from captum_clip_surgery.demo.scenes import Scene, Scenes, nouns, prompt_templates
from captum_clip_surgery.evaluation import evaluate_scenes, to_markdown
from captum_clip_surgery.functional import VARIANTS
from tools.embedded_model import variants  # noqa: F401  (registers the plans' image towers)

BATCH = 100


def forms_of_surgery() -> dict[str, Method]:
    """CLIP's own maps, architecture surgery, feature surgery, and both in each form."""
    methods: dict[str, Method] = {
        "CLIP": METHODS["CLIP"],
        "architecture surgery": _surgery(LayerCLIPSurgery, None),
    }
    methods |= {f"feature surgery, {f}": _surgery(LayerFeatureCLIPSurgery, f) for f in VARIANTS}
    methods |= {f"both, {f}": _surgery(LayerCLIPSurgery, f) for f in VARIANTS}
    return methods


def _surgery(method: type, form: str | None) -> Method:
    return lambda clip: method(clip, feature_surgery=form).attribute_all


def load_trained(folder: Path) -> ZeroShotClassifier:
    """A model that `demo.train` left in a folder of its own."""
    templates = prompt_templates()
    return ZeroShotClassifier.from_pretrained(f"local-dir:{folder}", None, nouns(), None, templates)


def top1(clip: ZeroShotClassifier, scenes: Sequence[Scene]) -> float:
    """Zero-shot accuracy among all nouns on scenes of one object, in percent."""
    every = clip.with_texts(nouns())
    hits = 0
    for start in range(0, len(scenes), BATCH):
        batch = scenes[start : start + BATCH]
        with torch.no_grad():
            guesses = every(every.preprocess([scene.image for scene in batch])).argmax(1)
        hits += sum(
            nouns()[guess] == scene.nouns[0]
            for guess, scene in zip(guesses.tolist(), batch, strict=True)
        )
    return 100 * hits / len(scenes)


def main(
    scenes: Annotated[int, typer.Option(help="Test scenes.")] = 500,
    size: Annotated[int | None, typer.Option(help="Side shown to the model; native.")] = None,
    model: Annotated[
        Path | None, typer.Option(help="Folder of a trained model; the embedded one.")
    ] = None,
    captum: Annotated[bool, typer.Option(help="Measure Captum's methods as well.")] = False,
    output: Annotated[Path | None, typer.Option(help="Also write the figures as JSON.")] = None,
) -> None:
    """Print the tables of the model card."""
    clip = ZeroShotClassifier.demo(["dog"]) if model is None else load_trained(model)
    print(clip.tower.describe())
    render = size or clip.native_size[0]
    found: dict[str, object] = {}
    for split in ("validation", "test"):
        accuracy = top1(clip, Scenes(split, scenes, render, objects=[1]))
        found[f"top-1, {split}"] = accuracy
        print(f"top-1 among {len(nouns())} nouns, {scenes} {split} scenes: {accuracy:.1f} %")
    methods = forms_of_surgery()
    if captum:
        methods |= {name: METHODS[name] for name in ("IntegratedGradients", "GradCam")}
    several, one = [2, 3], [1]
    for counts, texts, distractors in (
        (several, "the scene's own texts", ()),
        (several, "all nouns", nouns()),
        (one, "all nouns", nouns()),
    ):
        chosen = Scenes("test", scenes, render, objects=counts)
        measured = evaluate_scenes(clip, chosen, methods, distractors, size, confidence=False)
        count = " or ".join(map(str, counts))
        objects = f"{measured['CLIP'].measures['n_pairs']:.0f} objects"
        title = f"{scenes} scenes of {count}, {objects}, {texts}"
        print(f"\n{title}\n\n{to_markdown(measured)}")
        found[title] = {name: asdict(value) for name, value in measured.items()}
    if output is not None:
        output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
