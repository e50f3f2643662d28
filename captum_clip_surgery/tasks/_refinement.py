"""Maps and class scores that follow the edges of their image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_clip_surgery.attr._base import check_classifier
from captum_clip_surgery.attr._coverage import upsample_to_image
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.models._validation import check_images
from captum_clip_surgery.tasks._images import Size
from captum_clip_surgery.tasks._upsample import Chunk, resize

#: Bytes of scores that are filtered at once: a filter holds many times the size of its input.
REFINED_BYTES = 8 << 20
#: The guided filter's window as a fraction of the image's shorter side, and its regularization.
GUIDED_FRACTION, GUIDED_EPSILON = 16, 1e-4
#: Its coefficients are computed on every second pixel (He and Sun, 2015).
GUIDED_STEP = 2
#: Iterations and dilations of pixel-adaptive mask refinement in NACLIP's published table.
PAMR_STEPS, PAMR_DILATIONS = 10, (8, 16)
#: The difference of pixels that counts, in standard deviations.
PAMR_WIDTH = 0.1
#: Avoids division by zero where all neighbors are equal.
PAMR_EPSILON = 1e-8


def refine_maps(
    clip: ZeroShotClassifier, maps: Tensor, images: Tensor, refine: str = "guided"
) -> Tensor:
    """Upsample maps to the size of their images and align them with the images' edges.

    Args:
        clip: The classifier that made the maps.
        maps: Maps (N, K, h, w) of any method, on the patch grid or finer.
        images: The preprocessed images (N, 3, H, W).
        refine: "guided", the guided filter of kornia (extra `refine`), or "pamr", pixel-adaptive
            mask refinement.

    Returns:
        Maps (N, K, H, W), raw and signed.

    Raises:
        TypeError: If `images` is not a floating-point tensor.
        ValueError: If the images do not fit the model, the maps do not fit the images, or `refine`
            is unknown.
        ImportError: If `refine` is "guided" and kornia is not installed.

    Example::

        >>> from captum_clip_surgery import LayerCLIPSurgery
        >>> clip = ZeroShotClassifier.demo(["dog", "pizza"])
        >>> images = torch.zeros(1, 3, 64, 96)
        >>> refine_maps(clip, LayerCLIPSurgery(clip).attribute_all(images), images, "pamr").shape
        torch.Size([1, 2, 64, 96])
    """
    if refine not in FILTERS:
        raise ValueError(f"refine must be one of {', '.join(map(repr, FILTERS))}, got {refine!r}")
    check_images(images, check_classifier(clip).tower, clip.device)
    if maps.ndim != 4 or len(maps) != len(images):
        raise ValueError(
            f"maps have shape {tuple(maps.shape)}, expected ({len(images)}, K, h, w) for "
            f"{len(images)} images"
        )
    size = (images.shape[-2], images.shape[-1])
    enlarged = upsample_to_image(clip, maps, size)
    step = max(1, REFINED_BYTES // (4 * size[0] * size[1]))
    refined = []
    for image, scores in zip(images, enlarged, strict=True):
        chunks = ((start, scores[start : start + step]) for start in range(0, len(scores), step))
        parts = FILTERS[refine](clip.unnormalize(image), chunks, size)
        refined.append(torch.cat([part for _, part in parts]))
    return torch.stack(refined)


def guided_filter(guide: Tensor, chunks: Iterable[Chunk], size: Size) -> Iterator[Chunk]:
    """Filter scores by the guided filter.

    Args:
        guide: The image (3, h, w) in 0..1, of any size.
        chunks: The scores.
        size: (height, width) of the scores.

    Yields:
        Filtered chunks; unchanged if the image is too small to have edges.

    Raises:
        ImportError: If kornia is not installed.

    References:
        He, Sun, Tang: Guided Image Filtering. ECCV 2010, as implemented in kornia.
    """
    try:
        from kornia.filters import guided_blur
    except ImportError as error:
        raise ImportError(
            "the guided filter needs kornia; install the extra: pip install "
            "'captum_clip_surgery[refine]'"
        ) from error
    window = 2 * (min(size) // GUIDED_FRACTION // 2) + 1
    guide = resize(guide.float(), size)[None]
    for start, scores in chunks:
        if window < 3:
            yield start, scores
            continue
        filtered = guided_blur(
            guide, scores[None].float(), window, GUIDED_EPSILON, subsample=GUIDED_STEP
        )
        yield start, filtered[0].to(scores.dtype)


def pixel_adaptive(guide: Tensor, chunks: Iterable[Chunk], size: Size) -> Iterator[Chunk]:
    """Filter scores by pixel-adaptive mask refinement (PAMR).

    In each of 10 steps a pixel gets the mean of its 8 neighbors at distances of 8 and 16 pixels,
    weighted by how much their colors resemble its own.

    Args:
        guide: The image (3, h, w), of any size; its scale does not matter.
        chunks: The scores.
        size: (height, width) of the scores.

    Yields:
        Filtered chunks.

    References:
        Araslanov, Roth: Single-Stage Semantic Segmentation from Image Labels. CVPR 2020, Sec. 3.3,
        with the steps and dilations of Hajimiri, Ben Ayed, Dolz: Pay Attention to Your Neighbours.
        WACV 2025.
    """
    weights = _affinity(resize(guide.float(), size))
    for start, scores in chunks:
        refined = scores.float()
        for _ in range(PAMR_STEPS):
            neighbors = zip(weights, _neighbors(refined), strict=True)
            refined = sum(
                (weight * shifted for weight, shifted in neighbors), refined.new_zeros(())
            )
        yield start, refined.to(scores.dtype)


def _affinity(guide: Tensor) -> Tensor:
    """Return how much each neighbor of a pixel resembles it, (16, H, W), which sums to 1."""
    neighbors = torch.stack(list(_neighbors(guide)))  # (16, 3, H, W)
    # The published code counts the pixel itself once per dilation.
    around = torch.cat([neighbors, guide.expand(len(PAMR_DILATIONS), -1, -1, -1)])
    deviation = around.std(0)  # (3, H, W)
    distances = (neighbors - guide).abs() / (PAMR_EPSILON + PAMR_WIDTH * deviation)
    return (-distances.mean(1)).softmax(0)


def _neighbors(values: Tensor) -> Iterator[Tensor]:
    """Yield values (C, H, W) shifted to each neighbor's place; the border is repeated."""
    height, width = values.shape[-2:]
    for dilation in PAMR_DILATIONS:
        padded = F.pad(values[None], [dilation] * 4, mode="replicate")[0]
        for row, column in product(range(0, 3 * dilation, dilation), repeat=2):
            if (row, column) != (dilation, dilation):
                yield padded[:, row : row + height, column : column + width]


#: Filters by name.
FILTERS: Mapping[str, Callable[[Tensor, Iterable[Chunk], Size], Iterator[Chunk]]] = {
    "guided": guided_filter,
    "pamr": pixel_adaptive,
}


def check_refinement(refine: str | None) -> None:
    """Check the name of a filter.

    Raises:
        ValueError: If it is neither None nor in `FILTERS`.
    """
    if refine is not None and refine not in FILTERS:
        raise ValueError(
            f"refine must be one of {', '.join(map(repr, FILTERS))} or None, got {refine!r}"
        )
