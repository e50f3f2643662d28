"""Open-vocabulary segmentation: every pixel to the class whose text it is most like.

Source: Li, Wang, Duan, Zhang, Li, "A Closer Look at the Explainability of Contrastive
Language-Image Pre-training" (arXiv 2304.05653): the best class of architecture surgery's scores at
512 pixels, without feature surgery.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import TypedDict, Unpack, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from captum_clip_surgery.attr.clip_surgery import LayerCLIPSurgery
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.models import assert_parameters_unchanged, validation
from captum_clip_surgery.preprocessing import ImageInput, load_image
from captum_clip_surgery.tasks.enlarging import (
    GUIDED_BYTES,
    best_of,
    enlarged,
    guided,
    probability_of,
)
from captum_clip_surgery.tasks.pictures import Images, as_list, batches, height_width, seen_part
from captum_clip_surgery.tasks.vocabulary import Vocabulary
from captum_clip_surgery.tasks.windows import Windows, windows_of

#: Side in pixels at which the paper segments, and the best of the embedded model.
SIDE, EMBEDDED_SIDE = 512, 224
TOKENS_AT_ONCE = 4096  # of the images in one pass
TOKENS_AT_MOST = 4 * TOKENS_AT_ONCE  # of one picture that is kept in shape


@dataclass(frozen=True)
class Segmentation:
    """One image's classes, pixel by pixel.

    `labels` (H, W) int64 index `classes`; the background, if asked for, is class 0.
    `scores` (K, H, W), if asked for, are of the classes that have texts: cosines, unless feature
    surgery was asked for.
    """

    labels: Tensor
    classes: tuple[str, ...]
    scores: Tensor | None = None

    def shares(self) -> dict[str, float]:
        """Each class's share of the pixels, in 0..1, largest first; absent classes left out.

        Example::

            >>> Segmentation(torch.tensor([[0, 1, 1, 1]]), ("dog", "sky", "sea")).shares()
            {'sky': 0.75, 'dog': 0.25}
        """
        counts = torch.bincount(self.labels.flatten(), minlength=len(self.classes))
        order = counts.argsort(descending=True, stable=True).tolist()
        total = self.labels.numel()
        return {self.classes[i]: int(counts[i]) / total for i in order if counts[i]}

    def save(self, path: str | PathLike[str]) -> None:
        """Labels as a PNG whose pixels are the labels, in the colours of PASCAL VOC.

        Beyond 256 classes, which a palette cannot hold, a 16-bit grey PNG without colours.
        """
        labels = self.labels.cpu().numpy()
        if len(self.classes) > 256:
            Image.fromarray(labels.astype(np.uint16)).save(path, format="PNG")
            return
        image = Image.fromarray(labels.astype(np.uint8))
        image.putpalette(voc_palette().flatten().tolist())
        image.save(path, format="PNG")


class Options(TypedDict, total=False):
    """The options of `segment`, for type checkers."""

    size: int | None
    background: float | Sequence[str] | None
    classes: Mapping[str, Sequence[str]] | None
    merge: str
    window: int | None
    stride: int | None
    keep_aspect: bool
    refine: bool
    scores: bool
    dtype: torch.dtype
    num_blocks: int | None
    feature_surgery: str | None


@overload
def segment(clip: ZeroShotClassifier, images: Tensor, **options: Unpack[Options]) -> Tensor: ...
@overload
def segment(
    clip: ZeroShotClassifier, images: ImageInput | Sequence[ImageInput], **options: Unpack[Options]
) -> list[Segmentation]: ...
def segment(
    clip: ZeroShotClassifier,
    images: Images,
    size: int | None = None,
    background: float | Sequence[str] | None = None,
    classes: Mapping[str, Sequence[str]] | None = None,
    merge: str = "max",
    window: int | None = None,
    stride: int | None = None,
    keep_aspect: bool = False,
    refine: bool = False,
    scores: bool = False,
    dtype: torch.dtype = torch.float32,
    num_blocks: int | None = None,
    feature_surgery: str | None = None,
) -> Tensor | list[Segmentation]:
    """The class of every pixel.

    Args:
        clip: the classifier, whose texts are the classes. Distractors are no classes; they count in
            "release" feature surgery alone.
        images: pictures (PIL images, arrays, paths), or a batch (N, 3, H, W) that was preprocessed.
        size: of pictures, the side in pixels that the model sees, the shorter one with
            `keep_aspect`. None is the larger of 512 and the native size, to the nearest multiple
            of the patch; the embedded model has its own.
        background: a threshold in 0..1: below that probability of the best class (softmax of the
            model's logits of the patch) a pixel is background; or texts that stand for it. None:
            every pixel is of a class.
        classes: several names for a class, by its name: `{"person": ["person", "man"]}`. All names
            are texts of the classifier. None: each text is a class.
        merge: the score of a class of several names, their "max" or "mean".
        window: side in pixels of windows that slide over the resized image, a multiple of the
            patch; None shows the model the whole image.
        stride: from window to window, a multiple of the patch; None is half of the window. The
            last windows stand at the edge; scores where windows overlap are averaged.
        keep_aspect: resize pictures without squashing them, to multiples of the patch.
        refine: let the classes that are best somewhere follow the image's edges, by a guided filter
            of their scores (He et al., ECCV 2010); needs kornia, the extra `refine`.
        scores: keep each class's scores, not refined, in the `Segmentation`; of a batch,
            `class_scores` has them.
        dtype: of the enlarged scores; float16 halves their memory.
        num_blocks: of surgery, see `LayerCLIPSurgery`.
        feature_surgery: None as in the paper; "release" weighs texts by how well they fit the whole
            image, which helps where many classes are asked for and few are there (docs/tasks.md).
            The other forms change no pixel's best class.

    Returns:
        For pictures a `Segmentation` each, at the picture's own size; for a batch labels (N, H, W)
        of int64. With a background it is class 0 and the others follow.

    Raises:
        TypeError, ValueError, FileNotFoundError: see `clip.preprocess`; one class and no
            background, a text or class that stands twice, a name that is no text of the
            classifier, a threshold out of 0..1, a window or stride that does not fit.
        ImportError: `refine` without kornia.

    Example::

        >>> clip = ZeroShotClassifier.demo(["duck", "kiwi"])
        >>> (found,) = segment(clip, [np.zeros((60, 80, 3), np.uint8)])
        >>> found.labels.shape, found.classes
        (torch.Size([60, 80]), ('duck', 'kiwi'))
        >>> segment(clip, torch.zeros(2, 3, 64, 96)).shape
        torch.Size([2, 64, 96])
    """
    vocabulary = Vocabulary.of(clip, classes, background, merge)
    surgery = LayerCLIPSurgery(
        vocabulary.clip, num_blocks=num_blocks, feature_surgery=feature_surgery
    )
    sliding = windows_of(clip, window, stride)
    finish = partial(_finish, vocabulary, refine=refine, keep=scores, dtype=dtype)
    if isinstance(images, Tensor) and (scores or keep_aspect):
        raise ValueError(
            "keep_aspect and scores are for pictures: a batch has its own size, and class_scores "
            "gives its scores"
        )
    found = [
        finish(*parts)
        for batch, sizes in _shown(clip, images, size, keep_aspect)
        for parts in zip(
            _class_scores(surgery, vocabulary, batch, sliding), batch, sizes, strict=True
        )
    ]
    if isinstance(images, Tensor):
        return torch.stack([one.labels for one in found])
    return found


def class_scores(
    clip: ZeroShotClassifier,
    images: Tensor,
    classes: Mapping[str, Sequence[str]] | None = None,
    merge: str = "max",
    window: int | None = None,
    stride: int | None = None,
    num_blocks: int | None = None,
    feature_surgery: str | None = None,
) -> Tensor:
    """Every class's score at every patch: what `segment` takes the best of.

    Args:
        clip: the classifier.
        images: (N, 3, H, W), preprocessed.
        classes, merge, window, stride, num_blocks, feature_surgery: as of `segment`.

    Returns:
        (N, K, h, w) on the patch grid: cosines, unless feature surgery is asked for.

    Raises:
        TypeError, ValueError: as `segment` does.
    """
    validation.check_images(images, clip.tower, clip.device)
    vocabulary = Vocabulary.of(clip, classes, None, merge, alone=True)
    surgery = LayerCLIPSurgery(clip, num_blocks=num_blocks, feature_surgery=feature_surgery)
    parts = images.split(_at_once(clip, images.shape[-2:]))
    sliding = windows_of(clip, window, stride)
    with assert_parameters_unchanged(clip.model, whole=True):
        return torch.cat([_class_scores(surgery, vocabulary, part, sliding) for part in parts])


# --- what the model sees -------------------------------------------------------------------------


def dense_size(clip: ZeroShotClassifier) -> tuple[int, int]:
    """Height and width at which pictures are segmented where nobody says.

    The larger of 512 and the native size, to the nearest multiple of the patch; for the embedded
    model what was best on its validation scenes.

    Example::

        >>> dense_size(ZeroShotClassifier.demo(["dog"]))
        (224, 224)
    """
    if clip.vocabulary is not None:
        return EMBEDDED_SIDE, EMBEDDED_SIDE
    sides = zip(clip.native_size, clip.tower.patch_size, strict=True)
    height, width = (round(max(SIDE, native) / patch) * patch for native, patch in sides)
    return height, width


def _shown(
    clip: ZeroShotClassifier, images: Images, size: int | None, keep_aspect: bool
) -> Iterator[tuple[Tensor, list[tuple[int, int]]]]:
    """Batches as the model sees them, each with the sizes of its results."""
    if isinstance(images, Tensor):
        validation.check_images(images, clip.tower, clip.device)
        yield from batches(clip, images, size, _at_once(clip, images.shape[-2:]))
    elif not keep_aspect:
        sides = dense_size(clip) if size is None else (size, size)
        yield from batches(clip, images, sides, _at_once(clip, sides))
    else:
        for picture in as_list(images):
            loaded = load_image(picture)
            yield from batches(clip, loaded, _keeping_aspect(clip, loaded, size))


def _keeping_aspect(
    clip: ZeroShotClassifier, picture: Image.Image, size: int | None
) -> tuple[int, int]:
    scale = (min(dense_size(clip)) if size is None else size) / min(picture.size)
    sides = zip(height_width(picture), clip.tower.patch_size, strict=True)
    height, width = (max(1, round(scale * side / patch)) * patch for side, patch in sides)
    rows, columns = clip.tower.grid(height, width)
    if rows * columns > TOKENS_AT_MOST:
        raise ValueError(
            f"a picture of {picture.height} x {picture.width} pixels, kept in shape, has {rows} x "
            f"{columns} patches, more than {TOKENS_AT_MOST}; take a smaller size, crop it, or let "
            "it be squashed"
        )
    return height, width


def _at_once(clip: ZeroShotClassifier, size: Sequence[int]) -> int:
    """Images of one pass, so that their tokens are not too many."""
    rows, columns = clip.tower.grid(size[0], size[1])
    return max(1, TOKENS_AT_ONCE // (rows * columns))


# --- scores --------------------------------------------------------------------------------------


def _class_scores(
    surgery: LayerCLIPSurgery, vocabulary: Vocabulary, images: Tensor, windows: Windows | None
) -> Tensor:
    """(N, K, h, w) on the patch grid of the images, averaged where windows overlap."""
    clip = surgery.forward_func
    with torch.no_grad():
        if windows is None:
            return vocabulary.merged(surgery.attribute_all(images))
        grid = clip.tower.grid(*images.shape[-2:])
        rows, columns = (min(pair) for pair in zip(windows.side, grid, strict=True))
        total = images.new_zeros(len(images), len(vocabulary.members), *grid)
        seen = images.new_zeros(grid)
        height, width = clip.tower.patch_size
        for row, column in windows.corners(grid):
            down, across = slice(row, row + rows), slice(column, column + columns)
            crop = images[
                :,
                :,
                row * height : (row + rows) * height,
                column * width : (column + columns) * width,
            ]
            total[:, :, down, across] += vocabulary.merged(surgery.attribute_all(crop))
            seen[down, across] += 1
        return total / seen


def _finish(
    vocabulary: Vocabulary,
    grid: Tensor,
    image: Tensor,
    size: tuple[int, int],
    *,
    refine: bool,
    keep: bool,
    dtype: torch.dtype,
) -> Segmentation:
    """The best class of scores (K, h, w) at a size, some classes at a time."""
    scale = float(vocabulary.clip.model.logit_scale.detach().exp())
    grid = grid.to(dtype)
    seen = seen_part(vocabulary.clip, image.shape[-2:], size)
    labels, best = best_of(enlarged(grid, size, seen), size, grid)
    if refine:
        # A filter of every class would cost much; one that is nowhere the best gains no pixel.
        candidates = grid.argmax(0).unique()
        colours = vocabulary.clip.unnormalize(image.detach())
        parts = guided(colours, enlarged(grid[candidates], size, seen, GUIDED_BYTES), size)
        places, best = best_of(parts, size, grid)
        labels = candidates[places]
    if vocabulary.threshold is not None:
        probability = probability_of(best, enlarged(grid, size, seen), scale)
        labels = torch.where(probability < vocabulary.threshold, 0, labels + 1)
    kept = None
    if keep:
        kept = torch.empty(len(grid), *size, dtype=dtype, device=grid.device)
        for start, part in enlarged(grid, size, seen):
            kept[start : start + len(part)] = part
    return Segmentation(labels, vocabulary.classes, kept)


def voc_palette() -> np.ndarray:
    """PASCAL VOC's colours of labels: (256, 3) uint8.

    The bits of a label are dealt to red, green and blue in turn, each from its highest bit down, as
    the data set's development kit does.

    Example::

        >>> voc_palette()[[0, 1, 15, 255]].tolist()
        [[0, 0, 0], [128, 0, 0], [192, 128, 128], [224, 224, 192]]
    """
    labels = np.arange(256)
    colours = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((labels >> (3 * bit + channel) & 1) << (7 - bit)).astype(
                np.uint8
            )
    return colours
