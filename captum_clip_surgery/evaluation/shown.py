"""A data set's images as a model is to see them, read ahead by workers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.datasets.base import DataSet, Labels, Masks, Truth
from captum_clip_surgery.evaluation.protocol import View
from captum_clip_surgery.models.image import nearest_multiple
from captum_clip_surgery.preprocessing import Preprocess


@dataclass(frozen=True)
class Shown:
    """Image `index` of a data set, its `pixels` (3, H, W), and what is known of it.

    `size` is the (height, width) of the picture in the file.
    """

    index: int
    name: str
    pixels: Tensor
    truth: Truth
    size: tuple[int, int]


@dataclass(frozen=True)
class Frame:
    """Sizes in which a view shows pictures to a model of this `patch` and `native` size."""

    view: View
    patch: tuple[int, int]
    native: tuple[int, int]

    def size(self, height: int, width: int) -> tuple[int, int]:
        """The size at which a picture of height and width is shown."""
        view = self.view
        if view.size is None:
            return self.native
        if not view.keep_aspect:
            rows, columns = self.patch
            return nearest_multiple(view.size, rows), nearest_multiple(view.size, columns)
        scale = view.size / min(height, width)
        if view.longest is not None:
            scale = min(scale, view.longest / max(height, width))
        # As mmcv rescales. Sides shorter than a patch would show nothing.
        sides = (int(side * scale + 0.5) for side in (height, width))
        down, across = (max(side, patch) for side, patch in zip(sides, self.patch, strict=True))
        return down, across


class _Pictures(Dataset[Shown | ValueError]):
    """What a worker does: read a sample, and bring its picture to size."""

    def __init__(
        self, data: DataSet, indices: Sequence[int], preprocess: Preprocess, frame: Frame
    ) -> None:
        self.data = data
        self.indices = indices
        self.preprocess = preprocess
        self.frame = frame

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> Shown | ValueError:
        """A sample as shown, or why not: what a worker raises comes out as a traceback in words."""
        index = self.indices[place]
        which = f"image {self.data.names[index]!r} of {self.data.name}"
        try:
            sample = self.data[index]
            size = (sample.image.height, sample.image.width)
            # As an array: a rotation that is still noted in the picture is not for us to follow.
            (pixels,) = self.preprocess(np.asarray(sample.image), self.frame.size(*size))
        except (OSError, ValueError) as error:
            failed = ValueError(f"{which}: {error}")
            failed.__cause__ = error
            return failed
        except Exception as error:
            error.add_note(which)
            raise
        side = self.frame.view.truth_size
        truth = sample.truth if side is None else squashed(sample.truth, side)
        return Shown(index, sample.name, pixels, truth, size)


class Reader:
    """Batches of a data set's images; `waited` counts the seconds that nothing was ready.

    Args:
        clip: whose preprocessing is done.
        data: the data set.
        indices: which of its images.
        view: how they are shown; where the aspect is kept, one is a batch.
        batch_size: images in a batch.
        workers: processes that read ahead; 0 reads when asked.
    """

    def __init__(
        self,
        clip: ZeroShotClassifier,
        data: DataSet,
        indices: Sequence[int],
        view: View,
        batch_size: int,
        workers: int,
    ) -> None:
        frame = Frame(view, clip.tower.patch_size, clip.native_size)
        self.waited = 0.0
        self._batches = DataLoader(
            _Pictures(data, indices, clip.preprocessing, frame),
            batch_size=1 if view.keep_aspect else batch_size,
            num_workers=workers,
            collate_fn=list,
            pin_memory=False,
        )

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[Shown]]:
        start = time.perf_counter()
        for batch in self._batches:
            self.waited += time.perf_counter() - start
            for shown in batch:
                if isinstance(shown, ValueError):
                    raise shown
            yield batch
            start = time.perf_counter()


def squashed(truth: Truth, side: int) -> Truth:
    """Labels or masks at side x side pixels, each the nearest of those there were."""

    def nearest(values: np.ndarray) -> np.ndarray:
        image = Image.fromarray(values.astype(np.int32))
        return np.asarray(image.resize((side, side), Image.Resampling.NEAREST))

    if isinstance(truth, Labels):
        return Labels(nearest(truth.labels))
    assert isinstance(truth, Masks)
    masks, ignored = (
        {label: nearest(mask) > 0 for label, mask in part.items()}
        for part in (truth.masks, truth.ignored)
    )
    return Masks(masks, ignored)


def stacked(batch: Sequence[Shown], device: torch.device) -> Tensor:
    """The pixels of images of one size, (N, 3, H, W), on a device."""
    return torch.stack([shown.pixels for shown in batch]).to(device)
