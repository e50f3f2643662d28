"""Speed of `evaluate` on a data set on disk, and agreement with `evaluate_scenes`.

    python benchmarks/datasets.py [--scenes 64] [--tower ViT-B-16] [--jpeg] [--coco] [--compare]

Writes scenes of the embedded model as a folder of images and masks. Prints images per second of one
task without confidence intervals, for one, three and all dense methods, and the fraction of time
spent waiting for images. `--compare` prints the measures for the folder, for VOC's layout with JPEG
images, and of `evaluate_scenes`.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import open_clip
import typer
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery._utils.tables import markdown
from captum_clip_surgery.attr import METHODS
from captum_clip_surgery.datasets import ImageDataset
from captum_clip_surgery.demo import Scene, Scenes, nouns
from captum_clip_surgery.evaluation import Protocol, View, evaluate, evaluate_scenes
from captum_clip_surgery.evaluation._results import ALL_COLUMNS
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
    scenes: Annotated[
        int, typer.Option(min=2, help="Number of scenes, of two or three objects.")
    ] = 64,
    tower: Annotated[
        str | None,
        typer.Option(
            help="open_clip configuration, with random weights (default: the embedded model)."
        ),
    ] = None,
    jpeg: Annotated[bool, typer.Option("--jpeg", help="Write JPEG instead of PNG images.")] = False,
    coco: Annotated[
        bool, typer.Option("--coco", help="Stretch scenes to 640 x 480 pixels, as COCO's are.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 8,
    workers: Annotated[int, typer.Option(min=0, help="Number of processes that load images.")] = 1,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Compare the measures of each layout instead of timing."),
    ] = False,
) -> None:
    """Print the table."""
    drawn: Sequence[Scene] = Scenes("test", scenes, 480 if coco else 224, objects=[2, 3])
    if coco:
        drawn = [stretched(scene, (640, 480)) for scene in drawn]
    with tempfile.TemporaryDirectory() as root:
        if compare:
            print(compared(list(drawn), Path(root)))
        else:
            data = scene_folder(drawn, Path(root), jpeg)
            print(speeds(_model(tower), data, batch, workers))


def stretched(scene: Scene, size: tuple[int, int]) -> Scene:
    """Return a scene of another (width, height)."""
    masks = [np.asarray(Image.fromarray(mask).resize(size, 0)) for mask in scene.masks]
    image = np.asarray(Image.fromarray(scene.image).resize(size))
    return replace(scene, image=image, masks=np.stack(masks))


def _model(tower: str | None) -> ZeroShotClassifier:
    if tower is None:
        return ZeroShotClassifier.demo(["dog"])
    model = open_clip.create_model(tower).eval()
    # One prompt per text, because the cost of texts per run is not measured here.
    return ZeroShotClassifier(model, ["dog"], templates=["a photo of {}."])


def speeds(clip: ZeroShotClassifier, data: ImageDataset, batch: int, workers: int) -> str:
    """Return images per second, by task and number of methods."""
    size = clip.native_size[0]
    rows = []
    for task in ("localization", "segmentation"):
        protocol = Protocol("speed", "benchmarks", {task: View(size=size)}, {})
        for names in DENSE:
            methods = {name: METHODS[name] for name in names}

            for limit in (1, None):  # text features are cached after the first image
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
    """Return the measures of each layout of the same scenes, and their differences."""
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
    """Format measures, with their differences where there are any."""
    cells = []
    for key in columns:
        by = found[key] - expected[key]
        cells.append(f"{found[key]:.3f}" + (f" ({by:+.0e})" if by else ""))
    return cells


if __name__ == "__main__":
    typer.run(main)
