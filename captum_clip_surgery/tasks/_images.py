"""Images as every task takes them, and the sizes at which the model sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from captum_clip_surgery.attr import LayerCLIPSurgery, Method
from captum_clip_surgery.attr._coverage import covered_size
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.models._guards import ModelWatch
from captum_clip_surgery.models._validation import check_images
from captum_clip_surgery.preprocessing import ImageInput, load_image

#: One or several images (PIL images, arrays, paths), or a preprocessed batch (N, 3, H, W).
Images = ImageInput | Sequence[ImageInput] | Tensor
#: (height, width) in pixels.
Size = tuple[int, int]


@dataclass(frozen=True)
class ResizePolicy:
    """The size at which the model sees an image of a given size.

    Args:
        size: (height, width) that every image is squashed to, or, with `keep_aspect`, its shorter
            side in pixels.
        keep_aspect: Whether images keep their aspect ratio. Their sides are then rounded to whole
            pixels, not to multiples of the patch.
        longest: With `keep_aspect`, the maximum of the longer side in pixels.
        patch_size: (height, width) of a patch, which no side falls below.

    Example::

        >>> ResizePolicy(336, keep_aspect=True, longest=400).target(375, 500)
        (300, 400)
        >>> ResizePolicy((224, 224)).target(375, 500)
        (224, 224)
    """

    size: int | Size
    keep_aspect: bool = False
    longest: int | None = None
    patch_size: Size = (1, 1)

    def target(self, height: int, width: int) -> Size:
        """Return the (height, width) to which an image of this height and width is resized."""
        if not isinstance(self.size, int):
            return self.size
        scale = self.size / min(height, width)
        if self.longest is not None:
            scale = min(scale, self.longest / max(height, width))
        # Rounded as mmcv rescales. A side shorter than a patch would have no token.
        rows, columns = self.patch_size
        return max(int(height * scale + 0.5), rows), max(int(width * scale + 0.5), columns)


def batches(
    clip: ZeroShotClassifier,
    images: Images,
    size: int | Size | None = None,
    batch_size: int = 8,
    whole_patches: bool = True,
) -> Iterator[tuple[Tensor, list[Size]]]:
    """Iterate over a task's images in preprocessed batches.

    Args:
        clip: The classifier.
        images: Images of any size, or a preprocessed batch.
        size: Side or (height, width) in pixels that the model sees; None means the native
            size. A preprocessed batch has its own.
        batch_size: Number of images per batch.
        whole_patches: Whether `size` must consist of whole patches.

    Yields:
        A batch (N, 3, H, W) on the model's device, and the (height, width) of its N results: the
        size of each image, or that of the preprocessed batch.

    Raises:
        TypeError: If an image is of an unsupported type, or a batch is not a floating-point tensor.
        ValueError: If there are no images, one cannot be read, a size is given for a preprocessed
            batch, a batch does not fit the model, or `batch_size` is below 1.
        FileNotFoundError: If a path does not exist.
        RuntimeError: If the model changes between two batches.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size!r} must be at least 1")
    watch = ModelWatch(clip.model, whole=True)
    if isinstance(images, Tensor):
        if size is not None:
            raise ValueError(
                f"size {size} is for images to be resized; a preprocessed batch has its own: pass "
                "size= to clip.preprocess"
            )
        check_images(images, clip.tower, clip.device)
        height, width = images.shape[-2:]
        for part in images.split(batch_size):
            # Scores differ by little: in half precision they would be equal.
            wide = torch.promote_types(part.dtype, torch.float32)
            yield part.to(wide), [(height, width)] * len(part)
            watch.check()
        return
    sources = as_list(images)
    for start in range(0, len(sources), batch_size):
        loaded = [load_image(image) for image in sources[start : start + batch_size]]
        if whole_patches:
            batch = clip.preprocess(loaded, size)
        else:
            batch = clip.preprocessing(loaded, size).to(clip.device)
        yield batch, [height_width(image) for image in loaded]
        watch.check()


def covered_pixels(
    clip: ZeroShotClassifier, images: Tensor, grid: tuple[int, int]
) -> list[np.ndarray]:
    """Return the parts (H, W, 3) in 0..1 of images (N, 3, H, W) that a patch grid covers."""
    shown = (images.shape[-2], images.shape[-1])
    height, width = covered_size(clip, images.new_empty(grid), shown)
    pixels = clip.unnormalize(images.cpu())[..., :height, :width]
    return list(pixels.permute(0, 2, 3, 1).numpy())


def as_list(images: ImageInput | Sequence[ImageInput]) -> Sequence[ImageInput]:
    """Return one image or several as a list.

    Raises:
        ValueError: If the list is empty.
    """
    if isinstance(images, str) or not isinstance(images, Sequence):
        return [images]
    if not images:
        raise ValueError("no images")
    return images


def height_width(image: Image.Image) -> Size:
    """Return the (height, width) of an image."""
    return image.height, image.width


def choose_method(
    method: Method | None, num_blocks: int | None, feature_surgery: str | None, default: str | None
) -> Method:
    """Return `method`, or CLIP Surgery with these options if it is None.

    Args:
        method: Function that creates the method for a classifier; None means CLIP Surgery.
        num_blocks: Number of last blocks that CLIP Surgery spans.
        feature_surgery: Its variant of feature surgery.
        default: The variant if the user passed none.

    Raises:
        ValueError: If a method is given together with options of CLIP Surgery.
    """
    if method is None:
        return _surgery(num_blocks, feature_surgery)
    if num_blocks is not None or feature_surgery != default:
        raise ValueError(
            "num_blocks and feature_surgery are options of CLIP Surgery; with method= pass them to "
            "the method: functools.partial(method, num_blocks=...)"
        )
    return method


def _surgery(
    num_blocks: int | None, feature_surgery: str | None
) -> Callable[..., LayerCLIPSurgery]:
    def make(clip: ZeroShotClassifier) -> LayerCLIPSurgery:
        return LayerCLIPSurgery(clip, num_blocks=num_blocks, feature_surgery=feature_surgery)

    return make
