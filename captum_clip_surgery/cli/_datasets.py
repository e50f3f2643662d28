"""`evaluate` on data sets on disk, by one process, those of `torchrun`, a job array, or Ray."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from captum_clip_surgery import evaluation
from captum_clip_surgery._utils.drivers import Torchrun, check_ray_alone, run_on_ray
from captum_clip_surgery._utils.provenance import environment_info, weights_digest
from captum_clip_surgery.attr import Method
from captum_clip_surgery.attr._registry import resolve_names
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.cli._digests import code_digest, file_states
from captum_clip_surgery.cli._model import (
    PLACEHOLDER,
    choose_methods,
    load_model,
    report_left_out,
    split_names,
)
from captum_clip_surgery.cli._options import Evaluate
from captum_clip_surgery.cli._queries import (
    absolute_class_images,
    read_class_images,
    with_class_images,
)
from captum_clip_surgery.datasets import ImageDataset, open_dataset
from captum_clip_surgery.evaluation import Evaluation, Protocol, StatisticsStore, to_markdown
from captum_clip_surgery.evaluation._protocol import TEMPLATE_SETS
from captum_clip_surgery.evaluation._results import ALL_COLUMNS, write_details, write_results
from captum_clip_surgery.models._activations import describe_activation
from captum_clip_surgery.models._contents import settings_digest
from captum_clip_surgery.visualization import save_figure

#: Largest number of files or images that a line names.
MAX_NAMES = 5


def evaluate(options: Evaluate, root: Path) -> None:
    """Measure methods, keeping statistics in the output folder, and write and print the results.

    Args:
        options: Options of the command.
        root: Folder of the data set.
    """
    run, on_ray = Torchrun.join(options.timeout), options.engine == "ray"
    if on_ray:
        check_ray_alone(options.array)
        root = root.absolute()
        options = replace(options, query_image=absolute_class_images(options.query_image))
    protocol = Protocol.load(options.protocol or "paper")
    loaded = _load(options, root, protocol, "cpu" if on_ray else run.device, run.is_main_process)
    data, clip, left_out = loaded.data, loaded.clip, loaded.left_out
    # Once, because it reads every weight and looks at every file.
    store = run.broadcast("store", lambda: _open_store(options, root, data, clip))
    if run.is_main_process:
        report_left_out(left_out)
        if store.changed:
            some = ", ".join(store.changed[:MAX_NAMES])
            print(
                f"files of the data set that have changed since ({len(store.changed)}): {some}; "
                "all images are read, and those that differ are measured again",
                file=sys.stderr if options.json else sys.stdout,
            )
    actors = []
    if on_ray:
        work = partial(_work, options, root, protocol, store)
        actors = run_on_ray(work, **vars(options.ray))
        store.finish()
        store = replace(store)  # in which nothing is changed any more
    result = _measure(options, protocol, loaded, store, run)
    if actors:
        result = replace(
            result,
            images_per_second=fmean(each.images_per_second for each in actors),
            data_wait_fraction=fmean(each.data_wait_fraction for each in actors),
        )
    if run.is_main_process:
        about = {
            **store.settings,
            "protocol": {
                "name": protocol.name,
                "source": protocol.source,
                "views": {t: asdict(protocol.view(t, options.dataset)) for t in protocol.views},
            },
            "limit": options.limit,
            "seed": options.seed,
            "left_out": {**left_out, **result.left_out},
            **environment_info(clip.device),
        }
        _report(result, data, options, about)


@dataclass(frozen=True)
class _Loaded:
    """Data set, classifier and methods of a run."""

    data: ImageDataset
    clip: ZeroShotClassifier
    methods: Mapping[str, Method]
    left_out: dict[str, str]


def _load(
    options: Evaluate, root: Path, protocol: Protocol, device: str, is_main_process: bool
) -> _Loaded:
    names = resolve_names(split_names(options.methods))
    images = read_class_images(options.query_image)
    data = open_dataset(options.dataset, root, options.split)
    named = options.clip.model and protocol.templates
    clip = load_model(
        options.clip,
        PLACEHOLDER,
        quiet=options.json or not is_main_process,
        templates=TEMPLATE_SETS[named] if named else None,
        device=device,
        positions=protocol.positions or "bilinear",
    )
    clip = with_class_images(clip, images, data.classes.first, data.name)
    methods, left_out = choose_methods(clip, names, options.feature_surgery)
    return _Loaded(data, clip, methods, left_out)


def _measure(
    options: Evaluate, protocol: Protocol, loaded: _Loaded, store: StatisticsStore, run: Torchrun
) -> Evaluation:
    return evaluation.evaluate(
        loaded.clip,
        loaded.data,
        loaded.methods,
        protocol,
        options.dataset,
        split_names(options.tasks) if options.tasks else None,
        options.limit,
        options.batch_size,
        options.workers,
        confidence=run.is_main_process,
        figures=True,
        details=run.is_main_process,
        run=run,
        store=store,
        array=options.array,
        seed=options.seed,
        timeout=options.timeout,
    )


def _work(
    options: Evaluate, root: Path, protocol: Protocol, store: StatisticsStore, run: Torchrun
) -> Evaluation:
    """Measure images in an actor of Ray."""
    loaded = _load(options, root, protocol, run.device, run.is_main_process)
    return _measure(options, protocol, loaded, store, run)


def _open_store(
    options: Evaluate, root: Path, data: ImageDataset, clip: ZeroShotClassifier
) -> StatisticsStore:
    """Return the store of statistics, with all that they depend on."""
    settings = {
        "dataset": {
            "name": data.name,
            "classes": list(data.classes.first),
            "source": data.classes.source,
        },
        "model": {
            "name": options.clip.model or "the embedded model",
            "pretrained": options.clip.pretrained,
            "tower": clip.tower.describe(),
            "positions": clip.tower.positions,
            "activation": describe_activation(clip.model),
            "weights": weights_digest(clip.model),
            "settings": settings_digest(clip.model),
            "templates": [str(template) for template in clip.templates],
            "features": clip.describe_features(),
        },
        "feature_surgery": options.feature_surgery,
        "code": code_digest(),
        "versions": environment_info(clip.device)["versions"],
        "device": ("cuda" if options.ray.num_gpus else "cpu")
        if options.engine == "ray"
        else clip.device.type,
    }
    folder = options.output.absolute() / "statistics"
    files = file_states(root, options.output)
    if not options.resume:
        shutil.rmtree(folder, ignore_errors=True)
    return StatisticsStore(folder, settings, files)


def _report(
    result: Evaluation, data: ImageDataset, options: Evaluate, provenance: Mapping[str, Any]
) -> None:
    """Write the results and figures, and print the table."""
    output = options.output
    content = {
        **provenance,
        "images": result.images,
        "images_per_second": result.images_per_second,
        "data_wait_fraction": result.data_wait_fraction,
        "unreadable": result.unreadable,
        "remarks": result.remarks,
        "ranked_images": {
            task: [data.names[index] for _, index in ranked]
            for task, ranked in result.ranked_images.items()
        },
    }
    write_results(result.results, output, content)
    write_details(result.per_class, output / "per_class.csv", "class")
    write_details(result.per_image, output / "per_image.csv", "image")
    for task, figure in result.figures.items():
        save_figure(figure, output / f"{task}.png")
    if options.json:
        print((output / "results.json").read_text(encoding="utf-8"))
        return
    print(to_markdown(result.results, ALL_COLUMNS))
    for name, reason in result.left_out.items():
        print(f"left out: {name}: {reason}")
    for task, remark in result.remarks.items():
        print(f"{task}: {remark}")
    for name, reason in list(result.unreadable.items())[:MAX_NAMES]:
        print(f"unreadable: {name}: {reason}")
    if len(result.unreadable) > MAX_NAMES:
        print(f"{len(result.unreadable)} images are unreadable; results.json lists all of them")
    if result.missing:
        print(f"{result.missing} images are left to other tasks of the array; results are so far")
    print(
        f"\n{result.images} images, {result.images_per_second:.1f} per second, "
        f"{result.data_wait_fraction:.0%} of the time waiting for data. All measures, confidence "
        f"intervals and figures are in {output}; per_class.csv and per_image.csv have those of "
        "each class and image."
    )
