"""Evaluation of methods on a data set, by a protocol."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from matplotlib.figure import Figure
from torch import Tensor

from captum_clip_surgery._utils.checkpoint import CheckpointStore
from captum_clip_surgery._utils.distributed import SINGLE_PROCESS, Processes
from captum_clip_surgery._utils.progress import track_progress
from captum_clip_surgery.attr import Method
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.datasets import ImageDataset
from captum_clip_surgery.evaluation._data import EvalDataLoader, EvalSample
from captum_clip_surgery.evaluation._evaluators import EVALUATORS, Evaluator
from captum_clip_surgery.evaluation._predictors import Predictor
from captum_clip_surgery.evaluation._report import cases_figure
from captum_clip_surgery.evaluation._stats import (
    ImageStats,
    deserialize,
    from_bytes,
    serialize,
    to_bytes,
)
from captum_clip_surgery.evaluation.protocol import Protocol, View
from captum_clip_surgery.evaluation.results import Result
from captum_clip_surgery.models._guards import ModelWatch

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """Results by method, and how the run went.

    Attributes:
        results: Results by method.
        ranked_images: For each task (score, index) of the images under its first method, worst
            first.
        left_out: Methods that a task cannot run, with the reason.
        images: Number of images.
        images_per_second: Speed of the images measured in this run.
        data_wait_fraction: Fraction in 0..1 of the time spent waiting for data in this process.
        figures: If requested, for each task a figure of the worst, the median and the best image.
    """

    results: Mapping[str, Result]
    ranked_images: Mapping[str, Sequence[tuple[float, int]]]
    left_out: Mapping[str, str]
    images: int
    images_per_second: float
    data_wait_fraction: float
    figures: Mapping[str, Figure]


@dataclass
class TaskRun:
    """One task on its way through a data set.

    Args:
        name: Name of the task.
        view: How images are shown.
        evaluator: What is measured.
        predictor: How methods are run.
        stats: Statistics by the index of the image.
        num_measured: Number of images measured in this run, by all processes.
        data_wait_s: Seconds that this process waited for data.
    """

    name: str
    view: View
    evaluator: Evaluator
    predictor: Predictor
    stats: dict[int, ImageStats] = field(default_factory=dict)
    num_measured: int = 0
    data_wait_s: float = 0.0

    def of_method(self, method: str) -> list[Tensor]:
        """Return a method's statistics in the order of the images; empty if it cannot be run."""
        rows = [self.stats[index] for index in sorted(self.stats)]
        return [row[method] for row in rows if method in row]

    def ranked_images(self) -> list[tuple[float, int]]:
        """Return (score, index) of the images under the first method, worst first."""
        method = self.predictor.names[0]
        scores = {
            index: self.evaluator.image_score(row[method]) for index, row in self.stats.items()
        }
        return sorted((score, index) for index, score in scores.items() if score is not None)


@dataclass(frozen=True)
class _Runner:
    """What all tasks of an evaluation share; the fields are arguments of `evaluate`."""

    clip: ZeroShotClassifier
    data: ImageDataset
    methods: Mapping[str, Method]
    indices: Sequence[int]
    batch_size: int
    workers: int
    progress: bool
    dist: Processes
    journal: CheckpointStore | None
    completed: Mapping[str, bytes]
    watch: ModelWatch

    def run(self, name: str, view: View) -> TaskRun:
        """Measure one task on all images that are not completed."""
        evaluator = EVALUATORS[name](self.data)
        predictor = evaluator.predictor(self.clip, self.data, self.methods, view)
        task = TaskRun(name, view, evaluator, predictor)
        task.stats = self._share(task, self._restore(task), "reading the journal")
        remaining = self._remaining(task)
        task.num_measured = sum(map(len, remaining))
        task.stats |= self._share(task, self._measure(task, remaining), name)
        return task

    def _restore(self, task: TaskRun) -> dict[int, ImageStats]:
        """Return the statistics of these images that the journal holds."""
        stats: dict[int, ImageStats] = {}
        for key, content in self.completed.items():
            if key.split()[0] == task.name:
                stats |= deserialize(from_bytes(content), task.predictor.names)
        return {index: stats[index] for index in self.indices if index in stats}

    def _share(
        self, task: TaskRun, stats: Mapping[int, ImageStats], what: str
    ) -> dict[int, ImageStats]:
        """Return the statistics of all processes."""
        names = task.predictor.names
        return deserialize(self.dist.all_gather(serialize(stats, names), what), names)

    def _remaining(self, task: TaskRun) -> list[Sequence[int]]:
        """Return the batches that are not completed.

        Batches are the same in every run: an image always shares its pass with the same others,
        and its statistics are the same to the last bit.
        """
        size = 1 if task.view.keep_aspect else self.batch_size
        batches = [
            self.indices[start : start + size] for start in range(0, len(self.indices), size)
        ]
        return [batch for batch in batches if not task.stats.keys() >= set(batch)]

    def _measure(self, task: TaskRun, batches: Sequence[Sequence[int]]) -> dict[int, ImageStats]:
        """Return the statistics of this process's part of the batches."""
        indices = [index for batch in self.dist.shard(batches) for index in batch]
        loader = EvalDataLoader(
            self.clip, self.data, indices, task.view, self.batch_size, self.workers
        )
        stats: dict[int, ImageStats] = {}
        for batch in track_progress(loader, task.name, task.num_measured, self.dist, self.progress):
            self.dist.heartbeat()
            try:
                measured = measure_batch(task, batch)
            except Exception as error:
                names = ", ".join(sample.name for sample in batch)
                error.add_note(f"images {names} of {self.data.name}")
                raise
            self.watch.check()
            if self.journal is not None:
                row = serialize(measured, task.predictor.names)
                self.journal.add(f"{task.name} {batch[0].index}", to_bytes(row))
            stats |= measured
        task.data_wait_s = loader.data_wait_s
        return stats

    def draw(self, task: TaskRun) -> Figure:
        """Draw the worst, the median and the best image of a task."""
        ranked = task.ranked_images()
        chosen = [ranked[i] for i in sorted({0, len(ranked) // 2, len(ranked) - 1})]
        loader = EvalDataLoader(
            self.clip, self.data, [index for _, index in chosen], task.view, len(chosen)
        )
        title = f"{self.data.name}, {task.name}: worst, median and best by "
        return cases_figure(
            self.data,
            task.evaluator,
            task.predictor,
            loader,
            [score for score, _ in chosen],
            title + task.predictor.names[0],
        )


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
    dist: Processes = SINGLE_PROCESS,
    journal: CheckpointStore | None = None,
) -> Evaluation:
    """Measure methods on a data set.

    Labels are those of `tasks.segment`, scores of images those of `tasks.recognize`, and maps those
    of the methods' `attribute_all`. Texts are embedded once, and images pass the tower once for all
    dense methods of a task.

    Args:
        clip: A classifier, whose texts are replaced by the data set's classes.
        data: The data set.
        methods: Creates each method for a classifier, by name; see `METHODS`.
        protocol: How images are shown and classes are named.
        dataset: Name by which the protocol knows the data set.
        tasks: Tasks of the protocol; None stands for all that the data set has annotations for.
        limit: Number of images, from the first; None stands for all.
        batch_size: Number of images in one pass.
        workers: Number of processes that read ahead; 0 reads in this process.
        progress: Whether the main process shows progress.
        confidence: Whether to compute confidence intervals, about a second per method.
        figures: Whether to draw the worst, the median and the best image of each task.
        dist: The processes that share the images; each returns the results of all.
        journal: Store of finished batches, which are not measured again.

    Returns:
        Results by method, and how the run went.

    Raises:
        ValueError: If the protocol does not have a task or the data set no annotations for it,
            `limit` is below 1, the protocol's names do not fit the data set's classes, a task can
            run none of the methods, an image cannot be read, or there is nothing to measure.
        RuntimeError: If the model changes during the run.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, or None for all images, got {limit!r}")
    views = _choose_views(data, protocol, dataset, tasks)
    start = time.perf_counter()
    # Only the main process reads the journal, and before any process writes: if processes saw
    # different batches, they would divide them differently and lose or repeat images.
    completed = journal.completed() if journal is not None and dist.is_main_process else {}
    indices = range(len(data))[:limit]
    watch = ModelWatch(clip.model, whole=True)
    runner = _Runner(
        clip=clip,
        data=data,
        methods=methods,
        indices=indices,
        batch_size=batch_size,
        workers=workers,
        progress=progress,
        dist=dist,
        journal=journal,
        completed=completed,
        watch=watch,
    )
    runs = {name: runner.run(name, view) for name, view in views.items()}
    seconds = time.perf_counter() - start
    left_out = {
        method: f"{name} needs dense methods with feature surgery (DualPathAttribution)"
        for name, run in runs.items()
        for method in methods
        if method not in run.predictor.names
    }
    ranked = {name: run.ranked_images() for name, run in runs.items()}
    drawn = [name for name in runs if figures and dist.is_main_process and ranked[name]]
    return Evaluation(
        {
            method: _combine(method, runs.values(), confidence)
            for method in methods
            if method not in left_out
        },
        ranked,
        left_out,
        len(indices),
        sum(run.num_measured for run in runs.values()) / len(runs) / seconds,
        sum(run.data_wait_s for run in runs.values()) / seconds,
        {name: runner.draw(runs[name]) for name in drawn},
    )


def measure_batch(task: TaskRun, batch: Sequence[EvalSample]) -> dict[int, ImageStats]:
    """Return the statistics of a batch of images, by index."""
    labels = [task.evaluator.labels(sample.target) for sample in batch]
    predictions = task.predictor.predict(batch, labels)
    return {
        sample.index: {
            name: task.evaluator.stats(sample.target, prediction[name])
            for name in task.predictor.names
        }
        for sample, prediction in zip(batch, predictions, strict=True)
    }


def _choose_views(
    data: ImageDataset, protocol: Protocol, dataset: str, tasks: Sequence[str] | None
) -> dict[str, View]:
    """Return the views of the tasks to measure.

    Raises:
        ValueError: If a task cannot be measured, or none can.
    """
    kind = type(data[0].target)
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


def _combine(method: str, runs: Iterable[TaskRun], confidence: bool) -> Result:
    """Return all measures of one method."""
    measures: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    for run in runs:
        stats = run.of_method(method)
        if stats:
            measures |= run.evaluator.compute(stats)
            intervals |= run.evaluator.intervals(stats) if confidence else {}
    return Result(measures, intervals, None, None)
