"""Sensitivity of maps to the model's weights, on test scenes of the embedded model.

    python benchmarks/randomization.py [--scenes 8] [--methods all] [--output FILE.md]

Prints the rank correlation of maps with those of the original model after the image tower's weights
are shuffled: only the head, half of the stages, and all of them.
"""

from __future__ import annotations

from typing import Annotated

import torch
import typer
from _options import TablesFile

from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery._utils.tables import markdown
from captum_clip_surgery.attr._registry import choose
from captum_clip_surgery.demo import Scenes
from captum_clip_surgery.metrics import flag_insensitive, randomization


def main(
    scenes: Annotated[
        int, typer.Option(help="Number of test scenes; one object of each is explained.")
    ] = 8,
    methods: Annotated[str, typer.Option(help="Comma-separated method names, or 'all'.")] = "all",
    output: TablesFile = None,
) -> None:
    """Print the table."""
    drawn = Scenes("test", scenes, objects=[2, 3])
    clip = ZeroShotClassifier.demo(dict.fromkeys(scene.nouns[0] for scene in drawn))
    chosen, _ = choose(clip, methods.split(","))
    images = clip.preprocess([scene.image for scene in drawn])
    targets = torch.tensor([clip.index(scene.nouns[0]) for scene in drawn])
    found = randomization(clip, chosen, images, targets)
    shown = [1, len(found.stages) // 2, -1]
    rows = [
        [name, *(f"{correlations[i]:+.2f}" for i in shown)]
        for name, correlations in found.correlations.items()
    ]
    table = markdown(["method", *(found.stages[i] for i in shown)], rows)
    table += f"\n\nAbove 0.5 after all is shuffled: {', '.join(flag_insensitive(found)) or 'none'}."
    print(table)
    if output is not None:
        output.write_text(table + "\n")


if __name__ == "__main__":
    typer.run(main)
