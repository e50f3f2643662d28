"""`evaluate` on data sets on disk, by one process or those that `torchrun` starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from captum_clip_surgery import evaluation
from captum_clip_surgery._utils.checkpoint import CheckpointStore
from captum_clip_surgery._utils.distributed import Processes
from captum_clip_surgery._utils.provenance import environment_info, weights_digest
from captum_clip_surgery.attr.registry import choose
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.cli._digests import code_digest, folder_digest
from captum_clip_surgery.cli._model import load_model, report_left_out, split_names
from captum_clip_surgery.cli._options import Evaluate
from captum_clip_surgery.datasets import ImageDataset, open_dataset
from captum_clip_surgery.evaluation import ALL_COLUMNS, Evaluation, Protocol, to_markdown, write
from captum_clip_surgery.evaluation.protocol import TEMPLATE_SETS
from captum_clip_surgery.models._activations import describe_activation
from captum_clip_surgery.models._contents import settings_digest
from captum_clip_surgery.visualization import save_figure


def evaluate(options: Evaluate, root: Path, dist: Processes) -> None:
    """Measure methods, storing finished batches; the main process writes and prints the results.

    Args:
        options: Options of the command.
        root: Folder of the data set.
        dist: The processes that share the images.
    """
    protocol = Protocol.load(options.protocol or "paper")
    data = open_dataset(options.dataset, root, options.split)
    named = options.clip.model and protocol.templates
    clip = load_model(
        options.clip,
        ["dog"],
        quiet=not dist.is_main_process,
        templates=TEMPLATE_SETS[named] if named else None,
        device=dist.device,
    )
    methods, left_out = choose(clip, split_names(options.methods))
    settings: dict[str, Any] = {}
    folder = options.output / "journal"
    if dist.is_main_process:  # once, because it reads every weight and looks at every file
        report_left_out(left_out)
        settings = _settings(options, root, protocol, data, clip) | {"methods": list(methods)}
        journal = CheckpointStore(folder, settings, options.resume or dist.restarted)
    dist.barrier("opening the journal")
    if not dist.is_main_process:
        journal = CheckpointStore.open(folder)
    with journal:
        result = evaluation.evaluate(
            clip,
            data,
            methods,
            protocol,
            options.dataset,
            _task_names(options),
            options.limit,
            options.batch_size,
            options.workers,
            confidence=dist.is_main_process,
            figures=True,
            dist=dist,
            journal=journal,
        )
    if dist.is_main_process:
        left_out |= result.left_out
        _report(result, data, options.output, {**settings, "left_out": left_out}, clip)


def _task_names(options: Evaluate) -> list[str] | None:
    return split_names(options.tasks) if options.tasks else None


def _settings(
    options: Evaluate, root: Path, protocol: Protocol, data: ImageDataset, clip: ZeroShotClassifier
) -> dict[str, Any]:
    """Return all that the results depend on, as JSON; a run resumes only if it is the same."""
    views = {task: asdict(protocol.view(task, options.dataset)) for task in protocol.views}
    return {
        "dataset": {
            "name": data.name,
            "root": str(root.resolve()),
            "files": folder_digest(root, options.output),
            "images": len(data),
            "classes": data.classes.source,
        },
        "limit": options.limit,
        "batch_size": options.batch_size,
        "protocol": {"name": protocol.name, "source": protocol.source, "views": views},
        "tasks": _task_names(options),
        "model": {
            "name": options.clip.model or "the embedded model",
            "pretrained": options.clip.pretrained,
            "tower": clip.tower.describe(),
            "activation": describe_activation(clip.model),
            "weights": weights_digest(clip.model),
            "settings": settings_digest(clip.model),
            "templates": [str(template) for template in clip.templates],
        },
        "code": code_digest(),
        "versions": environment_info(clip.device)["versions"],
        "device": clip.device.type,
    }


def _report(
    result: Evaluation,
    data: ImageDataset,
    output: Path,
    provenance: Mapping[str, Any],
    clip: ZeroShotClassifier,
) -> None:
    """Write the results and figures, and print the table."""
    ranked = {
        task: [data.names[index] for _, index in ranked]
        for task, ranked in result.ranked_images.items()
    }
    content = {
        **provenance,
        **environment_info(clip.device),
        "images": result.images,
        "images_per_second": result.images_per_second,
        "data_wait_fraction": result.data_wait_fraction,
        "ranked_images": ranked,
    }
    write(result.results, output, content)
    for task, figure in result.figures.items():
        save_figure(figure, output / f"{task}.png")
    print(to_markdown(result.results, ALL_COLUMNS))
    for name, reason in result.left_out.items():
        print(f"left out: {name}: {reason}")
    print(
        f"\n{result.images} images, {result.images_per_second:.1f} per second, "
        f"{result.data_wait_fraction:.0%} of the time waiting for data. All measures, confidence "
        f"intervals and figures are in {output}."
    )
