"""Open-vocabulary segmentation: the class of every pixel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypedDict, Unpack, overload

import torch
from PIL import Image
from torch import Tensor

from captum_clip_surgery.attr import Method
from captum_clip_surgery.attr._registry import fine as averaged
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.models._guards import assert_parameters_unchanged
from captum_clip_surgery.models._validation import check_images
from captum_clip_surgery.preprocessing import ImageInput, load_image
from captum_clip_surgery.tasks._images import (
    Images,
    ResizePolicy,
    Size,
    as_list,
    batches,
    choose_method,
    height_width,
)
from captum_clip_surgery.tasks._segmenter import Segmentation, Segmenter
from captum_clip_surgery.tasks._sliding import Windows
from captum_clip_surgery.tasks._vocabulary import make_vocabulary

#: Side in pixels at which the paper segments, and the embedded model's native one.
SIDE, EMBEDDED_SIDE = 512, 224
#: Maximum number of tokens in one pass.
TOKENS_PER_PASS = 4096
#: Maximum number of tokens of one image that keeps its aspect ratio.
MAX_TOKENS = 4 * TOKENS_PER_PASS


class Options(TypedDict, total=False):
    """The options of `segment`, for type checkers."""

    size: int | None
    background: float | Sequence[str] | None
    classes: Mapping[str, Sequence[str]] | None
    merge: str
    window: int | None
    stride: int | None
    keep_aspect: bool
    longest: int | None
    refine: str | None
    scores: bool
    dtype: torch.dtype
    num_blocks: int | None
    feature_surgery: str | None
    method: Method | None
    threshold: float | None
    scale: float | None
    min_area: float | None
    fine: bool


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
    refine: str | None = None,
    scores: bool = False,
    dtype: torch.dtype = torch.float32,
    num_blocks: int | None = None,
    feature_surgery: str | None = None,
    method: Method | None = None,
    longest: int | None = None,
    threshold: float | None = None,
    scale: float | None = None,
    min_area: float | None = None,
    fine: bool = False,
) -> Tensor | list[Segmentation]:
    """Assign every pixel to the class whose text it resembles most.

    Memory stays bounded: scores are upsampled for some classes at a time.

    Args:
        clip: The classifier, whose texts are the classes. Its distractors are not classes; they
            compete in "release" feature surgery.
        images: Images (PIL images, arrays, paths), or a preprocessed batch (N, 3, H, W).
        size: Side in pixels that images are squashed to, or their shorter side with `keep_aspect`.
            None means the larger of 512 and the native size, to the nearest multiple of the
            patch; the embedded model has its own.
        background: Texts of the background, which becomes class 0; or a threshold in 0..1: a pixel
            is background if the probability of its best name is lower, in a softmax over all names.
            None assigns every pixel to a class.
        classes: Several names for a class, by its name: `{"person": ["person", "man"]}`. All names
            are texts of the classifier. None makes each text a class.
        merge: Score of a class with several names, their "max" or their "mean".
        window: Side in pixels of windows that slide over the resized image, at least a patch; None
            shows the model the whole image. The last windows end at the edge. Their scores are
            upsampled to pixels and averaged where windows overlap.
        stride: Pixels from one window to the next; None means half of the window.
        keep_aspect: Keep the aspect ratio of images when they are resized.
        refine: Filter that aligns classes with image edges: "guided", the guided filter of kornia
            (extra `refine`), applied to classes that are the best at some pixel; or "pamr",
            pixel-adaptive mask refinement with the settings of NACLIP's table. None means no
            filter.
        scores: Keep each class's scores, not refined, in the `Segmentation`. For a batch, use
            `class_scores`.
        dtype: Dtype of the upsampled scores; float16 halves their memory.
        num_blocks: Number of last blocks that surgery spans, see `LayerCLIPSurgery`.
        feature_surgery: Variant of feature surgery; None means plain cosines, as in the paper.
            "release" weights texts by how well they fit the whole image, which helps if many
            classes are given and few are present. The other variants change no pixel's best class.
        method: Function that creates another method, such as one of `METHODS`, instead of CLIP
            Surgery with `num_blocks` and `feature_surgery`.
        longest: With `keep_aspect`, the maximum of the longer side in pixels.
        threshold: With texts as `background`, also a threshold for it.
        scale: Factor of the scores in the softmax of a threshold; None means the model's logit
            scale.
        min_area: With a background, the share in 0..1 of the pixels that are not background; a
            class that covers less becomes background.
        fine: Whether to average the scores of shifted and enlarged copies of the whole image, see
            `TestTimeAugmentation`. Windows average too, but each shows only a part of the image.

    Returns:
        For images, a `Segmentation` each, of the image's own size; for a batch, labels (N, H, W),
        int64.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If images do not fit the model or cannot be read, one class is left without an
            alternative, a text or class occurs twice, a name is not a text of the classifier, a
            threshold is out of range, a window or stride does not fit, or `refine` is unknown.
        FileNotFoundError: If a path does not exist.
        ImportError: If `refine` is "guided" and kornia is not installed.

    References:
        Li, Wang, Duan, Zhang, Li: A closer look at the explainability of Contrastive
        Language-Image Pre-training. Pattern Recognition 162, 2025 (arXiv 2304.05653). Windows as in
        Hajimiri, Ben Ayed, Dolz: Pay Attention to Your Neighbours. WACV 2025.

    Example::

        >>> import numpy as np
        >>> clip = ZeroShotClassifier.demo(["duck", "kiwi"])
        >>> (result,) = segment(clip, [np.zeros((60, 80, 3), np.uint8)])
        >>> result.labels.shape, result.classes
        (torch.Size([60, 80]), ('duck', 'kiwi'))
        >>> segment(clip, torch.zeros(2, 3, 64, 96)).shape
        torch.Size([2, 64, 96])
    """
    vocabulary = make_vocabulary(clip, classes, background, merge, threshold, min_area=min_area)
    chosen = choose_method(method, num_blocks, feature_surgery, None)
    segmenter = Segmenter(
        vocabulary,
        {"": averaged(chosen) if fine else chosen},
        Windows(window, stride),
        stepwise=keep_aspect,
        scale=scale,
        refine=refine,
        keep_scores=scores,
        dtype=dtype,
    )
    if isinstance(images, Tensor) and (scores or keep_aspect):
        raise ValueError(
            "keep_aspect and scores are for images to be resized: a preprocessed batch has its own "
            "size, and class_scores gives its scores"
        )
    if longest is not None and not keep_aspect:
        raise ValueError(f"longest {longest} needs keep_aspect=True")
    results = [
        result[""]
        for batch, sizes in _resized(clip, images, size, keep_aspect, longest)
        for result in segmenter(batch, sizes)
    ]
    if isinstance(images, Tensor):
        return torch.stack([result.labels for result in results])
    return results


def class_scores(
    clip: ZeroShotClassifier,
    images: Tensor,
    classes: Mapping[str, Sequence[str]] | None = None,
    merge: str = "max",
    window: int | None = None,
    stride: int | None = None,
    num_blocks: int | None = None,
    feature_surgery: str | None = None,
    method: Method | None = None,
) -> Tensor:
    """Return every class's scores, from which `segment` takes the best class.

    Args:
        clip: The classifier.
        images: Preprocessed images (N, 3, H, W).
        classes: Several names for a class, by its name.
        merge: Score of a class with several names, their "max" or their "mean".
        window: Side in pixels of sliding windows.
        stride: Pixels from one window to the next; None means half of the window.
        num_blocks: Number of last blocks that surgery spans.
        feature_surgery: Variant of feature surgery; None means plain cosines.
        method: Function that creates another method for a classifier, instead of CLIP Surgery.

    Returns:
        Scores on the patch grid, (N, K, h, w); with windows, which are averaged on the pixels,
        (N, K, H, W).

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If the images do not fit the model, a class has no names or shares one, or a
            window or stride does not fit.
    """
    check_images(images, clip.tower, clip.device)
    vocabulary = make_vocabulary(clip, classes, None, merge, allow_single=True)
    segmenter = Segmenter(
        vocabulary,
        {"": choose_method(method, num_blocks, feature_surgery, None)},
        Windows(window, stride),
        keep_scores=True,
    )
    results = []
    with assert_parameters_unchanged(clip.model, whole=True), torch.no_grad():
        for part in images.split(_images_per_pass(clip, images.shape[-2:])):
            for scores in segmenter.scores(part):
                height, width = (scores[""].grids[0] if window is None else images).shape[-2:]
                results.append(segmenter.class_scores(scores[""], (height, width)))
    return torch.stack(results)


# --- image sizes ---------------------------------------------------------------------------------


def dense_size(clip: ZeroShotClassifier) -> Size:
    """Return the (height, width) at which images are segmented by default.

    The larger of 512 and the native size, to the nearest multiple of the patch; for the embedded
    model, the native size.

    Example::

        >>> dense_size(ZeroShotClassifier.demo(["dog"]))
        (224, 224)
    """
    if clip.vocabulary is not None:
        return EMBEDDED_SIDE, EMBEDDED_SIDE
    sides = zip(clip.native_size, clip.tower.patch_size, strict=True)
    height, width = (round(max(SIDE, native) / patch) * patch for native, patch in sides)
    return height, width


def _resized(
    clip: ZeroShotClassifier,
    images: Images,
    size: int | None,
    keep_aspect: bool,
    longest: int | None,
) -> Iterator[tuple[Tensor, list[Size]]]:
    """Iterate over batches as the model sees them, each with the sizes of its results."""
    if isinstance(images, Tensor):
        check_images(images, clip.tower, clip.device)
        yield from batches(clip, images, size, _images_per_pass(clip, images.shape[-2:]))
    elif not keep_aspect:
        sides = dense_size(clip) if size is None else (size, size)
        yield from batches(clip, images, sides, _images_per_pass(clip, sides))
    else:
        shorter = min(dense_size(clip)) if size is None else size
        policy = ResizePolicy(shorter, True, longest, clip.tower.patch_size)
        for source in as_list(images):
            image = load_image(source)
            target = policy.target(*height_width(image))
            _check_tokens(clip, image, target)
            yield from batches(clip, image, target, whole_patches=False)


def _check_tokens(clip: ZeroShotClassifier, image: Image.Image, target: Size) -> None:
    """Check that an image that keeps its aspect ratio fits in memory."""
    rows, columns = (
        side // patch for side, patch in zip(target, clip.tower.patch_size, strict=True)
    )
    if rows * columns > MAX_TOKENS:
        raise ValueError(
            f"an image of {image.height} x {image.width} pixels, kept in shape, has {rows} x "
            f"{columns} patches, more than {MAX_TOKENS}; choose a smaller size, crop it, or do not "
            "keep its aspect ratio"
        )


def _images_per_pass(clip: ZeroShotClassifier, size: Sequence[int]) -> int:
    """Return the maximum number of images of a size in one pass."""
    rows, columns = clip.tower.grid(size[0], size[1])
    return max(1, TOKENS_PER_PASS // (rows * columns))
