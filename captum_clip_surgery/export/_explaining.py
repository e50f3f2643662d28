"""Maps of a batch of images as an export stores them, for a loop of your own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from captum_clip_surgery.attr._dual_path import DualPathAttribution
from captum_clip_surgery.attr._engine import forward_pass
from captum_clip_surgery.models.image import PathConfig, TowerOutput
from captum_clip_surgery.tasks._recognition import image_scores

#: A tower's `paths`, or the same function compiled.
Paths = Callable[[Tensor, Sequence[PathConfig]], Sequence[TowerOutput]]


@dataclass(frozen=True)
class BatchResult:
    """Maps, best texts and embeddings of a batch of images, as arrays on the CPU.

    Attributes:
        maps: Raw, signed maps (N, K texts, h, w), float16.
        top_indices: Indices (N, T) of the best texts, best first, int32.
        top_scores: CLIP's cosines (N, T) of whole images with these texts, float32.
        embeddings: L2-normalized embeddings (N, C) of the images, float32.
    """

    maps: np.ndarray
    top_indices: np.ndarray
    top_scores: np.ndarray
    embeddings: np.ndarray

    def __len__(self) -> int:
        return len(self.maps)


@torch.inference_mode()
def explain_batch(
    surgery: DualPathAttribution, images: Tensor, top: int = 5, paths: Paths | None = None
) -> BatchResult:
    """Return maps of all texts, best texts and embeddings of images, from one forward pass.

    It reads and writes no file and keeps no state, so that it fits any loop.

    Args:
        surgery: A method such as `LayerCLIPSurgery(clip)`, whose maps on the patch grid are small;
            `CLIPSurgery(clip)` gives maps of the images' size.
        images: Preprocessed images (N, 3, H, W) on the model's device.
        top: Number of best texts per image; at most the number of texts.
        paths: A function to run in place of the image tower's `paths`, such as
            `torch.compile(clip.tower.paths)`.

    Returns:
        Maps, best texts and embeddings of the batch.

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
    config, outputs = surgery.path_config, {}
    if paths is not None:
        outputs[config] = paths(images.to(clip.tower.dtype), [config])[0]
    with forward_pass(clip, images, [config], outputs) as forward:
        maps = surgery.attribute_all(images).half()
        embeddings = forward.image_features()
        scores = image_scores(clip, embeddings, None).float()
    # Of equal scores the first text comes first, on every device.
    values, order = scores.sort(descending=True, stable=True)
    found = maps.cpu().numpy()
    if not np.isfinite(found).all():
        raise ValueError("maps hold values that float16 cannot: NaN, or beyond 65504")
    return BatchResult(
        found,
        order[:, :top].int().cpu().numpy(),
        values[:, :top].cpu().numpy(),
        embeddings.float().cpu().numpy(),
    )
