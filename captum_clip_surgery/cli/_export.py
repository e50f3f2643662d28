"""Command `export`: maps of a large collection, by one process, torchrun, a job array or Ray."""

from __future__ import annotations

import glob
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from captum_clip_surgery._utils.drivers import Torchrun, array_numbers, check_ray_alone, run_on_ray
from captum_clip_surgery._utils.pieces import Pieces
from captum_clip_surgery._utils.progress import track_progress
from captum_clip_surgery.attr import LayerCLIPSurgery
from captum_clip_surgery.cli._digests import code_digest
from captum_clip_surgery.cli._groups import ModelOptions, QueryOptions
from captum_clip_surgery.cli._model import (
    check_contrast,
    existing,
    feature_surgery_of,
    read_lines,
    read_texts,
)
from captum_clip_surgery.cli._options import Export
from captum_clip_surgery.cli._queries import load_with_queries
from captum_clip_surgery.export import Plan, load_maps, plan
from captum_clip_surgery.export._plan import Explained


@dataclass(frozen=True)
class _Method:
    """A method that every process loads, with texts that were read from their files once."""

    clip: ModelOptions
    texts: list[str]
    queries: QueryOptions
    distractors: list[str]
    feature_surgery: str | None
    num_blocks: int | None

    def load(self, device: str | None = None, quiet: bool = False) -> LayerCLIPSurgery:
        texts, others = self.texts, self.distractors
        clip = load_with_queries(self.clip, texts, self.queries, others, quiet, device)
        return LayerCLIPSurgery(
            clip, num_blocks=self.num_blocks, feature_surgery=self.feature_surgery
        )


def export(options: Export) -> None:
    """Run the command."""
    if not glob.has_magic(options.export.source):
        existing(Path(options.export.source))
    method = _Method(
        options.clip,
        read_texts(options.texts, options.clip, options.queries),
        options.queries.absolute() if options.engine == "ray" else options.queries,
        read_lines(options.distractors),
        feature_surgery_of(options.feature_surgery),
        options.num_blocks,
    )
    check_contrast(options.feature_surgery, method.texts, method.distractors, options.queries)
    if options.engine == "ray":
        _export_on_ray(options, method)
        return
    run = Torchrun.join(options.timeout)
    surgery = method.load(run.device, quiet=not run.is_main_process)
    made, left = run.broadcast("plan", lambda: _plan(options, surgery, warn=run.restarts == 0))
    if options.plan:
        return
    if options.array is not None:
        left = array_numbers(left, options.array)
    images = made.images_left(left)
    show = partial(track_progress, description="export", dist=run)
    track = (
        partial(show, total=len(left), unit="shard", count=lambda batch: int(batch.last))
        if images is None
        else partial(show, total=images)
    )
    try:
        done = made.explain(surgery, run.numbers("shards", left), options.workers, track)
    except Exception as error:
        if run.world_size > 1:
            error.add_note(f"in {run}")
        raise
    run.finish_one("export")
    run.wait_for_all("export", run.world_size, options.timeout)
    _report(made, [done], "" if run.world_size == 1 else f" by {run}", run.is_main_process)


def _export_on_ray(options: Export, method: _Method) -> None:
    check_ray_alone(options.array)
    # The actors hold the models; here one is loaded to say which model it is.
    made, left = _plan(options, method.load("cpu"), warn=True)
    if options.plan:
        return
    work = partial(_work, made, left, method, options.workers)
    _report(made, run_on_ray(work, **vars(options.ray)) if left else [], " by Ray's actors")
    if made.left():
        raise RuntimeError(
            f"the actors ended, but {len(made.left())} files are not in {made.folder}; do all "
            "machines share the folder?"
        )


def _work(made: Plan, left: list[int], method: _Method, workers: int, run: Torchrun) -> Explained:
    """Explain images in an actor of Ray."""
    return made.explain(method.load(run.device, quiet=True), run.numbers("export", left), workers)


def _plan(options: Export, surgery: LayerCLIPSurgery, warn: bool) -> tuple[Plan, list[int]]:
    """Plan the export and return the numbers of the shards left."""
    made = plan(
        surgery,
        **vars(options.export),
        look=options.array is None,
        about={**vars(replace(options.clip, device=None)), "code": code_digest()},
    )
    for reason in made.verify().values() if options.verify else ():
        print(f"warning: {reason}", file=sys.stderr)
    made.pieces.clean(warn and options.array is None)
    Pieces(made.folder, 0).clean(warn=False)
    left = made.left()
    if options.plan:
        print(f"{len(left)} of {made.count} files are left to be written in {made.folder}.")
    return made, left


def _report(made: Plan, done: list[Explained], who: str, is_last: bool = True) -> None:
    images, seconds = sum(each.images for each in done), max((d.seconds for d in done), default=0.0)
    speed = images / seconds if seconds else 0.0
    waiting = max((each.waiting for each in done), default=0.0)
    print(
        f"{images} images explained{who}, {speed:.1f} per second, {waiting:.0%} of the time "
        "waiting for images and the disk."
    )
    if not (is_last and made.finish()):
        return  # of several tasks of an array, the last one reports
    maps = load_maps(made.folder)
    print(
        f"{len(maps)} images in {made.count} files are in {made.folder}; read them with "
        "captum_clip_surgery.export.load_maps."
    )
    unreadable = maps.unreadable
    if unreadable:
        name, reason = next(iter(unreadable.items()))
        print(
            f"warning: {len(unreadable)} images are unreadable; the first is {name!r}: {reason}",
            file=sys.stderr,
        )
