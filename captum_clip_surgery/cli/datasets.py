"""`evaluate` on data sets on disk, by one process or as many as `torchrun` starts."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import captum_clip_surgery
from captum_clip_surgery._utils.checkpoint import CheckpointStore
from captum_clip_surgery._utils.distributed import Processes
from captum_clip_surgery._utils.provenance import environment_info, weights_digest
from captum_clip_surgery.attr.registry import choose
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.cli.common import load_model, report_left_out
from captum_clip_surgery.datasets import DataSet, open_dataset
from captum_clip_surgery.datasets.files import state_of, walk
from captum_clip_surgery.evaluation import Evaluation, Protocol, evaluate
from captum_clip_surgery.evaluation.protocol import TEMPLATE_SETS
from captum_clip_surgery.evaluation.results import LONG, settings_digest, to_markdown, write
from captum_clip_surgery.models._activations import describe_activation
from captum_clip_surgery.visualization import save_figure

#: Of the package, what its results come from.
SOURCES = (".py", ".toml", ".txt")


@dataclass(frozen=True)
class Asked:
    """What a user asked for; see the options of `evaluate`."""

    dataset: str
    root: Path
    split: str | None
    protocol: str
    methods: Sequence[str]
    tasks: Sequence[str] | None
    limit: int | None
    batch: int
    workers: int
    model: str | None
    pretrained: str | None
    output: Path
    resume: bool


def run(asked: Asked, dist: Processes) -> None:
    """Measure, journalled; the first process writes and prints."""
    protocol = Protocol.load(asked.protocol)
    data = open_dataset(asked.dataset, asked.root, asked.split)
    templates = TEMPLATE_SETS[protocol.templates] if asked.model and protocol.templates else None
    clip = load_model(
        asked.model,
        asked.pretrained,
        ["dog"],
        quiet=not dist.is_main_process,
        templates=templates,
        device=dist.device,
    )
    methods, left_out = choose(clip, asked.methods)
    if dist.is_main_process:
        report_left_out(left_out)
    about: dict[str, Any] = {}
    folder = asked.output / "journal"
    if (
        dist.is_main_process
    ):  # what it takes to tell is much: every file of the data set, every weight
        about = _about(asked, protocol, data, clip, methods)
        journal = CheckpointStore(folder, about, asked.resume or dist.restarted)
    dist.barrier("opening the journal")
    if not dist.is_main_process:
        journal = CheckpointStore.open(folder)
    with journal:
        found = evaluate(
            clip,
            data,
            methods,
            protocol,
            asked.dataset,
            asked.tasks,
            asked.limit,
            asked.batch,
            asked.workers,
            confidence=dist.is_main_process,
            figures=True,
            dist=dist,
            journal=journal,
        )
    if dist.is_main_process:
        _report(asked, {**about, "left_out": {**left_out, **found.left_out}}, data, clip, found)


def _about(
    asked: Asked,
    protocol: Protocol,
    data: DataSet,
    clip: ZeroShotClassifier,
    methods: Iterable[str],
) -> dict[str, Any]:
    """All that changes the results, as JSON has it; a run is gone on with if it is the same."""
    encoder = clip._encoder
    views = {task: asdict(protocol.view(task, asked.dataset)) for task in protocol.views}
    return {
        "dataset": {
            "name": data.name,
            "root": str(asked.root.resolve()),
            "files": folder_digest(asked.root, asked.output),
            "images": len(data),
            "classes": data.classes.source,
        },
        "limit": asked.limit,
        "batch": asked.batch,
        "protocol": {"name": protocol.name, "source": protocol.source, "views": views},
        "tasks": asked.tasks,
        "methods": list(methods),
        "model": {
            "name": asked.model or "the embedded model",
            "pretrained": asked.pretrained,
            "tower": clip.tower.describe(),
            "activation": describe_activation(clip.model),
            "weights": weights_digest(clip.model),
            "settings": settings_digest(clip.model),
            "templates": [] if encoder is None else [str(t) for t in encoder.templates],
        },
        "code": code_digest(),
        "versions": environment_info(clip.device)["versions"],
        "device": clip.device.type,
    }


def _report(
    asked: Asked,
    about: Mapping[str, Any],
    data: DataSet,
    clip: ZeroShotClassifier,
    found: Evaluation,
) -> None:
    worst_first = {
        task: [data.names[index] for _, index in cases] for task, cases in found.cases.items()
    }
    content = {
        **about,
        **environment_info(clip.device),
        "images": found.images,
        "images_per_second": found.images_per_second,
        "waiting_for_data": found.waiting,
        "worst_first": worst_first,
    }
    write(found.results, asked.output, content)
    for task, figure in found.figures.items():
        save_figure(figure, asked.output / f"{task}.png")
    print(to_markdown(found.results, LONG))
    for name, why in found.left_out.items():
        print(f"left out: {name}: {why}")
    print(
        f"\n{found.images} images, {found.images_per_second:.1f} a second, "
        f"{found.waiting:.0%} of the time waiting for data. "
        f"All measures, intervals and figures are in {asked.output}."
    )


def folder_digest(root: Path, output: Path) -> str:
    """SHA-256 of the names, sizes and times of all files below a folder, links followed.

    Args:
        root: the folder.
        output: a folder that is left out, should it lie below: results are no data.

    Raises:
        ValueError: they are the same folder.
    """
    own = os.path.realpath(output)
    if os.path.realpath(root) == own:
        raise ValueError(f"--output {output} is the data set's own folder; choose another")
    digest = hashlib.sha256()
    for path in walk(root, own):
        line = f"{os.path.relpath(path, root)}\0{state_of(path)}\n"
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def code_digest() -> str:
    """SHA-256 of the package's own sources."""
    folder = Path(captum_clip_surgery.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in SOURCES):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()
