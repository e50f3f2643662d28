"""The plan of an export: small, picklable, and all that a process needs apart from the model."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from captum.attr import LayerAttribution

from captum_clip_surgery._utils.pieces import RUN, Pieces, differences, read_run, start_run
from captum_clip_surgery._utils.provenance import environment_info, precision, weights_digest
from captum_clip_surgery.attr._coverage import covered_size
from captum_clip_surgery.attr._dual_path import DualPathAttribution
from captum_clip_surgery.export._explaining import Paths, explain_batch
from captum_clip_surgery.export._listing import LISTING, Listing, list_source
from captum_clip_surgery.export._reading import Batch, Prefetcher
from captum_clip_surgery.export._rows import RowWriter, schema
from captum_clip_surgery.export._sources import FileShard, Shard, Source, TarShard, open_source
from captum_clip_surgery.export._summary import SUMMARY, write_summary
from captum_clip_surgery.export._tables import TABLES, load_shards, save_shards
from captum_clip_surgery.models._activations import describe_activation
from captum_clip_surgery.models._contents import settings_digest
from captum_clip_surgery.models._guards import ModelWatch

DATA = "data"


@dataclass(frozen=True)
class Explained:
    """Statistics of a process's work.

    Attributes:
        images: Number of images it explained.
        unreadable: Number of images that it could not read.
        seconds: Seconds it took.
        waiting: Fraction of these in which the model waited for images or for the disk.
    """

    images: int
    unreadable: int
    seconds: float
    waiting: float


@dataclass(frozen=True)
class Plan:
    """An export: which shards of a collection make which files, and how. `plan` makes it.

    Small and picklable: send it to any process that shares the folder and the collection, and have
    it `explain` some of the numbers that are `left`.

    Attributes:
        folder: Folder of the export.
        source: The collection, as for `open_source`.
        count: Number of shards, each of which makes one file.
        settings: All that determines the result, as JSON.
    """

    folder: Path
    source: str
    count: int
    settings: Mapping[str, Any]

    @property
    def pieces(self) -> Pieces:
        """Files of the export, one per shard of the collection."""
        return Pieces(self.folder / DATA, self.count)

    def left(self) -> list[int]:
        """Return the numbers of the shards whose file is not there yet."""
        return self.pieces.left()

    def images_left(self, left: Iterable[int]) -> int | None:
        """Return the number of images in some shards; None if it is unknown before reading."""
        shards = self._shards()
        if isinstance(shards, Listing):
            sizes: Sequence[int | None] = shards.images()
        else:
            sizes = [shard.images for shard in shards]
        if None in sizes:
            return None
        return sum(filter(None, (sizes[number] for number in left)))

    def explain(
        self,
        method: DualPathAttribution,
        numbers: Iterable[int],
        workers: int = 1,
        track: Callable[[Iterator[Batch]], Iterator[Batch]] = iter,
    ) -> Explained:
        """Write the files of some shards; shards whose file is there already are passed over.

        Any loop, scheduler or cluster may call it, with any numbers, in any number of processes at
        once: files come out the same, and a shard computed twice is only a waste of time.

        Args:
            method: The method and model that the plan was made with, or the same loaded again.
            numbers: Numbers of shards, taken one by one as workers are free.
            workers: Number of processes that read ahead; 0 reads in this process.
            track: Wraps the iterator of batches, for example to show progress.

        Returns:
            What was done.

        Raises:
            IndexError: If a number is not one of the collection's shards.
            ValueError: If `method` is not that of the plan, or a map holds NaN or values beyond the
                range of float16.
            OSError: If the disk is full or cannot be written; finished files remain.
            RuntimeError: If the model changes during the run; nothing of the changed model is
                written.
        """
        if workers < 0:
            raise ValueError(f"workers must be at least 0, got {workers!r}")
        self._check(method)
        clip, pieces = method.forward_func, self.pieces
        options = self.settings["options"]
        paths = _compiled_paths(method, options) if options["compile"] else None
        watch = ModelWatch(clip.model, whole=True)
        ahead = Prefetcher(
            self._shards(),
            self._undone(numbers),
            replace(clip.preprocessing, fast=options["fast"]),
            tuple(options["size"]),
            options["batch_size"],
            workers,
        )
        start, images, unreadable = time.perf_counter(), 0, 0
        with RowWriter(pieces, clip.texts, options["maps"]) as writer:
            for batch in track(iter(ahead)):
                found = None
                if batch.pixels is not None:
                    try:
                        pixels = batch.pixels.to(clip.device)
                        found = explain_batch(method, pixels, options["top"], paths)
                    except Exception as error:
                        error.add_note(f"images {', '.join(batch.names)}")
                        raise
                watch.check()  # all files are of one model
                writer.put(batch, found)
                images, unreadable = images + len(batch.names), unreadable + len(batch.unreadable)
        seconds = time.perf_counter() - start
        waiting = (ahead.waited + writer.waited) / seconds if images else 0.0
        return Explained(images, unreadable, seconds, waiting)

    def finish(self) -> bool:
        """Write the summary that lets `load_maps` open many files at once, if all are there.

        Every process may call it when it has no more to do; the last one finds all files.

        Returns:
            Whether all files are there.
        """
        if self.left():
            return False
        write_summary(self.folder, self.pieces)
        return True

    def verify(self) -> dict[int, str]:
        """Read all files and remove damaged ones, so that they are `left` to be computed again.

        Returns:
            What is wrong with each damaged file, by its number.
        """
        (self.folder / SUMMARY).unlink(missing_ok=True)
        return self.pieces.verify(schema(self.settings["model"]["texts"]))

    def _undone(self, numbers: Iterable[int]) -> Iterator[int]:
        for number in numbers:
            if number not in range(self.count):
                raise IndexError(f"there is no shard {number}: the collection has {self.count}")
            if not self.pieces.is_done(number):
                yield number

    def _shards(self) -> Sequence[Shard]:
        listing = self.folder / LISTING
        return Listing(listing) if listing.exists() else load_shards(self.folder / TABLES)

    def _check(self, method: DualPathAttribution) -> None:
        changed = list(differences("", self.settings["model"], _describe(method)))
        if changed:
            raise ValueError(f"the method is not that of the plan: {'; '.join(changed[:5])}")


def plan(
    method: DualPathAttribution,
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    top: int = 5,
    maps: bool = True,
    size: int | tuple[int, int] | None = None,
    batch_size: int = 8,
    shard_size: int = 1000,
    column: str | None = None,
    fast: bool = False,
    compile: bool = False,
    look: bool = True,
    about: Mapping[str, Any] | None = None,
) -> Plan:
    """Plan the export of a collection: maps of all texts, best texts and embeddings of its images.

    Each shard of the collection makes one Parquet file, which gets its name when it is complete. A
    plan in the same folder with the same arguments resumes the export.

    Args:
        method: A method such as `LayerCLIPSurgery(clip)`.
        source: A folder of images, tars or Parquet files, a pattern of tars or Parquet files, a
            saved Hugging Face data set, or a list of paths, as for `open_source`.
        output: Folder of the export.
        top: Number of best texts recorded per image.
        maps: Whether to store maps, or only embeddings and best texts.
        size: Side or (height, width) of the model's input in pixels (default: its native size).
        batch_size: Number of images per forward pass.
        shard_size: Number of images per shard; an input tar always makes one shard.
        column: Column of images, if `source` is a table.
        fast: Whether to resize images faster and slightly less exactly, see `Preprocess`.
        compile: Whether to compile the image tower with `torch.compile`.
        look: Whether to look at the collection's files again if the folder lists them already. A
            job array of many tasks passes False, to look once.
        about: Further settings that determine the result, as JSON.

    Returns:
        The plan.

    Raises:
        FileNotFoundError: If `source` does not exist.
        ValueError: If the folder holds another export, or an argument is out of range.
        ImportError: If pyarrow is missing.

    Example::

        surgery = LayerCLIPSurgery(clip)
        export = plan(surgery, "photos/", "out")
        export.explain(surgery, export.left())
        export.finish()
        maps = load_maps("out")
    """
    if batch_size < 1 or top < 0 or shard_size < 1:
        raise ValueError(
            f"batch_size {batch_size!r} and shard_size {shard_size!r} must be at least 1, top "
            f"{top!r} at least 0"
        )
    clip, folder = method.forward_func, Path(output).absolute()
    sides = _sides(size, clip.native_size)
    options = {
        "top": top,
        "maps": maps,
        "size": list(sides),
        "batch_size": batch_size,
        "shard_size": shard_size,
        "column": column,
        "fast": fast,
        "compile": compile,
    }
    shape = clip.tower.grid(*sides) if isinstance(method, LayerAttribution) else sides
    covered = covered_size(clip, torch.empty(shape, device="meta"), sides)
    settings = {
        **(about or {}),
        "model": _describe(method),
        "options": options,
        "covered": list(covered),
    }
    pieces, listing = Pieces(folder / DATA, 0), folder / LISTING
    if (folder / DATA).exists() and not (folder / RUN).exists():
        raise ValueError(
            f"{folder / DATA} exists without a {RUN}, so its contents are unknown; choose "
            "another folder"
        )
    if not look and (listing.exists() or (folder / TABLES).exists()):
        settings["source"] = read_run(folder)["source"] | {"place": str(Path(source).resolve())}
        start_run(folder, settings)
    else:
        collection = open_source(source, shard_size, column)
        settings["source"] = _describe_source(collection)
        start_run(folder, settings)
        if _is_listed(collection):
            list_source(listing, collection, shard_size, pieces)
        else:
            save_shards(folder / TABLES, collection.pieces)
    count = len(Listing(listing)) if listing.exists() else settings["source"]["shards"]
    place = Path(source).absolute() if Path(source).exists() else source
    made = Plan(folder, os.fspath(place), count, settings)
    if made.left():  # a summary would tell of files that are not there
        (folder / SUMMARY).unlink(missing_ok=True)
    return made


@torch.inference_mode()
def _compiled_paths(method: DualPathAttribution, options: Mapping[str, Any]) -> Paths:
    """Compile the tower by a pass, which changes classes of torch and must not do so later."""
    tower = method.forward_func.tower
    paths: Paths = torch.compile(tower.paths)
    shape = (options["batch_size"], 3, *options["size"])
    device = method.forward_func.device
    paths(torch.zeros(shape, dtype=tower.dtype, device=device), [method.path_config])
    return paths


def _is_listed(collection: Source) -> bool:
    return all(isinstance(shard, (FileShard, TarShard)) for shard in collection.pieces)


def _describe_source(collection: Source) -> dict[str, Any]:
    described = {"kind": collection.kind, "place": collection.place}
    if _is_listed(collection):  # changes are found file by file
        return described
    states = "\n".join(collection.states).encode(errors="surrogateescape")
    return described | {
        "shards": len(collection.pieces),
        "digest": hashlib.sha256(states).hexdigest(),
    }


def _describe(method: DualPathAttribution) -> dict[str, Any]:
    """Return everything about a method and its model that determines an export's content."""
    clip = method.forward_func
    versions = environment_info(clip.device)["versions"]
    return {
        "texts": list(clip.texts),
        "distractors": list(clip.distractors),
        "templates": [str(template) for template in clip.templates],
        "features": clip.describe_features(),
        "method": repr(method),
        "tower": clip.tower.describe(),
        "positions": clip.tower.positions,
        "activation": describe_activation(clip.model),
        "precision": precision(clip.tower.dtype),
        "weights": weights_digest(clip.model),
        "settings": settings_digest(clip.model),
        "preprocessing": repr(clip.preprocessing),
        "versions": versions,
    }


def _sides(size: int | tuple[int, int] | None, native: tuple[int, int]) -> tuple[int, int]:
    if size is None:
        return native
    return (size, size) if isinstance(size, int) else size
