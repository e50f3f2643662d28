"""Batches of a collection's images, prefetched by workers."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from captum_clip_surgery.export._entries import Entry, Shard, attempt, decode
from captum_clip_surgery.preprocessing import Preprocess


@dataclass(frozen=True)
class Batch:
    """Images of one shard.

    Attributes:
        piece: Number of the shard.
        names: Names of the readable images.
        sizes: Height and width of the original images.
        pixels: Preprocessed images (N, 3, H, W); None if all are unreadable.
        unreadable: Names of unreadable images, each with the reason.
        last: Whether this batch is the last one of its shard.
    """

    piece: int
    names: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    pixels: Tensor | None
    unreadable: tuple[tuple[str, str], ...]
    last: bool

    def __len__(self) -> int:
        """Return the number of images, including unreadable ones."""
        return len(self.names) + len(self.unreadable)


@dataclass(frozen=True)
class _Shown:
    """The parts of an image that are kept; the original may be many times larger."""

    name: str
    size: tuple[int, int]
    pixels: Tensor


class _Batches(IterableDataset[Batch]):
    """Batches as a worker reads them, each worker whole shards of its own."""

    def __init__(
        self,
        pieces: Sequence[Shard],
        numbers: Iterable[int],
        preprocess: Preprocess,
        size: tuple[int, int],
        batch_size: int,
    ) -> None:
        self.pieces = pieces
        self.numbers = numbers
        self.preprocess = preprocess
        self.size = size
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[Batch]:
        for number in self.numbers:
            yield from self._of(self.pieces[number])

    def _of(self, piece: Shard) -> Iterator[Batch]:
        # A batch is of one piece, so that results depend on no other, whoever makes it.
        waiting: list[Entry | _Shown] = []
        for entry in piece.entries():
            if len(waiting) == self.batch_size:
                yield _batch(piece, waiting, last=False)
                waiting = []
            shown = attempt(entry, self._shown)
            waiting.append(Entry(entry.name, None, shown) if isinstance(shown, str) else shown)
        yield _batch(piece, waiting, last=True)

    def _shown(self, entry: Entry) -> _Shown:
        image = decode(entry, self.preprocess.at_least(self.size))
        (pixels,) = self.preprocess(image, self.size)
        width, height = image.info["original_size"]
        return _Shown(entry.name, (height, width), pixels)


def _batch(piece: Shard, samples: Sequence[Entry | _Shown], last: bool) -> Batch:
    shown = [sample for sample in samples if isinstance(sample, _Shown)]
    return Batch(
        piece.number,
        tuple(sample.name for sample in shown),
        tuple(sample.size for sample in shown),
        torch.stack([sample.pixels for sample in shown]) if shown else None,
        tuple((sample.name, sample.reason) for sample in samples if isinstance(sample, Entry)),
        last,
    )


@dataclass(frozen=True)
class _Handout:
    """Numbers that workers take from an iterator of the main process, each when it is free."""

    asked: Any = field(default_factory=multiprocessing.SimpleQueue)
    given: Any = field(default_factory=multiprocessing.SimpleQueue)

    def serve(self, numbers: Iterable[int], errors: list[Exception]) -> None:
        """Answer workers from a thread, until `asked` yields False; keep what `numbers` raises."""

        def answer() -> None:
            left = iter(numbers)
            while self.asked.get():
                try:
                    number = next(left, None)
                except Exception as error:
                    errors.append(error)
                    number, left = None, iter(())
                self.given.put(number)

        threading.Thread(target=answer, name="handout", daemon=True).start()

    def __iter__(self) -> Iterator[int]:
        """Yield numbers in a worker."""
        while True:
            self.asked.put(True)
            number = self.given.get()
            if number is None:
                return
            yield number


class Prefetcher:
    """Batches of shards, read ahead by workers; `waited` counts seconds without a batch ready.

    Args:
        pieces: Shards of the collection.
        numbers: Numbers of those to read, each taken when a worker is free.
        preprocess: Preprocessing of the model.
        size: Height and width of the model's input.
        batch_size: Number of images in a batch.
        workers: Number of worker processes, each with its own shard; 0 reads in this process.
    """

    def __init__(
        self,
        pieces: Sequence[Shard],
        numbers: Iterable[int],
        preprocess: Preprocess,
        size: tuple[int, int],
        batch_size: int,
        workers: int,
    ) -> None:
        self.waited = 0.0
        self._errors: list[Exception] = []
        self._handout = _Handout() if workers else None
        loader = DataLoader(
            _Batches(pieces, self._handout or numbers, preprocess, size, batch_size),
            batch_size=None,  # they come as batches
            num_workers=workers,
        )
        # Workers begin here and now: forked later they might inherit what a thread holds.
        self._batches = iter(loader)
        if self._handout is not None:
            self._handout.serve(numbers, self._errors)

    def __iter__(self) -> Iterator[Batch]:
        try:
            start = time.perf_counter()
            for batch in self._batches:
                self.waited += time.perf_counter() - start
                yield batch
                start = time.perf_counter()
        finally:
            if self._handout is not None:
                self._handout.asked.put(False)
        for error in self._errors:
            raise error
