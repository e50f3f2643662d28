"""Export of a collection: read ahead, explain, write in the background, record in a journal."""

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
from captum_clip_surgery.models._activations import describe_activation
from captum_clip_surgery.models._contents import settings_digest
from captum_clip_surgery.models._guards import ModelWatch


@dataclass(frozen=True)
class ExportSummary:
    """Result of an export.

    Attributes:
        folder: Folder of the export.
        manifest: Manifest of all processes and runs; empty except in the main process.
        made: Number of images this process explained in this run.
        seconds: Seconds of this run.
        waiting: Fraction of these in which the model waited for images or for the disk.
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
    """Write the maps of all texts for all images of a collection; `load_maps` reads them.

    Args:
        surgery: A method such as `LayerCLIPSurgery(clip)`.
        source: A folder of images or tars, a pattern of tars, or a list of paths, as for
            `open_source`.
        output: Folder of the export.
        format: "webdataset" or "zarr".
        top: Number of best texts recorded per image.
        size: Side or (height, width) of the model's input in pixels (default: its native size).
        batch_size: Number of images per forward pass.
        workers: Number of processes that read ahead; 0 reads in this process.
        shard_size: Number of images per shard; an input tar always makes one shard.
        resume: Whether to continue the export in the folder.
        dist: The processes that share the work.
        progress: Whether the main process reports progress.
        about: Further settings that an export must share with one it resumes, as JSON.

    Returns:
        Summary of the run.

    Raises:
        FileExistsError: If the folder holds an export and `resume` is False.
        FileNotFoundError: If `source` does not exist.
        ValueError: If the export in the folder has other settings, or an argument is out of range.
        ImportError: If the library of the format is missing.
        OSError: If the disk is full or cannot be written; finished shards remain.
        RuntimeError: If the model changes during the run; nothing of the changed model is written.
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
    """Track progress by images where their number is known, by shards otherwise."""
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
    """Explain and write all batches; return the number of images."""
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
    """Create or reopen the journal and remove what a killed run left unfinished."""
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
    """Return the input shards still to process; delete output shards that fail their checksum.

    One process reads the journal, and all check the shards it lists: processes that saw different
    things would share the work differently.
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
    """Return everything that determines an export's content, besides the user's options."""
    clip = surgery.forward_func
    features = clip.text_features().cpu().contiguous()
    return {
        "source": {
            "kind": source.kind,
            "place": source.place,
            "pieces": len(source.pieces),
            "digest": hashlib.sha256(
                "\n".join(source.states).encode(errors="surrogateescape")
            ).hexdigest(),
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
