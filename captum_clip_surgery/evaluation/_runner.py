"""Evaluation of methods on a data set, by a protocol."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from captum_clip_surgery._utils.drivers import Torchrun
from captum_clip_surgery.attr import Method
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.datasets import ImageDataset
from captum_clip_surgery.evaluation._evaluators import Measures
from captum_clip_surgery.evaluation._protocol import Protocol, View
from captum_clip_surgery.evaluation._results import Result
from captum_clip_surgery.evaluation._running import Runner, TaskRun
from captum_clip_surgery.evaluation._store import StatisticsStore
from captum_clip_surgery.evaluation._tasks import EVALUATORS
from captum_clip_surgery.models._guards import ModelWatch

#: Seconds to wait for other processes that finish no piece.
TIMEOUT_S = 1800.0
#: Measures by task, method, and class or image.
Details = dict[tuple[str, str, str], Measures]


@dataclass(frozen=True)
class Evaluation:
    """Results by method, and how the run went.

    Attributes:
        results: Results by method.
        ranked_images: For each task (score, index) of the images under its first method, worst
            first.
        left_out: Methods that a task cannot run, and tasks that measured nothing, with the reason.
        images: Number of images that were measured.
        images_per_second: Images measured per second, as estimated from this process.
        data_wait_fraction: Fraction in 0..1 of the time spent waiting for data in this process.
        figures: If requested, for each task a figure of the worst, the median and the best case.
        unreadable: Images that could not be read, with the reason.
        measured: Number of images that this process measured, by task and method.
        remarks: For each task what a reader of its measures should know.
        missing: Number of images that other tasks of a job array have not measured yet.
        per_class: If requested, measures by task, method and class.
        per_image: If requested, measures by task, method and image.
    """

    results: Mapping[str, Result]
    ranked_images: Mapping[str, Sequence[tuple[float, int]]]
    left_out: Mapping[str, str]
    images: int
    images_per_second: float
    data_wait_fraction: float
    figures: dict[str, Figure]
    unreadable: Mapping[str, str]
    measured: Mapping[tuple[str, str], int]
    remarks: Mapping[str, str]
    missing: int
    per_class: Details
    per_image: Details


def evaluate(
    clip: ZeroShotClassifier,
    data: ImageDataset,
    methods: Mapping[str, Method],
    protocol: Protocol,
    dataset: str = "",
    tasks: Sequence[str] | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    workers: int = 0,
    progress: bool = True,
    confidence: bool = True,
    figures: bool = False,
    details: bool = False,
    run: Torchrun | None = None,
    store: StatisticsStore | None = None,
    array: str | None = None,
    seed: int = 0,
    timeout: float = TIMEOUT_S,
) -> Evaluation:
    """Measure methods on a data set.

    Labels are those of `tasks.segment`, scores of images those of `tasks.recognize`, and maps those
    of the methods' `attribute_all`. Texts are embedded once, and images pass the tower once for all
    dense methods of a task. Threads measure one batch while the model is at the next.

    Args:
        clip: A classifier, whose texts are replaced by the data set's classes. A query of its own
            that is named after a class, such as the mean of example images, takes the place of the
            names of this class.
        data: The data set.
        methods: Functions that create methods for a classifier, by name; see `METHODS`.
        protocol: How images are shown and classes are named.
        dataset: Name by which the protocol knows the data set.
        tasks: Tasks of the protocol; None means all that the data set has annotations for.
        limit: Number of images, drawn at random; None means all.
        batch_size: Number of images in one pass.
        workers: Number of processes that read ahead; 0 reads in this process.
        progress: Whether the main process shows progress.
        confidence: Whether to compute confidence intervals, about a second per method.
        figures: Whether to draw the worst, the median and the best case of each task.
        details: Whether to return the measures of each class and of each image.
        run: Processes of torchrun that share the images; each returns the results of all.
        store: Folder of statistics; results that it contains are not measured again.
        array: "i/n", this process's part if n processes of a job array share the images.
        seed: Seed of the draw. A larger `limit` with the same seed draws the same images and more.
        timeout: Seconds to wait for processes that finish no piece.

    Returns:
        Results by method, and how the run went. Unreadable images are left out and listed.
        As long as other tasks of an array have not ended, the results are those of the images so
        far.

    Raises:
        ValueError: If the protocol does not have a task or the data set no annotations for it,
            `limit` is below 1, the protocol's names do not fit the data set's classes, a task can
            run none of the methods, no image can be read, or there is nothing to measure.
        RuntimeError: If the model changes during the run.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, or None for all images, got {limit!r}")
    run = run or Torchrun()
    if store is None and (run.world_size > 1 or array is not None):
        raise ValueError("several processes need a store, a folder that all of them see")
    indices = draw_sample(len(data), limit, seed)
    views = _choose_views(data, protocol, dataset, tasks, indices)
    start = time.perf_counter()
    watch = ModelWatch(clip.model, whole=True)
    runner = Runner(
        clip=clip,
        data=data,
        methods=methods,
        indices=indices,
        batch_size=batch_size,
        workers=workers,
        progress=progress,
        run=run,
        array=array,
        store=store,
        timeout=timeout,
        watch=watch,
    )
    runs = {name: runner.create(name, view) for name, view in views.items()}
    if store is not None and run.is_main_process and not store.changed:
        store.finish()
    for task in runs.values():
        runner.measure(task)
    seconds = time.perf_counter() - start
    if store is not None and run.is_main_process and store.changed and array is None:
        store.finish()
    evaluation = _combine(runner, runs, confidence, details, seconds)
    if figures and run.is_main_process:
        drawn = {name: runner.draw(task) for name, task in runs.items()}
        evaluation.figures.update({n: figure for n, figure in drawn.items() if figure is not None})
    return evaluation


def draw_sample(count: int, limit: int | None, seed: int) -> Sequence[int]:
    """Return the indices of images drawn at random, in ascending order; all if `limit` is None.

    Example::

        >>> draw_sample(5, None, 0), draw_sample(100, 3, 0), draw_sample(100, 4, 0)
        (range(0, 5), [49, 53, 97], [5, 49, 53, 97])
    """
    if limit is None or limit >= count:
        return range(count)
    return sorted(random.Random(seed).sample(range(count), count)[:limit])


def _choose_views(
    data: ImageDataset,
    protocol: Protocol,
    dataset: str,
    tasks: Sequence[str] | None,
    indices: Sequence[int],
) -> dict[str, View]:
    """Return the views of the tasks to measure.

    Raises:
        ValueError: If a task cannot be measured, none can, or no image can be read.
    """
    kind = _kind_of_target(data, indices)
    known = [name for name in protocol.views if kind in EVALUATORS[name].target_types]
    if not known:
        raise ValueError(
            f"protocol {protocol.name} measures {', '.join(protocol.views)}, which need other "
            f"targets than the {kind.__name__} of {data.name}; choose another protocol"
        )
    for name in tasks or ():
        if name not in known:
            raise ValueError(
                f"{name!r} is not measured by protocol {protocol.name} on {data.name}; choose from "
                f"{', '.join(known)}"
            )
    return {name: protocol.view(name, dataset) for name in tasks or known}


def _kind_of_target(data: ImageDataset, indices: Sequence[int]) -> type:
    """Return the type of the first annotation that can be read."""
    errors = []
    for index in indices:
        try:
            return type(data[index].target)
        except (OSError, ValueError) as error:
            errors.append(error)
    raise ValueError(
        f"none of the {len(indices)} images of {data.name} can be read; the first: {errors[0]}"
    ) from errors[0]


def _combine(
    runner: Runner, runs: Mapping[str, TaskRun], confidence: bool, details: bool, seconds: float
) -> Evaluation:
    """Compute all measures from the statistics."""
    names = runner.names
    left_out = {
        method: f"{name} needs dense methods with feature surgery (DualPathAttribution)"
        for name, task in runs.items()
        for method in runner.methods
        if method not in task.methods
    }
    methods = [method for method in runner.methods if method not in left_out]
    measures: dict[str, Measures] = {method: {} for method in methods}
    intervals: dict[str, dict[str, tuple[float, float]]] = {method: {} for method in methods}
    per_class: Details = {}
    per_image: Details = {}
    remarks, errors = {}, {}
    for name, task in runs.items():
        evaluator = task.evaluator
        for method in methods:
            rows = task.rows(method, names)
            stats = list(rows.values())
            try:
                if not stats:
                    raise ValueError(f"no image of {runner.data.name} was read")
                measures[method] |= evaluator.compute(stats)
            except ValueError as error:  # the results of other tasks are kept
                errors[name] = error
                break
            intervals[method] |= evaluator.intervals(stats) if confidence else {}
            remarks[name] = evaluator.remark(stats)
            if details:
                classes = runner.data.classes.first
                for label, values in evaluator.of_classes(stats).items():
                    per_class[name, method, classes[label]] = values
                for image, part in rows.items():
                    per_image[name, method, image] = evaluator.of_image(part)
    unreadable, missing = runner.unreadable(runs), runner.missing(runs)
    if len(errors) == len(runs) and not missing:  # others may have measured nothing yet
        raise next(iter(errors.values()))
    num_measured = sum(max(task.measured.values(), default=0) for task in runs.values())
    return Evaluation(
        results={m: Result(measures[m], intervals[m], None, None) for m in methods},
        ranked_images={name: task.ranked_images(names) for name, task in runs.items()},
        left_out=left_out | {name: str(error) for name, error in errors.items()},
        images=len(names) - len(unreadable) - missing,
        images_per_second=runner.run.world_size * num_measured / len(runs) / seconds,
        data_wait_fraction=sum(task.data_wait_s for task in runs.values()) / seconds,
        figures={},
        unreadable=unreadable,
        measured={(name, m): n for name, task in runs.items() for m, n in task.measured.items()},
        remarks={name: remark for name, remark in remarks.items() if remark is not None},
        missing=missing,
        per_class=per_class,
        per_image=per_image,
    )
