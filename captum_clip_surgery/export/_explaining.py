"""Maps of a batch of images as an export stores them, for a loop of your own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from captum_clip_surgery.attr._engine import forward_pass
from captum_clip_surgery.attr.dual_path import DualPathAttribution
from captum_clip_surgery.tasks.recognition import image_scores


@dataclass(frozen=True)
class BatchResult:
    """Maps of a batch and the best texts of its images, as arrays on the CPU.

    Attributes:
        maps: Raw, signed maps (N, K texts, h, w), float16.
        top_indices: Indices (N, T) of the best texts, best first, int32.
        top_scores: CLIP's cosines (N, T) of whole images with these texts, float32.
    """

    maps: np.ndarray
    top_indices: np.ndarray
    top_scores: np.ndarray

    def __len__(self) -> int:
        return len(self.maps)


@torch.inference_mode()
def explain_batch(surgery: DualPathAttribution, images: Tensor, top: int = 5) -> BatchResult:
    """Return the maps of all texts and the best texts of each image, from one forward pass.

    It reads and writes no file and keeps no state, so that it fits any loop.

    Args:
        surgery: A method such as `LayerCLIPSurgery(clip)`, whose maps on the patch grid are small;
            `CLIPSurgery(clip)` gives maps of the images' size.
        images: Preprocessed images (N, 3, H, W) on the model's device.
        top: Number of best texts per image; at most the number of texts.

    Returns:
        Maps and best texts of the batch.

    Raises:
        TypeError: If `images` is not a dense floating-point tensor.
        ValueError: If the images do not fit the model, `top` is negative, or a map holds NaN or
            values beyond the range of float16.

    Example::

        >>> from captum_clip_surgery import LayerCLIPSurgery, ZeroShotClassifier
        >>> clip = ZeroShotClassifier.demo(["dog", "pizza", "camera"])
        >>> batch = explain_batch(LayerCLIPSurgery(clip), torch.zeros(2, 3, 128, 128), top=2)
        >>> batch.maps.shape, batch.maps.dtype.name, batch.top_indices.shape
        ((2, 3, 8, 8), 'float16', (2, 2))
    """
    if top < 0:
        raise ValueError(f"top {top!r} must be at least 0")
    clip = surgery.forward_func
    with forward_pass(clip, images, [surgery.path_config]) as forward:
        maps = surgery.attribute_all(images).half()
        scores = image_scores(clip, forward.image_features(), None).float()
    # Of equal scores the first text comes first, on every device.
    values, order = scores.sort(descending=True, stable=True)
    found = maps.cpu().numpy()
    if not np.isfinite(found).all():
        raise ValueError("maps hold values that float16 cannot: NaN, or beyond 65504")
    return BatchResult(
        found,
        order[:, :top].int().cpu().numpy(),
        values[:, :top].cpu().numpy(),
    )
