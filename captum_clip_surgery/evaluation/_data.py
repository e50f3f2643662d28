"""Images of a data set as the model sees them, read ahead by worker processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.datasets import ImageDataset, Labels, Masks, Target
from captum_clip_surgery.evaluation._protocol import View
from captum_clip_surgery.evaluation._store import digest_of
from captum_clip_surgery.models.image._data import nearest_multiple
from captum_clip_surgery.preprocessing import Preprocess
from captum_clip_surgery.tasks._images import ResizePolicy


@dataclass(frozen=True)
class EvalSample:
    """An image ready for the model, and its annotation.

    Args:
        index: Index of the image in the data set.
        name: Name of the image.
        pixels: The preprocessed image (3, H, W).
        target: Its annotation, as the task prepares it.
        size: (height, width) of the image in the file.
        piece: Number of the piece that the image belongs to.
        digest: Digest of the image and its annotation.
    """

    index: int
    name: str
    pixels: Tensor
    target: Target
    size: tuple[int, int]
    piece: int = 0
    digest: str = ""


@dataclass(frozen=True)
class Unreadable:
    """An unreadable image.

    Args:
        index: Index of the image in the data set.
        name: Name of the image.
        piece: Number of the piece that the image belongs to.
        error: What reading it raised.
    """

    index: int
    name: str
    piece: int
    error: Exception


def resize_policy(view: View, clip: ZeroShotClassifier) -> ResizePolicy:
    """Return the resizing of images for a model that a view sets."""
    patch_size = clip.tower.patch_size
    if view.size is None:
        return ResizePolicy(clip.native_size)
    if view.keep_aspect:
        return ResizePolicy(view.size, True, view.longest, patch_size)
    rows, columns = patch_size
    return ResizePolicy((nearest_multiple(view.size, rows), nearest_multiple(view.size, columns)))


@dataclass(frozen=True)
class EvalDataset(Dataset[EvalSample | Unreadable]):
    """The samples that a worker reads and resizes.

    Args:
        data: The data set.
        preprocess: The model's preprocessing.
        policy: How images are resized.
        target_size: Side in pixels to which labels and masks are resized; None keeps their size.
        prepare: Function that prepares annotations for a task.
    """

    data: ImageDataset
    preprocess: Preprocess
    policy: ResizePolicy
    target_size: int | None = None
    prepare: Callable[[Target], Target] | None = None

    def __getitem__(self, place: tuple[int, int]) -> EvalSample | Unreadable:
        """Return a sample of a piece and an index, or the error that prevents it.

        An exception raised in a worker would reach the user as the text of a traceback.
        """
        piece, index = place
        try:
            sample = self.data[index]
            size = (sample.image.height, sample.image.width)
            # As an array: an EXIF rotation left in the image is not to be applied, since
            # annotations are of the stored pixels.
            (pixels,) = self.preprocess(np.asarray(sample.image), self.policy.target(*size))
            target = sample.target
            if self.target_size is not None:
                target = resize_target(target, self.target_size)
            if self.prepare is not None:
                target = self.prepare(target)
        except (OSError, ValueError) as error:
            return Unreadable(index, self.data.names[index], piece, error)
        except Exception as error:
            error.add_note(f"image {self.data.names[index]!r} of {self.data.name}")
            raise
        return EvalSample(index, sample.name, pixels, target, size, piece, digest_of(sample))


class EvalDataLoader:
    """Batches of a data set's images.

    Args:
        clip: The classifier, whose preprocessing is applied.
        data: The data set.
        batches: Batches of pairs of a piece and the index of an image.
        view: How images are shown.
        workers: Number of processes that read ahead; 0 reads in this process.
        prepare: Function that prepares annotations for a task.

    Attributes:
        data_wait_s: Seconds spent waiting for data so far.
    """

    def __init__(
        self,
        clip: ZeroShotClassifier,
        data: ImageDataset,
        batches: Iterable[list[tuple[int, int]]],
        view: View,
        workers: int = 0,
        prepare: Callable[[Target], Target] | None = None,
    ) -> None:
        self.data_wait_s = 0.0
        policy = resize_policy(view, clip)
        self._batches = DataLoader(
            EvalDataset(data, clip.preprocessing, policy, view.target_size, prepare),
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=list,
            pin_memory=False,
        )

    def __iter__(self) -> Iterator[list[EvalSample | Unreadable]]:
        start = time.perf_counter()
        for batch in self._batches:
            self.data_wait_s += time.perf_counter() - start
            yield batch
            start = time.perf_counter()


def resize_target(target: Target, side: int) -> Target:
    """Resize labels or masks to side x side pixels, by the nearest pixel."""

    def nearest(values: np.ndarray) -> np.ndarray:
        image = Image.fromarray(values.astype(np.int32))
        return np.asarray(image.resize((side, side), Image.Resampling.NEAREST))

    if isinstance(target, Labels):
        return Labels(nearest(target.labels))
    assert isinstance(target, Masks)
    masks, ignored = (
        {label: nearest(mask) > 0 for label, mask in part.items()}
        for part in (target.masks, target.ignored)
    )
    return Masks(masks, ignored)


def stack_pixels(batch: Sequence[EvalSample], device: torch.device) -> Tensor:
    """Return the pixels (N, 3, H, W) of samples of one size, on a device."""
    return torch.stack([sample.pixels for sample in batch]).to(device)
