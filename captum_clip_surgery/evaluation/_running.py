"""Tasks on their way through a data set: images are read, explained, measured and stored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from itertools import chain, groupby

from matplotlib.figure import Figure
from torch import Tensor

from captum_clip_surgery._utils.drivers import Torchrun, array_numbers
from captum_clip_surgery._utils.progress import track_progress
from captum_clip_surgery.attr import Method
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.datasets import ImageDataset
from captum_clip_surgery.evaluation._data import EvalDataLoader, EvalSample, Unreadable
from captum_clip_surgery.evaluation._evaluators import Evaluator
from captum_clip_surgery.evaluation._measuring import Measurers
from captum_clip_surgery.evaluation._predictors import Predictor
from captum_clip_surgery.evaluation._protocol import View
from captum_clip_surgery.evaluation._report import cases_figure
from captum_clip_surgery.evaluation._store import ImageRows, StatisticsStore, Table
from captum_clip_surgery.evaluation._tasks import EVALUATORS
from captum_clip_surgery.models._guards import ModelWatch

#: Number of images of a piece: a file for each method, and what processes take one at a time.
PIECE = 32


@dataclass
class TaskRun:
    """One task on its way through a data set.

    Args:
        name: Name of the task.
        view: How images are shown.
        evaluator: What is measured.
        predictors: How methods are run, by their names; those of all methods come first.
        tables: Statistics by method.
        measured: Number of images that this process measured, by method.
        data_wait_s: Seconds that this process waited for data.
    """

    name: str
    view: View
    evaluator: Evaluator
    predictors: dict[tuple[str, ...], Predictor]
    tables: dict[str, Table]
    measured: dict[str, int] = field(default_factory=dict)
    data_wait_s: float = 0.0

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods."""
        return next(iter(self.predictors))

    def rows(self, method: str, names: Iterable[str]) -> dict[str, Tensor]:
        """Return a method's statistics of readable images, by name."""
        known = self.tables[method].rows
        rows = {name: known[name] for name in names if name in known}
        return {name: image.stats for name, image in rows.items() if image.error is None}

    def ranked_images(self, names: Mapping[str, int]) -> list[tuple[float, int]]:
        """Return (score, index) of the images under the first method, worst first.

        Args:
            names: Indices of the images by name.
        """
        scores = {
            names[name]: self.evaluator.image_score(stats)
            for name, stats in self.rows(self.methods[0], names).items()
        }
        return sorted((score, index) for index, score in scores.items() if score is not None)

    def ranked_cases(self, names: Mapping[str, int]) -> list[tuple[float, int, int | None]]:
        """Return (score, index, class) of what a figure can show, worst first.

        A case is an image, or an image and a class where maps are measured.
        """
        cases = []
        for name, stats in self.rows(self.methods[0], names).items():
            parts = stats.split(1) if self.evaluator.predicts_maps else [stats]
            for part in parts:
                score = self.evaluator.image_score(part) if len(part) else None
                if score is not None:
                    label = int(part[0, 0]) if self.evaluator.predicts_maps else None
                    cases.append((score, names[name], label))
        return sorted(cases, key=lambda case: case[:2])


@dataclass(frozen=True)
class Runner:
    """Settings that all tasks of an evaluation share; the fields are arguments of `evaluate`."""

    clip: ZeroShotClassifier
    data: ImageDataset
    methods: Mapping[str, Method]
    indices: Sequence[int]
    batch_size: int
    workers: int
    progress: bool
    run: Torchrun
    array: str | None
    store: StatisticsStore | None
    timeout: float
    watch: ModelWatch

    @property
    def names(self) -> dict[str, int]:
        """Index of each image by its name."""
        return {self.data.names[index]: index for index in self.indices}

    @property
    def pieces(self) -> list[Sequence[int]]:
        """Indices of the images of each piece."""
        return [self.indices[at : at + PIECE] for at in range(0, len(self.indices), PIECE)]

    def unreadable(self, runs: Mapping[str, TaskRun]) -> dict[str, str]:
        """Return the images that could not be read, with the reason."""
        tables = [table for task in runs.values() for table in task.tables.values()]
        rows = [table.rows[name] for table in tables for name in self.names if name in table.rows]
        return {image.name: image.error for image in rows if image.error is not None}

    def missing(self, runs: Mapping[str, TaskRun]) -> int:
        """Return the number of images whose statistics are not complete."""
        tables = [table for task in runs.values() for table in task.tables.values()]
        return sum(any(name not in table.rows for table in tables) for name in self.names)

    def create(self, name: str, view: View) -> TaskRun:
        """Create a task; nothing is written yet, because it may be rejected."""
        evaluator = EVALUATORS[name](self.data)
        predictor = evaluator.predictor(self.clip, self.data, self.methods, view)
        tables = {
            method: Table(evaluator.columns, self.data.classes.first) for method in predictor.names
        }
        return TaskRun(name, view, evaluator, {predictor.names: predictor}, tables)

    def measure(self, task: TaskRun) -> None:
        """Measure what is missing, this process's part of it, and wait for the others."""
        if self.store is not None:
            for method, table in task.tables.items():
                about = {"view": asdict(task.view), "columns": dict(task.evaluator.columns)}
                self.store.open(task.name, method, about, table, len(self.pieces))
        left = self.run.broadcast(f"left of {task.name}", lambda: self._left(task))
        numbers: Iterable[int] = self.run.numbers(task.name, left)
        if self.array is not None:
            numbers = array_numbers(left, self.array)
        loader = EvalDataLoader(
            self.clip,
            task.evaluator.images,
            self._batches(task, numbers),
            task.view,
            self.workers,
            task.evaluator.prepare,
        )
        total = sum(len(self.pieces[number]) for number in left)
        batches = track_progress(loader, task.name, total, self.run, self.progress)
        previous: tuple[int, list[Future[dict[str, ImageRows]]]] | None = None
        with Measurers(self.run.world_size) as measurers:
            for number, group in groupby(batches, key=lambda batch: batch[0].piece):
                futures = list(
                    chain.from_iterable(self._measure(task, batch, measurers) for batch in group)
                )
                if previous is not None:  # one later, so that threads measure meanwhile
                    self._finish(task, *previous)
                previous = number, futures
            if previous is not None:
                self._finish(task, *previous)
        task.data_wait_s = loader.data_wait_s
        self.run.wait_for_all(task.name, len(left), self.timeout)
        if self.run.world_size > 1 or self.array is not None:
            for table in task.tables.values():
                table.load()

    def _missing(self, task: TaskRun, name: str, digest: str | None = None) -> tuple[str, ...]:
        """Return the methods that an image is to be measured for.

        Args:
            task: The task.
            name: Name of the image.
            digest: Digest of the image; None trusts that it did not change.
        """
        known = {method: table.rows.get(name) for method, table in task.tables.items()}
        return tuple(
            method
            for method, rows in known.items()
            if rows is None or rows.error is not None or digest not in (None, rows.digest)
        )

    def _to_read(self, task: TaskRun, number: int) -> list[int]:
        """Return the images of a piece that are to be read: all if files have changed."""
        changed = self.store is not None and bool(self.store.changed)
        return [
            index
            for index in self.pieces[number]
            if changed or self._missing(task, self.data.names[index])
        ]

    def _left(self, task: TaskRun) -> list[int]:
        return [number for number in range(len(self.pieces)) if self._to_read(task, number)]

    def _batches(self, task: TaskRun, numbers: Iterable[int]) -> Iterator[list[tuple[int, int]]]:
        size = 1 if task.view.keep_aspect else self.batch_size
        for number in numbers:
            indices = self._to_read(task, number)
            for start in range(0, len(indices), size):
                yield [(number, index) for index in indices[start : start + size]]

    def _measure(
        self, task: TaskRun, batch: Sequence[EvalSample | Unreadable], measurers: Measurers
    ) -> Iterator[Future[dict[str, ImageRows]]]:
        """Run methods on the images of a batch that need it; yield their rows to come."""
        readable = [sample for sample in batch if isinstance(sample, EvalSample)]
        for sample in batch:
            if isinstance(sample, Unreadable):
                rows = ImageRows.unreadable(sample.name, str(sample.error), task.evaluator.columns)
                yield measurers.submit(dict.fromkeys, task.methods, rows)
        wanted = {
            sample.index: self._missing(task, sample.name, sample.digest)
            for sample in batch
            if isinstance(sample, EvalSample)
        }
        for methods in dict.fromkeys(wanted.values()):
            samples = [sample for sample in readable if wanted[sample.index] == methods]
            if not methods:
                continue
            if methods not in task.predictors:
                task.predictors[methods] = task.evaluator.predictor(
                    self.clip, self.data, {name: self.methods[name] for name in methods}, task.view
                )
            labels = [task.evaluator.labels(sample.target) for sample in samples]
            try:
                predictions = task.predictors[methods].predict(samples, labels)
            except Exception as error:
                names = ", ".join(sample.name for sample in samples)
                error.add_note(f"images {names} of {self.data.name}")
                raise
            self.watch.check()
            for sample, prediction in zip(samples, predictions, strict=True):
                yield measurers.submit(measure_image, task.evaluator, sample, prediction)
            for method in methods:
                task.measured[method] = task.measured.get(method, 0) + len(samples)

    def _finish(
        self, task: TaskRun, number: int, futures: Sequence[Future[dict[str, ImageRows]]]
    ) -> None:
        """Store the rows of a piece: new ones, and those that stay."""
        new: dict[str, dict[str, ImageRows]] = {method: {} for method in task.methods}
        for future in futures:
            for method, rows in future.result().items():
                new[method][rows.name] = rows
        for method, table in task.tables.items():
            if new[method]:
                known = {**table.rows, **new[method]}
                names = [self.data.names[index] for index in self.pieces[number]]
                table.write(number, [known[name] for name in names if name in known])
        self.run.finish_one(task.name)

    def draw(self, task: TaskRun) -> Figure | None:
        """Draw the worst, the median and the best case of a task."""
        ranked = task.ranked_cases(self.names) if task.evaluator.has_figure else []
        if not ranked:
            return None
        cases = [ranked[i] for i in sorted({0, len(ranked) // 2, len(ranked) - 1})]
        batches = [[(0, index)] for _, index, _ in cases]
        loader = EvalDataLoader(
            self.clip, self.data, batches, task.view, prepare=task.evaluator.prepare
        )
        title = f"{self.data.name}, {task.name}: worst, median and best by {task.methods[0]}"
        return cases_figure(
            self.data, task.evaluator, task.predictors[task.methods], loader, cases, title
        )


def measure_image(
    evaluator: Evaluator, sample: EvalSample, prediction: Mapping[str, Tensor]
) -> dict[str, ImageRows]:
    """Return the rows of an image by method."""
    try:
        return {
            name: ImageRows(
                sample.name, sample.digest, None, evaluator.stats(sample.target, predicted)
            )
            for name, predicted in prediction.items()
        }
    except Exception as error:
        error.add_note(f"image {sample.name}")
        raise
