"""Filters by which maps follow the edges of their image."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_clip_surgery import LayerCLIPSurgery, ZeroShotClassifier
from captum_clip_surgery.tasks import refine_maps, segment
from captum_clip_surgery.tasks._refinement import pixel_adaptive
from tests._helpers.tiny import random_images


@pytest.fixture(scope="module")
def clip() -> ZeroShotClassifier:
    return ZeroShotClassifier.demo(["dog", "pizza"])


def around(values: Tensor, dilation: int) -> Tensor:
    """Return the 9 values (C, 9, H, W) around and at every pixel, the border repeated."""
    padded = F.pad(values[None], [dilation] * 4, mode="replicate")
    columns = F.unfold(padded, 3, dilation=dilation)
    return columns.view(values.shape[0], 9, *values.shape[1:])


def test_pixel_adaptive_refinement_restated_with_unfold() -> None:
    """The published code: convolutions with shift kernels, here columns of patches."""
    generator = torch.Generator().manual_seed(0)
    guide = torch.rand(3, 40, 56, generator=generator)
    scores = torch.rand(2, 40, 56, generator=generator)
    windows = torch.cat([around(guide, dilation) for dilation in (8, 16)], dim=1)
    deviation = windows.std(1, keepdim=True)
    others = [i for i in range(18) if i not in (4, 13)]
    distances = (windows[:, others] - guide[:, None]).abs()
    weights = (-distances / (1e-8 + 0.1 * deviation)).mean(0).softmax(0)
    expected = scores
    for _ in range(10):
        neighbors = torch.cat([around(expected, dilation) for dilation in (8, 16)], dim=1)
        expected = (neighbors[:, others] * weights).sum(1)
    ((start, found),) = pixel_adaptive(guide, [(0, scores)], (40, 56))
    assert start == 0
    assert torch.allclose(found, expected, atol=1e-6)
    # Normalized pixels have the same neighbors.
    ((_, again),) = pixel_adaptive(3 * guide - 1, [(0, scores)], (40, 56))
    assert torch.allclose(again, expected, atol=1e-4)


@pytest.mark.parametrize("refine", ["guided", "pamr"])
def test_refined_maps_are_those_that_are_segmented(clip, refine):
    images = random_images(clip, 2)[..., :64, :96]
    maps = LayerCLIPSurgery(clip, feature_surgery=None).attribute_all(images)
    refined = refine_maps(clip, maps, images, refine)
    assert refined.shape == (2, 2, 64, 96)
    assert torch.equal(refined.argmax(1), segment(clip, images, refine=refine))
    assert torch.allclose(refined[1:], refine_maps(clip, maps[1:], images[1:], refine), atol=1e-6)


def test_wrong_use(clip, monkeypatch):
    images = random_images(clip, 1)[..., :64, :64]
    maps = torch.zeros(1, 2, 4, 4)
    with pytest.raises(ValueError, match="refine must be one of 'guided', 'pamr', got 'crf'"):
        refine_maps(clip, maps, images, "crf")
    with pytest.raises(ValueError, match="'guided', 'pamr' or None, got True"):
        segment(clip, images, refine=True)
    with pytest.raises(ValueError, match=r"maps have shape \(2, 4, 4\), expected \(1, K, h, w\)"):
        refine_maps(clip, maps[0], images)
    monkeypatch.setitem(sys.modules, "kornia.filters", None)
    with pytest.raises(ImportError, match=r"pip install 'captum_clip_surgery\[refine\]'"):
        refine_maps(clip, maps, images)
