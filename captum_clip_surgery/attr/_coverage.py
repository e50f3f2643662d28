"""The pixels of an image that a map covers.

A tower whose patches do not divide its native size never sees the last pixels: the 27 x 27 patches
of ViT-SO400M-14-SigLIP-384 cover 378 of 384. A map stretched over the whole image would be off.
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor

from captum_clip_surgery.classifier import ZeroShotClassifier

Size = tuple[int, int]
#: Number of pixels of maps that are padded together.
CHUNK_PIXELS = 2**20


def covered_size(clip: ZeroShotClassifier, maps: Tensor, shown: Size) -> Size:
    """Return the (height, width) in pixels that maps cover of the image that the model sees.

    Args:
        clip: The classifier.
        maps: Maps (..., h, w), on the patch grid or of another size, which cover all.
        shown: (height, width) of the image that the model sees.
    """
    grid = clip.tower.grid(*shown)
    if maps.shape[-2:] != grid:
        return shown
    (rows, columns), (height, width) = grid, clip.tower.patch_size
    return rows * height, columns * width


def upsample_to_image(clip: ZeroShotClassifier, maps: Tensor, shown: Size) -> Tensor:
    """Upsample maps (N, K, h, w) bilinearly to the image (N, K, *shown) that the model sees."""
    return fill_image(maps, covered_size(clip, maps, shown), shown)


def fill_image(maps: Tensor, covered: Size, shown: Size) -> Tensor:
    """Upsample maps (N, K, h, w) bilinearly to the part `covered` of an image (N, K, *shown).

    Where no patch is, the edge of the map continues: zeros could be its maximum.
    """
    margin = (0, shown[1] - covered[1], 0, shown[0] - covered[0])
    upsample = partial(F.interpolate, size=covered, mode="bilinear", align_corners=False)
    if not any(margin):
        return upsample(maps)
    filled = maps.new_empty(*maps.shape[:2], *shown)
    step = max(1, CHUNK_PIXELS // (len(maps) * shown[0] * shown[1]))
    for start in range(0, maps.shape[1], step):  # padding copies: all at once would double memory
        texts = slice(start, start + step)
        filled[:, texts] = F.pad(upsample(maps[:, texts]), margin, mode="replicate")
    return filled


def cover_image(clip: ZeroShotClassifier, maps: Tensor, images: Tensor) -> Tensor:
    """Return maps (N, K, h, w) that cover all of images (N, 3, H, W).

    Maps are unchanged, unless the last pixels of the images are in no patch.
    """
    shown = (images.shape[-2], images.shape[-1])
    return cover(maps, covered_size(clip, maps, shown), shown)


def cover(maps: Tensor, covered: Size, shown: Size) -> Tensor:
    """Return maps (N, K, h, w) of the part `covered` of images so that they cover all of `shown`.

    Maps that do so already are unchanged.
    """
    return maps if covered == shown else fill_image(maps, covered, shown)
