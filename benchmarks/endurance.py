"""Many attributions on one model: do memory, file handles, hooks or threads grow?

    python benchmarks/endurance.py [--attributions 20000] [--changes 2000]
        [--methods CLIPSurgery,GradECLIP,...] [--output FOLDER]

A change is a new list of texts on the same model, at another size. Attributions are spread evenly
between changes, methods in turns; the model is the embedded one. Needs Linux's /proc. Writes
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

#: One that shares a pass, one of CLIP's own, two by gradients, of which one opens attention.
DEFAULT_METHODS = ("CLIPSurgery", "CLIP", "GEM", "LeGrad", "GradECLIP")
SIDES = (96, 112, 128, 160, 192, 224)
MOST_TEXTS = 12
WARM_UP = 0.2  # of all attributions: what libraries keep of their first calls, and of each size
SAMPLES = 100  # of memory, over the whole run


@dataclass(frozen=True)
class Sample:
    """The process after a number of attributions: bytes resident, open files, threads, hooks."""

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
        """Those after the warm-up."""
        begin = WARM_UP * self.samples[-1].attributions
        return [sample for sample in self.samples if sample.attributions >= begin]

    @property
    def mib_per_thousand(self) -> float:
        """MiB for a thousand attributions after the warm-up, by least squares."""
        thousands = [sample.attributions / 1_000 for sample in self.warm]
        mib = [sample.resident / 2**20 for sample in self.warm]
        return float(np.polyfit(thousands, mib, 1)[0])


def hooks_of(model: nn.Module) -> int:
    """Hooks on all modules, forward and backward."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def sample(attributions: int, model: nn.Module) -> Sample:
    """As it is once garbage is collected and freed memory given back: what is held, not idle."""
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
    """Attribute, methods in turns, on one model whose texts and images change now and then.

    Args:
        clip: lends its model; texts are drawn from the embedded model's nouns.
        methods: by name, as in `METHODS`.
        attributions: how many calls, at least 20.
        changes: how many lists of texts and sizes, in 1..attributions.
        seed: of texts, sizes and pixels.

    Raises:
        ValueError: counts out of their ranges.
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
            # Of two nouns each, so that hardly any was there before: nothing may keep them all.
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
    """What was held at the first and the last sample after the warm-up, and its highest between."""
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
    attributions: Annotated[int, typer.Option(min=20, help="Calls in all.")] = 20_000,
    changes: Annotated[int, typer.Option(min=1, help="Of texts and size.")] = 2_000,
    methods: Annotated[str, typer.Option(help="In turns, comma between.")] = ",".join(
        DEFAULT_METHODS
    ),
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 1,
    output: Annotated[Path, typer.Option(help="Folder for endurance.json.")] = Path(
        "clip-surgery-endurance"
    ),
) -> None:
    """Print what the process held after the warm-up and at the end, and the slope of memory."""
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
