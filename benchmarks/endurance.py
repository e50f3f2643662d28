"""Endurance of many attributions on one model: memory, open files, hooks and threads.

    python benchmarks/endurance.py [--attributions 20000] [--changes 2000]
        [--methods CLIPSurgery,GradECLIP,...] [--output FOLDER]

A change gives the same model, the embedded one, a new list of texts and another image size.
Attributions are spread evenly between changes; methods take turns. Needs Linux's /proc. Writes
endurance.json.
"""

from __future__ import annotations

import gc
import json
import random
import resource
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import nn
from tqdm import tqdm

from captum_clip_surgery import METHODS, ZeroShotClassifier
from captum_clip_surgery._utils.profiling import PROCESS, TRIM
from captum_clip_surgery._utils.provenance import environment_info
from captum_clip_surgery._utils.tables import markdown
from captum_clip_surgery.attr import Method, attribute_many
from captum_clip_surgery.demo import nouns

#: A method of the shared pass, CLIP's own maps, and two that take gradients.
DEFAULT_METHODS = ("CLIPSurgery", "CLIP", "GEM", "LeGrad", "GradECLIP")
SIDES = (96, 112, 128, 160, 192, 224)
MOST_TEXTS = 12
WARM_UP = 0.2  # fraction of attributions; first calls allocate memory that stays
SAMPLES = 100  # number of samples over the whole run


@dataclass(frozen=True)
class Sample:
    """Resources after a number of attributions: resident bytes, files, threads, hooks."""

    attributions: int
    resident: int
    files: int
    threads: int
    hooks: int


@dataclass(frozen=True)
class Found:
    """Samples of a run, in order."""

    samples: list[Sample]

    @property
    def warm(self) -> list[Sample]:
        """Samples after the warm-up."""
        begin = WARM_UP * self.samples[-1].attributions
        return [sample for sample in self.samples if sample.attributions >= begin]

    @property
    def mib_per_thousand(self) -> float:
        """MiB per thousand attributions after the warm-up, by least squares."""
        thousands = [sample.attributions / 1_000 for sample in self.warm]
        mib = [sample.resident / 2**20 for sample in self.warm]
        return float(np.polyfit(thousands, mib, 1)[0])


def hooks_of(model: nn.Module) -> int:
    """Count the forward and backward hooks on all modules."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def sample(attributions: int, model: nn.Module) -> Sample:
    """Take a sample after garbage is collected and freed memory is returned to the system."""
    gc.collect()
    if TRIM is not None:
        TRIM(0)
    pages = int((PROCESS / "statm").read_text().split()[1])
    return Sample(
        attributions,
        pages * resource.getpagesize(),
        len(list((PROCESS / "fd").iterdir())),
        len(list((PROCESS / "task").iterdir())),
        hooks_of(model),
    )


def endure(
    clip: ZeroShotClassifier,
    methods: Mapping[str, Method],
    attributions: int,
    changes: int,
    seed: int = 0,
) -> Found:
    """Run attributions of methods in turn on one model, whose texts and images change at times.

    Args:
        clip: Classifier of the model; texts are drawn from the embedded model's nouns.
        methods: Methods by name, as in `METHODS`.
        attributions: Number of calls, at least 20.
        changes: Number of lists of texts and sizes, 1 to `attributions`.
        seed: Seed of texts, sizes and pixels.

    Raises:
        ValueError: If a count is out of range.
    """
    if attributions < 20 or not 1 <= changes <= attributions:
        raise ValueError(
            f"expected at least 20 attributions and 1 to as many changes, got {attributions} and "
            f"{changes}"
        )
    draw, pixels = random.Random(seed), torch.Generator().manual_seed(seed)
    every = max(1, attributions // SAMPLES)
    samples: list[Sample] = []
    chosen: list[Any] = []
    sides = SIDES[:2]
    for number in tqdm(range(attributions), disable=not sys.stderr.isatty()):
        if number * changes % attributions < changes:
            # Texts of two nouns rarely repeat, so a cache without a limit would grow.
            pairs = [draw.sample(nouns(), 2) for _ in range(draw.randint(1, MOST_TEXTS))]
            own = clip.with_texts(map(" ".join, pairs))
            chosen = [method(own) for method in methods.values()]
            sides = (draw.choice(SIDES), draw.choice(SIDES))
        images = torch.randn(1, 3, *sides, generator=pixels)
        attribute_many({"": chosen[number % len(chosen)]}, images)
        if (number + 1) % every == 0:
            samples.append(sample(number + 1, clip.model))
    return Found(samples)


def report(found: Found, counted: str = "attributions") -> str:
    """Format the first, highest and last sample after the warm-up as a table."""
    warm = found.warm
    rows = [
        [name, *(f"{value:,.{digits}f}" for value in (values[0], max(values), values[-1]))]
        for name, values, digits in (
            ("resident MiB", [s.resident / 2**20 for s in warm], 1),
            ("open files", [s.files for s in warm], 0),
            ("threads", [s.threads for s in warm], 0),
            ("hooks on the model", [s.hooks for s in warm], 0),
        )
    ]
    first, last = warm[0].attributions, warm[-1].attributions
    heading = ["", f"after {first:,}", "highest", f"after {last:,}"]
    line = f"memory: {found.mib_per_thousand:+.2f} MiB for a thousand {counted} (least squares)"
    return f"{markdown(heading, rows)}\n\n{line}"


def main(
    attributions: Annotated[int, typer.Option(min=20, help="Total number of calls.")] = 20_000,
    changes: Annotated[
        int, typer.Option(min=1, help="Number of changes of texts and size.")
    ] = 2_000,
    methods: Annotated[
        str, typer.Option(help="Comma-separated method names, called in turn.")
    ] = ",".join(DEFAULT_METHODS),
    threads: Annotated[int, typer.Option(min=1, help="Number of torch threads.")] = 1,
    output: Annotated[Path, typer.Option(help="Folder for endurance.json.")] = Path(
        "clip-surgery-endurance"
    ),
) -> None:
    """Print the process's resources after the warm-up and at the end, and the growth of memory."""
    torch.set_num_threads(threads)
    clip = ZeroShotClassifier.demo(["dog"])
    chosen = {name: METHODS[name] for name in methods.split(",")}
    found = endure(clip, chosen, attributions, changes)
    output.mkdir(parents=True, exist_ok=True)
    content = {
        **environment_info(clip.device),
        "changes": changes,
        "mib_per_thousand": found.mib_per_thousand,
        "samples": [asdict(one) for one in found.samples],
    }
    (output / "endurance.json").write_text(json.dumps(content, indent=2) + "\n")
    print(report(found))


if __name__ == "__main__":
    typer.run(main)
