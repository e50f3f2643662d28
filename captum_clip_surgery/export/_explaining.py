"""The function of images to maps that an export is made of, for a user's own loop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from captum_clip_surgery.attr._engine import forward_pass
from captum_clip_surgery.attr.dual_path import DualPathAttribution
from captum_clip_surgery.tasks import image_scores


@dataclass(frozen=True)
class BatchResult:
    """Maps of a batch and which texts fit its images best, as arrays on the CPU.

    `maps` (N, K texts, h, w) are float16, raw and signed; `top_indices` (N, T) int32 are indices of
    texts, best first, and `top_scores` (N, T) float32 CLIP's cosines of whole images with them.
    """

    maps: np.ndarray
    top_indices: np.ndarray
    top_scores: np.ndarray

    def __len__(self) -> int:
        return len(self.maps)


@torch.inference_mode()
def explain_batch(surgery: DualPathAttribution, images: Tensor, top: int = 5) -> BatchResult:
    """Maps of all texts and the best texts of each image, from one pass of the image tower.

    It touches no file and keeps no state, so that it fits any loop.

    Args:
        surgery: such as `LayerCLIPSurgery(clip)`, whose maps on the patch grid are small;
            `CLIPSurgery(clip)` gives maps of the images' size.
        images: (N, 3, H, W), preprocessed, on the model's device.
        top: how many texts of each image; all of them where there are fewer.

    Raises:
        TypeError, ValueError: images as `attribute_all` refuses them; a top below 0; maps that
            float16 cannot hold.

    Example::

        >>> from captum_clip_surgery import LayerCLIPSurgery, ZeroShotClassifier
        >>> clip = ZeroShotClassifier.demo(["dog", "pizza", "camera"])
        >>> found = explain_batch(LayerCLIPSurgery(clip), torch.zeros(2, 3, 128, 128), top=2)
        >>> found.maps.shape, found.maps.dtype.name, found.top_indices.shape
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
