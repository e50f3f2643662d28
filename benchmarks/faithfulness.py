"""Insertion, deletion and randomised weights for methods, on test scenes of the embedded model.

    python benchmarks/faithfulness.py [--scenes 30] [--steps 25] [--methods all] [--output FILE.md]

Areas under the curves of the probability of a scene's noun among all nouns, in percent: high is
good as pixels are inserted into a blurred picture, low as they are blurred. Then the rank
correlation of maps with the original's after the image tower's weights are shuffled: the head
alone, half of its stages, all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor
from tqdm import tqdm

from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery.demo import Scenes, nouns
from captum_clip_surgery.metrics import insertion_deletion, randomization, suspicious
from captum_clip_surgery.registry import Method, choose
from captum_clip_surgery.tables import markdown

SLOW = ("IntegratedGradients", "Occlusion", "KernelShap")  # minutes a scene on two cores


def of_target(method: Method):  # type: ignore[no-untyped-def]
    """A method's map of one text for each image, (N, h, w)."""

    def explain(clip: ZeroShotClassifier, images: Tensor, targets: Tensor) -> Tensor:
        maps = []
        for image, target in zip(images.split(1), targets.tolist(), strict=True):
            local = clip if clip._encoder is None else clip.with_texts([clip.texts[target]])
            index = target if clip._encoder is None else 0
            maps.append(method(local)(image)[0, index].detach())
        return torch.stack(maps)

    return explain


def main(
    scenes: Annotated[int, typer.Option(help="Test scenes, one object of each.")] = 30,
    steps: Annotated[int, typer.Option(help="Of insertion and deletion.")] = 25,
    methods: Annotated[str, typer.Option(help="Names, comma between, or all.")] = "all",
    output: Annotated[Path | None, typer.Option(help="Also write the table here.")] = None,
) -> None:
    """Print the table."""
    clip = ZeroShotClassifier.demo(nouns())
    chosen, _ = choose(clip, methods.split(","))
    explains = {name: of_target(m) for name, m in chosen.items() if name not in SLOW}
    drawn = Scenes("test", scenes, clip.native_size[0], objects=[2, 3])
    images = clip.preprocess([scene.image for scene in drawn])
    targets = torch.tensor([clip.index(scene.nouns[0]) for scene in drawn])
    areas = {}
    for name, explain in tqdm(explains.items(), desc="insertion and deletion"):
        maps = explain(clip, images, targets)
        areas[name] = [
            100 * float(area.mean())
            for area in insertion_deletion(clip, images, maps, targets, steps=steps)
        ]
    few = images[:8], targets[:8]
    features = clip.text_features()[few[1]]
    local = ZeroShotClassifier.from_features(clip.model, features, clip.empty_features())
    found = randomization(local, explains, few[0], torch.arange(len(few[1])))
    middle = len(found.stages) // 2
    rows = [
        [
            name,
            *(f"{area:.1f}" for area in areas[name]),
            *(f"{correlations[i]:+.2f}" for i in (1, middle, -1)),
        ]
        for name, correlations in found.correlations.items()
    ]
    stages = [found.stages[i] for i in (1, middle, -1)]
    table = markdown(["method", "insertion", "deletion", *stages], rows)
    table += f"\n\nAbove 0.5 after all is shuffled: {', '.join(suspicious(found)) or 'none'}."
    print(table)
    if output is not None:
        output.write_text(table + "\n")


if __name__ == "__main__":
    typer.run(main)
