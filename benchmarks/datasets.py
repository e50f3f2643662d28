"""How fast `evaluate` goes over a data set on disk, and that its table is that of the scenes.

    python benchmarks/datasets.py [--scenes 64] [--tower ViT-B-16] [--jpeg] [--compare]

Writes scenes of the embedded model as a folder of pictures and masks. Images per second, of the
task alone and without intervals, with one, three and all dense methods, and the share of the time
in which no image was ready. `--tower` takes a configuration of open_clip with random weights, whose
speed is that of trained ones. `--compare` prints the measures of the folder, of VOC's layout with
JPEG pictures, and of `evaluate_scenes`.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import open_clip
import typer

sys.path.insert(0, str(Path(__file__).parents[1]))
from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery._utils.tables import markdown
from captum_clip_surgery.attr.registry import METHODS
from captum_clip_surgery.datasets import ImageDataset
from captum_clip_surgery.demo import Scenes, nouns
from captum_clip_surgery.demo.scenes import Scene
from captum_clip_surgery.evaluation import (
    ALL_COLUMNS,
    Protocol,
    View,
    evaluate,
    evaluate_scenes,
)
from tests._helpers.written_scenes import of_few_nouns, scene_folder, scene_voc

DENSE = (
    ("CLIPSurgery",),
    ("CLIPSurgery", "CLIP", "MaskCLIP"),
    (
        "CLIP",
        "CLIPSurgery",
        "ArchitectureSurgery",
        "FeatureSurgery",
        "MaskCLIP",
        "SCLIP",
        "ClearCLIP",
        "NACLIP",
        "GEM",
    ),
)
COMPARED = ("CLIP", "CLIPSurgery")


def main(
    scenes: Annotated[int, typer.Option(min=2, help="Of two and three objects.")] = 64,
    tower: Annotated[
        str | None, typer.Option(help="Of open_clip, with random weights; the embedded model.")
    ] = None,
    jpeg: Annotated[bool, typer.Option("--jpeg", help="JPEG pictures instead of PNG.")] = False,
    batch: Annotated[int, typer.Option(min=1, help="Images in one pass.")] = 8,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read ahead.")] = 1,
    compare: Annotated[
        bool, typer.Option("--compare", help="Measures of each layout instead of speed.")
    ] = False,
) -> None:
    """Print the table."""
    drawn = Scenes("test", scenes, 224, objects=[2, 3])
    with tempfile.TemporaryDirectory() as root:
        if compare:
            print(compared(list(drawn), Path(root)))
        else:
            data = scene_folder(drawn, Path(root), jpeg)
            print(speeds(_model(tower), data, batch, workers))


def _model(tower: str | None) -> ZeroShotClassifier:
    if tower is None:
        return ZeroShotClassifier.demo(["dog"])
    model = open_clip.create_model(tower).eval()
    # One prompt a text: what texts cost is once a run, and not what is timed here.
    return ZeroShotClassifier(model, ["dog"], templates=["a photo of {}."])


def speeds(clip: ZeroShotClassifier, data: ImageDataset, batch: int, workers: int) -> str:
    """Images a second, by task and number of methods."""
    size = clip.native_size[0]
    rows = []
    for task in ("localization", "segmentation"):
        protocol = Protocol("speed", "benchmarks", {task: View(size=size)}, {})
        for names in DENSE:
            methods = {name: METHODS[name] for name in names}

            for limit in (1, None):  # texts are remembered from the first image on
                found = evaluate(
                    clip,
                    data,
                    methods,
                    protocol,
                    limit=limit,
                    batch_size=batch,
                    workers=workers,
                    progress=False,
                    confidence=False,
                )
            speed, waiting = f"{found.images_per_second:.1f}", f"{found.data_wait_fraction:.0%}"
            rows.append([task, str(len(names)), speed, waiting])
    return markdown(["task", "methods", "images / s", "waiting for data"], rows)


def compared(drawn: Sequence[Scene], root: Path) -> str:
    """Measures of each way to the same scenes, and how far they are from `evaluate_scenes`."""
    clip = ZeroShotClassifier.demo(nouns())
    methods = {name: METHODS[name] for name in COMPARED}
    few = of_few_nouns(drawn)  # as many nouns as VOC has classes
    protocol = Protocol.load("present")
    parts = []
    for scenes, ways in (
        (drawn, {"folder, PNG": scene_folder(drawn, root / "all")}),
        (
            few,
            {
                "folder, PNG": scene_folder(few, root / "png"),
                "folder, JPEG": scene_folder(few, root / "jpeg", jpeg=True),
                "VOC, JPEG": scene_voc(few, root / "voc"),
            },
        ),
    ):
        expected = evaluate_scenes(clip, scenes, methods, confidence=False)
        tables = {"evaluate_scenes": expected} | {
            way: evaluate(clip, data, methods, protocol, confidence=False).results
            for way, data in ways.items()
        }
        columns = {
            key: name for key, name in ALL_COLUMNS.items() if key in expected["CLIP"].measures
        }
        rows = [
            [name, way, *_cells(table[name].measures, expected[name].measures, columns)]
            for name in COMPARED
            for way, table in tables.items()
        ]
        header = [f"{len(scenes)} scenes", "read from", *columns.values()]
        parts.append(markdown(header, rows, left=2))
    return "\n\n".join(parts)


def _cells(
    found: Mapping[str, float], expected: Mapping[str, float], columns: Mapping[str, str]
) -> list[str]:
    """Figures, with what they differ by where they do."""
    cells = []
    for key in columns:
        by = found[key] - expected[key]
        cells.append(f"{found[key]:.3f}" + (f" ({by:+.0e})" if by else ""))
    return cells


if __name__ == "__main__":
    typer.run(main)
