"""Speed-up of `evaluate` by several processes, and the cost of resuming.

    python benchmarks/distributed.py [--images 200] [--rounds 3] [--json FILE]

Runs `torchrun ... evaluate` on a folder of scenes with the embedded model, alternating between one
and two processes of one thread each. Images per second count from the first image to the last
measure; total seconds include Python's imports. Resuming a finished run shows the cost of a
restart: imports, model, digests, and reading the stored batches.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import typer
from PIL import Image

from captum_clip_surgery._utils.tables import markdown
from captum_clip_surgery.demo import Scenes, nouns

OPTIONS = "--dataset folder --protocol present --workers 0 --batch-size 8"


@dataclass(frozen=True)
class Timing:
    """Images per second while measuring, and seconds of the whole command."""

    rate: float
    seconds: float


def write_scenes(count: int, root: Path) -> None:
    """Write images and masks in the layout of the data set `folder`."""
    names = ["background", *nouns()]
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(names))
    for number, scene in enumerate(Scenes("test", count, 224, objects=[2, 3])):
        labels = np.zeros(scene.image.shape[:2], np.uint8)
        for noun, mask in zip(scene.nouns, scene.masks, strict=True):
            labels[mask] = names.index(noun)
        Image.fromarray(scene.image).save(root / "images" / f"{number:05}.png")
        Image.fromarray(labels).save(root / "masks" / f"{number:05}.png")


def run(root: Path, output: Path, processes: int, methods: str, *more: str) -> Timing:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), "-m", "captum_clip_surgery", "evaluate"]
    command += [*OPTIONS.split(), "--methods", methods, "--root", str(root)]
    command += ["--output", str(output), *more]
    start = time.perf_counter()
    subprocess.run(
        command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    seconds = time.perf_counter() - start
    told = json.loads((output / "results.json").read_text())
    return Timing(told["images_per_second"], seconds)


def measure(root: Path, work: Path, methods: str, rounds: int) -> dict[str, list[Timing]]:
    """Run each case once per round, so that other load affects all of them alike."""
    found: dict[str, list[Timing]] = {}
    for number in range(rounds):
        tables = set()
        for processes in (1, 2):
            output = work / f"{number}-{processes}"
            case = f"{processes} process{'es' * (processes > 1)}"
            found.setdefault(case, []).append(run(root, output, processes, methods))
            tables.add((output / "results.csv").read_bytes())
            found.setdefault(f"{case}, all finished before, --resume", []).append(
                run(root, output, processes, methods, "--resume")
            )
            tables.add((output / "results.csv").read_bytes())
            shutil.rmtree(output)
        assert len(tables) == 1, "the tables differ"
    return found


def main(
    images: Annotated[int, typer.Option(help="Number of scenes.")] = 200,
    rounds: Annotated[int, typer.Option(help="Number of runs per case.")] = 3,
    methods: Annotated[
        str, typer.Option(help="Comma-separated method names.")
    ] = "CLIP,CLIPSurgery",
    output: Annotated[
        Path | None, typer.Option("--json", help="JSON file for the results.")
    ] = None,
) -> None:
    """Print the table."""
    print(f"load before: {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as work:
        root = Path(work) / "data"
        write_scenes(images, root)
        found = measure(root, Path(work), methods, rounds)
    rows = [
        [
            case,
            f"{median(one.rate for one in timings):.2f}" if "resume" not in case else "-",
            f"{median(one.seconds for one in timings):.1f}",
        ]
        for case, timings in found.items()
    ]
    print(markdown([f"{images} images", "images a second", "seconds in all"], rows))
    pairs = zip(found["1 process"], found["2 processes"], strict=True)
    efficiency = [two.rate / one.rate / 2 for one, two in pairs]
    print(
        f"\nefficiency of two: {median(efficiency):.0%} "
        f"({min(efficiency):.0%} to {max(efficiency):.0%} over {rounds} rounds); "
        f"load after: {os.getloadavg()[0]:.2f}"
    )
    if output is not None:
        content = {case: [asdict(one) for one in timings] for case, timings in found.items()}
        output.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
