"""How far the maps of every method can be trusted, on test scenes of the embedded model.

    python benchmarks/trust.py [--scenes 12] [--methods all] [--model FOLDER] [--output FILE.md]

Prints for each method what `trust` measures for the first object of each scene, against four absent
nouns per scene. "absent, sd" is the standard deviation over scenes of the column before it.
"""

from __future__ import annotations

import random
from typing import Annotated

import typer
from _options import ModelFolder, TablesFile, load_model

from captum_clip_surgery import trust
from captum_clip_surgery._utils.tables import markdown
from captum_clip_surgery.attr._registry import choose
from captum_clip_surgery.demo import Scenes, nouns

ABSENT = 4


def main(
    scenes: Annotated[int, typer.Option(min=2, help="Number of test scenes.")] = 12,
    methods: Annotated[str, typer.Option(help="Comma-separated method names, or 'all'.")] = "all",
    model: ModelFolder = None,
    output: TablesFile = None,
) -> None:
    """Print the table."""
    clip = load_model(model, ["dog"])
    drawn = Scenes("test", scenes, clip.native_size[0], objects=[2, 3])
    images = clip.preprocess([scene.image for scene in drawn])
    texts = [scene.nouns[0] for scene in drawn]
    absent = []
    for index, scene in enumerate(drawn):
        others = [noun for noun in nouns() if noun not in scene.nouns]
        absent.append(random.Random(index).sample(others, ABSENT))
    chosen, _ = choose(clip, methods.split(","))
    rows = []
    for name in chosen:
        report = trust(clip, name, images, texts, absent)
        absent_mean, *other_means = report.specificity.means().values()
        figures = [*other_means, *report.randomization.values(), report.stability]
        spread = float(report.specificity.absent.std())
        cells = [f"{absent_mean:+.2f}", f"{spread:.2f}", *(f"{value:+.2f}" for value in figures)]
        rows.append([name, *cells, str(report.passes.forward)])
        print(f"{name}: {report.verdict}", flush=True)
    columns = ["absent", "absent, sd", "nonsense", "images", *report.randomization, "noise"]
    table = markdown(["method", *columns, "passes"], rows)
    print(f"\n{table}")
    if output is not None:
        output.write_text(table + "\n")


if __name__ == "__main__":
    typer.run(main)
