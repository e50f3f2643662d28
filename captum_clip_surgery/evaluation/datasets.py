"""Methods on a data set on disk, the way a protocol has it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.figure import Figure
from torch import Tensor

from captum_clip_surgery._utils.checkpoint import CheckpointStore
from captum_clip_surgery._utils.distributed import SINGLE_PROCESS, Processes
from captum_clip_surgery._utils.progress import track_progress
from captum_clip_surgery.attr._base import Method
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.datasets.base import DataSet
from captum_clip_surgery.evaluation.figures import cases_figure
from captum_clip_surgery.evaluation.judges import JUDGES, Judge
from captum_clip_surgery.evaluation.protocol import Protocol, View
from captum_clip_surgery.evaluation.records import Records, from_bytes, pack, to_bytes, unpack
from captum_clip_surgery.evaluation.results import Result
from captum_clip_surgery.evaluation.shown import Reader
from captum_clip_surgery.evaluation.tasks import ASKING, Asking
from captum_clip_surgery.models import ModelWatch


@dataclass(frozen=True)
class Evaluation:
    """Results by method, and how the run went.

    `cases` has for each task (score, index) of the images under its first method, worst first;
    `left_out` says which methods a task could not ask; `images_per_second` counts what this run
    measured; `waiting` is the share of the time, in 0..1, in which this process had no image.
    `figures`, if asked for, are of the images that went worst, in the middle and best.
    """

    results: Mapping[str, Result]
    cases: Mapping[str, Sequence[tuple[float, int]]]
    left_out: Mapping[str, str]
    images: int
    images_per_second: float
    waiting: float
    figures: Mapping[str, Figure]


@dataclass(frozen=True)
class Measured:
    """A task's judge, and what each image added under each method, in the order of the images."""

    judge: Judge
    records: Mapping[int, Records]

    def of(self, method: str) -> list[Tensor]:
        """One method's records; none where the task could not ask it."""
        rows = [self.records[index] for index in sorted(self.records)]
        return [row[method] for row in rows if method in row]

    def cases(self) -> list[tuple[float, int]]:
        """(score, index) of the images under the first method, worst first."""
        found = []
        for index, row in self.records.items():
            score = self.judge.score(next(iter(row.values()))) if row else None
            if score is not None:
                found.append((score, index))
        return sorted(found)


def tasks_of(data: DataSet, protocol: Protocol) -> tuple[str, ...]:
    """What a protocol measures that a data set has the truth for.

    Raises:
        ValueError: there is nothing of that kind.
    """
    kind = type(data[0].truth)
    found = tuple(task for task in protocol.views if kind in JUDGES[task].truths)
    if not found:
        raise ValueError(
            f"protocol {protocol.name} has {', '.join(protocol.views)}; {data.name} has "
            f"{kind.__name__}, which none of these measures"
        )
    return found


def evaluate(
    clip: ZeroShotClassifier,
    data: DataSet,
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

    Text features are made once, and images pass the tower once for all dense methods of a task.

    Args:
        clip: a classifier, whose texts are replaced by the data set's classes.
        data: the data set.
        methods: by name; see `registry`.
        protocol: how images are shown and classes named.
        dataset: the name under which the protocol may change its views.
        tasks: of the protocol; None is all that the data set has the truth for.
        limit: how many images, from the first; None is all.
        batch_size: images in one pass.
        workers: processes that read ahead; 0 reads when asked.
        progress: whether the first process tells how it goes on.
        confidence: whether to take intervals, which costs a second or so a method.
        figures: whether to draw the worst, the middle and the best image of each task.
        dist: the processes that share the images; each returns the results of all.
        journal: where finished batches are kept, and which images need not be measured again.

    Raises:
        ValueError: a task that the protocol does not have or the data set has no truth for, a limit
            below 1, names of classes that are not as many as the data set's, no method that a task
            can ask, an image that cannot be read, nothing that was judged.
        RuntimeError: the model was changed meanwhile.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit {limit!r} must be at least 1; None is all images")
    known = tasks_of(data, protocol)
    for task in tasks or ():
        if task not in known:
            raise ValueError(
                f"{task!r} is not measured by protocol {protocol.name} on {data.name}; there are "
                f"{', '.join(known)}"
            )
    indices = range(len(data))[:limit]
    start, waited, done = time.perf_counter(), 0.0, 0
    watch = ModelWatch(clip.model, whole=True)
    # One process reads for all, and before anyone adds: were they to see different things, they
    # would share out differently, and images be lost or measured twice.
    pieces = journal.completed() if journal is not None and dist.is_main_process else {}
    measured: dict[str, Measured] = {}
    drawn: dict[str, Callable[[], Figure]] = {}
    for task in tasks or known:
        view, judge = protocol.view(task, dataset), JUDGES[task](data)
        ask = ASKING[task](clip, data, methods, view, judge)
        kept = _finished(pieces, task, ask.names, indices)
        records = unpack(dist.all_gather(pack(kept, ask.names), "reading the journal"), ask.names)
        # Whole batches are shared out. An image always meets the same others in its pass, and its
        # numbers are the same to the last bit, whoever measures it and after however many ends.
        size = 1 if view.keep_aspect else batch_size
        batches = [indices[start : start + size] for start in range(0, len(indices), size)]
        left = [batch for batch in batches if not records.keys() >= set(batch)]
        mine = [index for batch in dist.shard(left) for index in batch]
        many = sum(map(len, left))
        done += many
        reader = Reader(clip, data, mine, view, batch_size, workers)
        own: dict[int, Records] = {}
        for batch in track_progress(reader, task, many, dist, progress):
            dist.heartbeat()
            try:
                found = dict(zip((shown.index for shown in batch), ask(batch), strict=True))
            except Exception as error:
                error.add_note(f"images {', '.join(shown.name for shown in batch)} of {data.name}")
                raise
            watch.check()
            if journal is not None:
                row = pack(found, ask.names)
                journal.add(f"{task} {batch[0].index}", to_bytes(row))
            own |= found
        waited += reader.waited
        records |= unpack(dist.all_gather(pack(own, ask.names), task), ask.names)
        measured[task] = Measured(judge, records)
        drawn[task] = partial(_figure, clip, data, view, ask, task, measured[task].cases())
    seconds = time.perf_counter() - start
    left_out = {
        name: f"{task} takes the dense methods of this package alone"
        for task, found in measured.items()
        for name in methods
        if not found.of(name)
    }
    return Evaluation(
        {name: _result(name, measured, confidence) for name in methods if name not in left_out},
        {task: found.cases() for task, found in measured.items()},
        left_out,
        len(indices),
        done / len(measured) / seconds,
        waited / seconds,
        {
            task: draw()
            for task, draw in drawn.items()
            if figures and dist.is_main_process and measured[task].cases()
        },
    )


def _finished(
    pieces: Mapping[str, bytes], task: str, names: Sequence[str], indices: Sequence[int]
) -> dict[int, Records]:
    """What the pieces of a journal hold of a task, of these images."""
    found: dict[int, Records] = {}
    for key, content in pieces.items():
        if key.split()[0] == task:
            found |= unpack(from_bytes(content), names)
    return {index: found[index] for index in indices if index in found}


def _figure(
    clip: ZeroShotClassifier,
    data: DataSet,
    view: View,
    ask: Asking,
    task: str,
    cases: Sequence[tuple[float, int]],
) -> Figure:
    """The worst, the middle and the best image of a task; fewer where there are fewer."""
    chosen = [cases[i] for i in sorted({0, len(cases) // 2, len(cases) - 1})]
    reader = Reader(clip, data, [index for _, index in chosen], view, len(chosen), 0)
    title = f"{data.name}, {task}: worst, middle and best by {ask.names[0]}"
    return cases_figure(data, ask, reader, [score for score, _ in chosen], title)


def _result(name: str, measured: Mapping[str, Measured], confidence: bool) -> Result:
    """All measures of one method."""
    measures: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    for found in measured.values():
        records = found.of(name)
        if records:
            measures |= found.judge.figures(records)
            intervals |= found.judge.intervals(records) if confidence else {}
    return Result(measures, intervals, None, None)
