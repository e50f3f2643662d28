"""Pictures or ready batches, as every task takes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor

from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.models import ModelWatch, validation
from captum_clip_surgery.preprocessing import ImageInput, load_image

#: A picture or several (PIL images, arrays, paths), or a batch (N, 3, H, W) that was preprocessed.
Images = ImageInput | Sequence[ImageInput] | Tensor


def batches(
    clip: ZeroShotClassifier,
    images: Images,
    size: int | tuple[int, int] | None = None,
    batch_size: int = 8,
) -> Iterator[tuple[Tensor, list[tuple[int, int]]]]:
    """Batches of a task's images, each with the (height, width) its results are to have.

    Args:
        clip: the classifier.
        images: see `Images`. Of pictures each result has the picture's own size.
        size: of pictures, what the model sees; None is native.
        batch_size: pictures or rows in one batch.

    Yields:
        (N, 3, H, W) on the model's device, and N sizes.

    Raises:
        TypeError, ValueError, FileNotFoundError: see `validation.check_images`, `load_image` and
            `clip.preprocess`; a size for a ready batch, a batch size below 1.
        RuntimeError: the model was changed since the last batch.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size!r} must be at least 1")
    watch = ModelWatch(clip.model, whole=True)
    if isinstance(images, Tensor):
        if size is not None:
            raise ValueError(f"size {size} is of pictures; a batch has its own: preprocess it so")
        validation.check_images(images, clip.tower, clip.device)
        height, width = images.shape[-2:]
        for part in images.split(batch_size):
            # Scores differ by little: in half precision they would be equal.
            wide = torch.promote_types(part.dtype, torch.float32)
            yield part.to(wide), [(height, width)] * len(part)
            watch.check()
        return
    pictures = as_list(images)
    for start in range(0, len(pictures), batch_size):
        loaded = [load_image(picture) for picture in pictures[start : start + batch_size]]
        yield clip.preprocess(loaded, size), [height_width(picture) for picture in loaded]
        watch.check()


def as_list(images: ImageInput | Sequence[ImageInput]) -> Sequence[ImageInput]:
    """One picture or several as a list.

    Raises:
        ValueError: an empty list.
    """
    if isinstance(images, str) or not isinstance(images, Sequence):
        return [images]
    if not images:
        raise ValueError("no images")
    return images


def height_width(picture: Image.Image) -> tuple[int, int]:
    return picture.height, picture.width


def seen_part(
    clip: ZeroShotClassifier, shown: Sequence[int], size: tuple[int, int]
) -> tuple[float, float]:
    """Pixels (height, width) of an image of `size` that the patches cover.

    All of them, but for towers whose patches do not divide their images.

    Args:
        clip: the classifier.
        shown: height and width that the model sees.
        size: of the image.
    """
    rows, columns = clip.tower.grid(shown[0], shown[1])
    height, width = clip.tower.patch_size
    return size[0] * (rows * height) / shown[0], size[1] * (columns * width) / shown[1]
