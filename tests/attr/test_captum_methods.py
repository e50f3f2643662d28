"""Captum's methods for inputs explain a `ZeroShotClassifier`: their values, computed by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from captum.attr import (
    FeatureAblation,
    InputXGradient,
    IntegratedGradients,
    KernelShap,
    Occlusion,
    Saliency,
)
from torch import Tensor, nn

from captum_clip_surgery import ZeroShotClassifier
from tests._helpers.method_table import (
    assert_close,
    assert_untouched,
    sized_images,
    tiny_classifier,
)
from tests._helpers.tiny import ONE_MODEL

pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require grad")

TARGETS = [2, 0]  # a text for each image


@pytest.fixture(params=ONE_MODEL)
def clip(request: pytest.FixtureRequest) -> Iterator[ZeroShotClassifier]:
    clip = tiny_classifier(request.param)
    yield clip
    assert_untouched(clip)


def chosen(logits: Tensor) -> Tensor:
    """Each image's logit for its target."""
    return logits[range(len(TARGETS)), TARGETS]


def test_integrated_gradients_is_complete(clip: ZeroShotClassifier) -> None:
    images = sized_images(clip, count=2)
    # A ResNet's many kinks make the sum converge slowly, and Gauss's rule wants none.
    kinks = any(isinstance(module, nn.ReLU) for module in clip.model.visual.modules())
    method, steps, tolerance = (
        ("riemann_trapezoid", 1000, 1e-2) if kinks else ("gausslegendre", 200, 1e-3)
    )
    attribution = IntegratedGradients(clip).attribute(
        images, target=TARGETS, n_steps=steps, method=method, internal_batch_size=50
    )
    expected = chosen(clip(images) - clip(torch.zeros_like(images))).detach()
    assert expected.abs().max() > 0.1
    assert_close(attribution.sum((1, 2, 3)), expected, tolerance)


def test_saliency_and_input_x_gradient(clip: ZeroShotClassifier) -> None:
    images = sized_images(clip, count=2)
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(chosen(clip(leaf)).sum(), leaf)
    assert_close(Saliency(clip).attribute(images, target=TARGETS), gradient.abs())
    signed = Saliency(clip).attribute(images, target=TARGETS, abs=False)
    assert_close(signed, gradient)
    assert_close(InputXGradient(clip).attribute(images, target=TARGETS), images * gradient)


def patch_numbers(clip: ZeroShotClassifier, images: Tensor) -> Tensor:
    """Which patch each pixel lies in: (1, 1, H, W)."""
    rows, columns = clip.tower.grid(*images.shape[-2:])
    numbers = torch.arange(rows * columns).reshape(1, 1, rows, columns)
    return numbers.repeat_interleave(clip.tower.patch_size[0], 2).repeat_interleave(
        clip.tower.patch_size[1], 3
    )


@torch.no_grad()
def drop_without(clip: ZeroShotClassifier, images: Tensor, places: Tensor) -> Tensor:
    """How far the logits fall when the pixels of one place after the other are set to 0."""
    drops = torch.zeros_like(images)
    for place in places.unique():
        inside = places == place
        drop = chosen(clip(images) - clip(images.masked_fill(inside, 0)))
        drops += inside * drop[:, None, None, None]
    return drops


def test_feature_ablation_over_patches(clip: ZeroShotClassifier) -> None:
    images = sized_images(clip, (2, 3), 2)
    patches = patch_numbers(clip, images)
    found = FeatureAblation(clip).attribute(
        images, target=TARGETS, feature_mask=patches, perturbations_per_eval=4
    )
    assert_close(found, drop_without(clip, images, patches), 1e-4)


def test_occlusion_of_patches(clip: ZeroShotClassifier) -> None:
    images = sized_images(clip, (2, 3), 2)
    window = (3, *clip.tower.patch_size)
    found = Occlusion(clip).attribute(
        images,
        target=TARGETS,
        sliding_window_shapes=window,
        strides=window,
        perturbations_per_eval=4,
    )
    assert_close(found, drop_without(clip, images, patch_numbers(clip, images)), 1e-4)


@torch.no_grad()
def shapley_values(clip: ZeroShotClassifier, image: Tensor, places: Tensor) -> Tensor:
    """Exact Shapley values of a few places for text 0, from all their coalitions."""
    count = int(places.max()) + 1
    kept = list(itertools.product([False, True], repeat=count))
    masks = torch.stack([torch.tensor(keep)[places[0]] for keep in kept])
    logit = dict(zip(kept, clip(image * masks)[:, 0].tolist(), strict=True))
    values = torch.zeros(count)
    for keep in kept:
        size = sum(keep)
        for place in range(count):
            if not keep[place]:
                joined = (*keep[:place], True, *keep[place + 1 :])
                weight = math.factorial(size) * math.factorial(count - size - 1)
                values[place] += weight * (logit[joined] - logit[keep])
    return values / math.factorial(count)


def test_kernel_shap(clip: ZeroShotClassifier) -> None:
    image = sized_images(clip, (2, 2), 1)
    patches = patch_numbers(clip, image)
    torch.manual_seed(0)
    found = KernelShap(clip).attribute(
        image, target=0, feature_mask=patches, n_samples=1600, perturbations_per_eval=100
    )
    expected = shapley_values(clip, image, patches)
    every_patch = found[0, 0].flatten().tolist()
    values = torch.tensor([every_patch[patches.flatten().tolist().index(i)] for i in range(4)])
    # Captum draws coalitions by chance, but always counts the full and the empty one.
    assert_close(values, expected, 0.2)
    whole = (clip(image) - clip(torch.zeros_like(image)))[0, 0].detach()
    # Beside the values, which may cancel.
    assert (values.sum() - whole).abs() < 1e-3 * expected.abs().max()
    assert torch.equal(found, values[patches].expand_as(image))
