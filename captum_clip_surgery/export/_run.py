"""A collection explained: read ahead, explained, written behind, journalled."""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from captum_clip_surgery._utils.checkpoint import ABOUT, CheckpointStore
from captum_clip_surgery._utils.distributed import SINGLE_PROCESS, Processes
from captum_clip_surgery._utils.progress import track_progress
from captum_clip_surgery._utils.provenance import environment_info, weights_digest
from captum_clip_surgery.attr.dual_path import DualPathAttribution
from captum_clip_surgery.export import _extras
from captum_clip_surgery.export._explaining import explain_batch
from captum_clip_surgery.export._manifest import INDEX, JOURNAL, MANIFEST, is_intact, write_manifest
from captum_clip_surgery.export._reading import Batch, Prefetcher
from captum_clip_surgery.export._shards import FOLDER, FORMATS, PART, remove
from captum_clip_surgery.export._sources import Shard, Source, open_source
from captum_clip_surgery.export._writing import AsyncShardWriter, ShardRecord, entries
from captum_clip_surgery.models import ModelWatch, describe_activation, settings_digest


@dataclass(frozen=True)
class ExportSummary:
    """What an export came to.

    `manifest` is of all processes and runs, and the first process alone has it; `made` images were
    explained by this process in this run, in `seconds`, of which the model waited a share of
    `waiting` for images and for the disk.
    """

    folder: Path
    manifest: Mapping[str, Any]
    made: int
    seconds: float
    waiting: float


def export_maps(
    surgery: DualPathAttribution,
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    format: str = "webdataset",
    top: int = 5,
    size: int | tuple[int, int] | None = None,
    batch_size: int = 8,
    workers: int = 1,
    shard_size: int = 1000,
    resume: bool = False,
    dist: Processes = SINGLE_PROCESS,
    progress: bool = False,
    about: Mapping[str, Any] | None = None,
) -> ExportSummary:
    """Maps of all texts for all images of a collection, into a folder that `load_maps` reads.

    Args:
        surgery: such as `LayerCLIPSurgery(clip)`.
        source: where the images are; see `open_source`.
        output: folder of the export.
        format: "webdataset" or "zarr".
        top: how many texts of each image are named.
        size: side or (height, width) that the model sees; None is native.
        batch_size: images in one pass.
        workers: processes that read ahead; 0 reads when asked.
        shard_size: images in a shard; each input tar makes one, whatever it holds.
        resume: go on with the export that lies in the folder.
        dist: the processes that share the pieces.
        progress: whether the first process tells how it goes on.
        about: what else an export must share with one it goes on with; JSON.

    Raises:
        FileExistsError: an export lies in the folder and is not to be gone on with.
        FileNotFoundError, ValueError: see `open_source`; an export there is of something else; a
            size the patch size does not divide, an unknown format, a batch size below 1.
        ImportError: the format's library is missing.
        OSError: the disk is full, or cannot be written; what is finished stays.
        RuntimeError: the model was changed meanwhile; nothing of the changed one is written.
    """
    if format not in FORMATS:
        raise ValueError(f"format {format!r} is none of {', '.join(FORMATS)}")
    if batch_size < 1 or top < 0 or workers < 0:
        raise ValueError(
            f"batch_size {batch_size!r} must be at least 1; top {top!r} and workers {workers!r} "
            "at least 0"
        )
    getattr(_extras, format)()
    clip, folder = surgery.forward_func, Path(output)
    sides = _sides(size, clip.native_size)
    clip.tower.grid(*sides)
    collection = open_source(source, shard_size)
    watch = ModelWatch(clip.model, whole=True)
    if dist.is_main_process:  # every weight is looked at
        settings = {
            **(about or {}),
            **_settings(surgery, collection),
            "format": format,
            "top": top,
            "size": list(sides),
            "batch_size": batch_size,
            "shard_size": shard_size,
        }
        journal = _begin(folder, settings, resume or dist.restarted)
    dist.barrier("opening the journal")
    if not dist.is_main_process:
        journal = CheckpointStore.open(folder / JOURNAL)
    with journal:  # its lock keeps other runs away
        left = _left(folder, journal, collection.pieces, dist)
        if dist.is_main_process and left:
            for name in (MANIFEST, INDEX):  # until the end they would tell of what is not there
                (folder / name).unlink(missing_ok=True)
        start = time.perf_counter()
        ahead = Prefetcher(dist.shard(left), clip.preprocessing, sides, batch_size, workers)
        batches = _followed(ahead, left, dist, progress)
        make = partial(FORMATS[format], folder, texts=clip.texts)
        with AsyncShardWriter(folder / JOURNAL, make) as behind:
            made = _explain(surgery, top, batches, behind, dist, watch)
        seconds = time.perf_counter() - start
        dist.barrier("their shards")
        manifest: Mapping[str, Any] = {}
        if dist.is_main_process:  # others need not wait for it
            manifest = write_manifest(folder, {"environment_info": environment_info(clip.device)})
    waiting = (ahead.waited + behind.waited) / seconds if made else 0.0
    return ExportSummary(folder, manifest, made, seconds, waiting)


def _followed(
    ahead: Prefetcher, left: Sequence[Shard], dist: Processes, progress: bool
) -> Iterator[Batch]:
    """Batches, while the first process tells how it goes on: by images where these are counted."""
    counts = [piece.images for piece in left]
    if None in counts:
        return track_progress(
            ahead, "export", len(left), dist, progress, "shard", lambda b: int(b.last)
        )
    images = sum(filter(None, counts))
    return track_progress(ahead, "export", images, dist, progress)


def _explain(
    surgery: DualPathAttribution,
    top: int,
    batches: Iterable[Batch],
    behind: AsyncShardWriter,
    dist: Processes,
    watch: ModelWatch,
) -> int:
    """How many images were explained."""
    device, made = surgery.forward_func.device, 0
    for batch in batches:
        dist.heartbeat()
        found = None
        if batch.pixels is not None:
            try:
                found = explain_batch(surgery, batch.pixels.to(device), top)
            except Exception as error:
                error.add_note(f"images {', '.join(batch.names)}")
                raise
            made += len(found)
        watch.check()  # the manifest tells of one model, and all shards are of it
        behind.put(batch, found)
    return made


def _begin(folder: Path, settings: Mapping[str, Any], resume: bool) -> CheckpointStore:
    """Make or reopen the journal, and remove what a killed run left unfinished."""
    if not (folder / JOURNAL / ABOUT).exists() and (folder / FOLDER).exists():
        raise FileExistsError(
            f"{folder / FOLDER} lies there without a journal, so that nobody can tell what it is "
            "of; choose another folder"
        )
    journal = CheckpointStore(folder / JOURNAL, settings, resume)
    own = [folder / f"{name}{PART}" for name in (MANIFEST, INDEX)]
    for path in [*own, *(folder / FOLDER).glob(f"*{PART}")]:
        remove(path)
    return journal


def _left(
    folder: Path, journal: CheckpointStore, pieces: Sequence[Shard], dist: Processes
) -> list[Shard]:
    """Pieces that are not finished, or whose shard is no more as it was written: it is removed.

    One process reads the journal, and all look through the shards that it tells of: were they to
    see different things, they would share out differently.
    """
    found = entries(journal) if dist.is_main_process else None
    known: dict[int, list[ShardRecord]] = dist.broadcast_object(found, "reading the journal")
    lost: list[int] = []
    for number in dist.shard(sorted(known)):
        dist.heartbeat()
        if any(is_intact(folder, entry) for entry in known[number]):
            continue
        file = known[number][0].file
        warnings.warn(f"shard {file} is missing or fails its checksum; made anew", stacklevel=3)
        remove(folder / str(file))
        lost.append(number)
    everywhere = set(chain.from_iterable(dist.all_gather_object(lost, "looking through shards")))
    return [p for p in pieces if p.number not in known or p.number in everywhere]


def _settings(surgery: DualPathAttribution, source: Source) -> dict[str, Any]:
    """All that changes an export's content, beside what a user asked of it."""
    clip = surgery.forward_func
    features = clip.text_features().cpu().contiguous()
    return {
        "source": {
            "kind": source.kind,
            "place": source.place,
            "pieces": len(source.pieces),
            "digest": source.digest,
        },
        "texts": list(clip.texts),
        "distractors": list(clip.distractors),
        "templates": [str(template) for template in clip.templates],
        # Given features are known by nothing else.
        "features": (
            None if clip.templates else hashlib.sha256(features.numpy().tobytes()).hexdigest()
        ),
        "method": repr(surgery),
        "tower": clip.tower.describe(),
        "activation": describe_activation(clip.model),
        "weights": weights_digest(clip.model),
        "model": settings_digest(clip.model),
        "preprocessing": repr(clip.preprocessing),
        "versions": environment_info(clip.device)["versions"],
        "device": torch.device(clip.device).type,
    }


def _sides(size: int | tuple[int, int] | None, native: tuple[int, int]) -> tuple[int, int]:
    if size is None:
        return native
    return (size, size) if isinstance(size, int) else size
