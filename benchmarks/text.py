"""Cost of text features relative to open_clip's own `encode_text`, per class of 85 prompts.

    python benchmarks/text.py [--model ViT-B-16] [--classes 20] [--rounds 3] [--threads 2]
        [--json FILE]

Each round runs every case once, so that other load on the machine affects all of them alike; ratios
are taken in the same round. Weights are random, with the same seed in every process. The case of a
cache on disk starts a new process and is timed inside it, from the call to the features; the digest
of the weights is also timed separately.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Annotated

import open_clip
import torch
import typer
from torch import nn

from captum_clip_surgery._utils.provenance import environment_info
from captum_clip_surgery._utils.tables import markdown
from captum_clip_surgery.models.text._encoder import PromptEncoder
from captum_clip_surgery.models.text._fingerprint import fingerprint
from captum_clip_surgery.models.text._templates import TEMPLATES, format_prompt

BASELINE = "encode_text, padded"
FIRST, SECOND = "first call", "second call"
DISK, DIGEST, REST = "new process, disk", "of that the digest", "without the digest"
RATIOS = {
    f"{BASELINE} / {FIRST}": (BASELINE, FIRST),
    f"{FIRST} / {SECOND}": (FIRST, SECOND),
    f"{FIRST} / {DISK}": (FIRST, DISK),
    f"{FIRST} / {REST}": (FIRST, REST),
}


def random_model(name: str) -> nn.Module:
    """Return a model of random weights, the same in every process."""
    torch.manual_seed(0)
    return open_clip.create_model(name).eval()


def seconds(call: object, *arguments: object) -> float:
    start = time.perf_counter()
    call(*arguments)  # type: ignore[operator]
    return time.perf_counter() - start


@torch.inference_mode()
def padded(model: nn.Module, prompts: list[list[str]]) -> float:
    """Run open_clip's own pass over whole contexts, class by class."""
    context = getattr(model, "text", model).context_length
    tokens = [open_clip.tokenize(part, context_length=context) for part in prompts]
    return sum(seconds(model.encode_text, part) for part in tokens)


def from_disk(name: str, folder: Path, classes: int, threads: int) -> dict[str, float]:
    """Return the seconds measured inside a new process."""
    command = [sys.executable, __file__, "--model", name, "--classes", str(classes)]
    command += ["--threads", str(threads), "--inside", str(folder)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def inside(name: str, folder: Path, texts: list[str]) -> None:
    """Time the features inside the process that `from_disk` starts."""
    model = random_model(name)
    encoder = PromptEncoder(model, cache=folder)
    taken = seconds(encoder, texts)
    digest = min(seconds(fingerprint, encoder.tower) for _ in range(3))
    print(json.dumps({DISK: taken, DIGEST: digest, REST: taken - digest}))


def main(
    model: Annotated[str, typer.Option(help="open_clip configuration.")] = "ViT-B-16",
    classes: Annotated[int, typer.Option(help="Number of ImageNet class names.")] = 20,
    rounds: Annotated[int, typer.Option(help="Number of rounds; each runs every case once.")] = 3,
    threads: Annotated[int, typer.Option(help="Number of torch threads on the CPU.")] = 2,
    output: Annotated[
        Path | None, typer.Option("--json", help="JSON file for the results.")
    ] = None,
    inside_folder: Annotated[Path | None, typer.Option("--inside", hidden=True)] = None,
) -> None:
    """Print the table."""
    torch.set_num_threads(threads)
    texts = list(open_clip.IMAGENET_CLASSNAMES[:classes])
    if inside_folder is not None:
        inside(model, inside_folder, texts)
        return
    built = random_model(model)
    prompts = [[format_prompt(template, text) for template in TEMPLATES] for text in texts]
    found: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        PromptEncoder(built, cache=folder)(texts)  # fills the cache and warms up
        for _ in range(rounds):
            encoder = PromptEncoder(built)
            taken = {BASELINE: padded(built, prompts), FIRST: seconds(encoder, texts)}
            taken[SECOND] = min(seconds(encoder, texts) for _ in range(10))
            found.append(taken | from_disk(model, Path(folder), classes, threads))
    about = environment_info(torch.device("cpu")) | {
        "model": model,
        "classes": classes,
        "rounds": rounds,
    }
    print(f"{model}, {classes} classes, {about['device']}, {threads} threads\n")
    cases = {name: [taken[name] / classes for taken in found] for name in found[0]}
    rows = [[name, f"{1e3 * min(t):.4f}", f"{1e3 * median(t):.4f}"] for name, t in cases.items()]
    print(markdown(["case", "least ms a class", "median ms a class"], rows) + "\n")
    ratios = {name: [taken[a] / taken[b] for taken in found] for name, (a, b) in RATIOS.items()}
    rows = [[name, f"{min(r):.1f}", f"{median(r):.1f}"] for name, r in ratios.items()]
    print(markdown(["ratio in a round", "least", "median"], rows))
    if output is not None:
        content = {**about, "seconds_a_class": cases, "ratios": ratios}
        output.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
