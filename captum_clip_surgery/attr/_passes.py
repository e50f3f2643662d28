"""Batch sizes of methods that run many passes."""

from __future__ import annotations

from torch import Tensor

from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.models.image._resnet import ModifiedResNetTower

#: Tokens in one pass of a method that runs many: bounds memory for ViT-B/16 at 512 pixels.
TOKENS_PER_PASS = 4096
#: A ResNet's feature maps weigh more than tokens: RN50x64 at 448 pixels runs one image per pass.
RESNET_WEIGHT = 4


def _num_tokens(clip: ZeroShotClassifier, images: Tensor) -> int:
    """Return the tokens of one image; a ResNet's pixels count as patches of 16 x 16."""
    height, width = images.shape[-2:]
    if isinstance(clip.tower, ModifiedResNetTower):
        return RESNET_WEIGHT * height * width // 256
    rows, columns = clip.tower.grid(height, width)
    return rows * columns


def images_per_pass(clip: ZeroShotClassifier, images: Tensor) -> int:
    """Return the maximum number of images in one pass of a Captum method, given their size."""
    return max(1, TOKENS_PER_PASS // _num_tokens(clip, images))
