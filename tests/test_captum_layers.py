"""Captum's methods for layers, and users' own hooks, on the parts of a `ZeroShotClassifier`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from captum.attr import (
    GuidedBackprop,
    GuidedGradCam,
    LayerActivation,
    LayerGradCam,
    LayerGradientXActivation,
    Saliency,
)
from conftest import TOWERS, relative_error
from methods import assert_close, assert_untouched, sized_images, tiny_classifier
from torch import Tensor, nn

from captum_clip_surgery import ZeroShotClassifier

TARGETS = [2, 0]  # a text for each image


@pytest.fixture(params=TOWERS)
def clip(request: pytest.FixtureRequest) -> Iterator[ZeroShotClassifier]:
    clip = tiny_classifier(request.param)
    yield clip
    assert_untouched(clip)


@pytest.fixture
def vit() -> Iterator[ZeroShotClassifier]:
    clip = tiny_classifier("vit")
    yield clip
    assert_untouched(clip)


@pytest.fixture
def resnet() -> Iterator[ZeroShotClassifier]:
    clip = tiny_classifier("resnet")
    yield clip
    assert_untouched(clip)


def some_images(clip: ZeroShotClassifier, grid: tuple[int, int] | None = None) -> Tensor:
    return sized_images(clip, grid, len(TARGETS))


# --- the layers, and what they should give ------------------------------------------------------


@dataclass(frozen=True)
class Cut:
    """A forward pass cut in two at a layer, written with open_clip's modules alone."""

    layer: nn.Module
    before: Callable[[Tensor], Tensor]  # images to the layer's activation
    after: Callable[[Tensor], Tensor]  # on to the embedding


def positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """A positional embedding resized bilinearly, which at native size changes nothing."""
    side = math.isqrt(len(table) - 1)
    native = table[1:].T.reshape(1, -1, side, side)
    resized = F.interpolate(native, grid, mode="bilinear", align_corners=False)
    return torch.cat([table[:1], resized[0].flatten(1).T])


def vit_blocks(clip: ZeroShotClassifier, x: Tensor, first: int, end: int | None) -> Tensor:
    for block in clip.model.visual.transformer.resblocks[first:end]:
        x = block(x)
    return x


def vit_tokens(clip: ZeroShotClassifier, images: Tensor) -> Tensor:
    """What enters the first block."""
    visual = clip.model.visual
    patches = visual.conv1(images)
    table = positions(visual.positional_embedding, patches.shape[-2:])
    class_token = visual.class_embedding.expand(len(images), 1, -1)
    return visual.ln_pre(torch.cat([class_token, patches.flatten(2).mT], 1) + table)


def vit_embedding(clip: ZeroShotClassifier, x: Tensor) -> Tensor:
    return clip.model.visual.ln_post(x[:, 0]) @ clip.model.visual.proj


def cut_after_block(clip: ZeroShotClassifier, index: int) -> Cut:
    return Cut(
        clip.model.visual.transformer.resblocks[index],
        lambda images: vit_blocks(clip, vit_tokens(clip, images), 0, index + 1),
        lambda x: vit_embedding(clip, vit_blocks(clip, x, index + 1, None)),
    )


def cut_at_vit_grid(clip: ZeroShotClassifier, index: int, images: Tensor) -> Cut:
    """At the patch tokens entering a block, seen as an image; the class token goes past."""
    grid = clip.tower.grid(*images.shape[-2:])
    entering = vit_blocks(clip, vit_tokens(clip, images), 0, index)

    def after(patches: Tensor) -> Tensor:
        x = torch.cat([entering[:, :1], patches.flatten(2).mT], 1)
        return vit_embedding(clip, vit_blocks(clip, x, index, None))

    return Cut(clip.token_grid(index), lambda _: entering[:, 1:].mT.unflatten(-1, grid), after)


def resnet_features(clip: ZeroShotClassifier, images: Tensor) -> Tensor:
    visual = clip.model.visual
    return visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(images)))))


def resnet_tokens(clip: ZeroShotClassifier, features: Tensor) -> Tensor:
    patches = features.flatten(2).mT
    table = positions(clip.model.visual.attnpool.positional_embedding, features.shape[-2:])
    return torch.cat([patches.mean(1, keepdim=True), patches], 1) + table


def resnet_embedding(clip: ZeroShotClassifier, tokens: Tensor) -> Tensor:
    """Attention pooling in plain words: the mean asks, all tokens answer."""
    pool = clip.model.visual.attnpool
    q, k, v = (
        project(x).unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)
        for project, x in (
            (pool.q_proj, tokens[:, :1]),
            (pool.k_proj, tokens),
            (pool.v_proj, tokens),
        )
    )
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    return pool.c_proj((weights @ v).transpose(1, 2).flatten(2))[:, 0]


def cut_at_layer4(clip: ZeroShotClassifier) -> Cut:
    return Cut(
        clip.model.visual.layer4,
        lambda images: resnet_features(clip, images),
        lambda features: resnet_embedding(clip, resnet_tokens(clip, features)),
    )


def cut_at_resnet_grid(clip: ZeroShotClassifier, images: Tensor) -> Cut:
    """At the patch tokens entering the attention pooling; the mean token goes past."""
    grid = clip.tower.grid(*images.shape[-2:])
    entering = resnet_tokens(clip, resnet_features(clip, images))

    def after(patches: Tensor) -> Tensor:
        return resnet_embedding(clip, torch.cat([entering[:, :1], patches.flatten(2).mT], 1))

    return Cut(clip.token_grid(-1), lambda _: entering[:, 1:].mT.unflatten(-1, grid), after)


def by_hand(clip: ZeroShotClassifier, cut: Cut, images: Tensor) -> tuple[Tensor, Tensor]:
    """A layer's activation, and the gradient of the targets' logits with respect to it."""
    activation = cut.before(images).detach().requires_grad_()
    cosines = F.normalize(cut.after(activation), dim=-1) @ clip.features[: len(clip.texts)].T
    logits = clip.model.logit_scale.exp() * cosines
    assert_close(logits, clip(images))
    (gradient,) = torch.autograd.grad(logits[range(len(TARGETS)), TARGETS].sum(), activation)
    return activation.detach(), gradient


def assert_layer_methods(clip: ZeroShotClassifier, cut: Cut, images: Tensor) -> None:
    activation, gradient = by_hand(clip, cut, images)
    assert_close(LayerActivation(clip, cut.layer).attribute(images), activation)
    product = LayerGradientXActivation(clip, cut.layer).attribute(images, target=TARGETS)
    assert_close(product, activation * gradient)


def assert_grad_cam(clip: ZeroShotClassifier, cut: Cut, images: Tensor) -> None:
    """Channels weighted by the mean of their gradient over space, summed."""
    activation, gradient = by_hand(clip, cut, images)
    expected = (gradient.mean((2, 3), keepdim=True) * activation).sum(1, keepdim=True)
    assert expected.shape == (2, 1, *clip.tower.grid(*images.shape[-2:]))
    assert expected.max() > 0
    grad_cam = LayerGradCam(clip, cut.layer)
    assert_close(grad_cam.attribute(images, target=TARGETS), expected, 1e-4)
    positive = grad_cam.attribute(images, target=TARGETS, relu_attributions=True)
    assert_close(positive, expected.relu(), 1e-4)


# --- tests --------------------------------------------------------------------------------------

SIZES = pytest.mark.parametrize("grid", [None, (3, 5)], ids=["native", "wide"])


@SIZES
@pytest.mark.parametrize("index", [0, 1, 2])
def test_layer_methods_on_blocks(
    vit: ZeroShotClassifier, index: int, grid: tuple[int, int] | None
) -> None:
    assert_layer_methods(vit, cut_after_block(vit, index), some_images(vit, grid))


@SIZES
def test_layer_methods_on_layer4(resnet: ZeroShotClassifier, grid: tuple[int, int] | None) -> None:
    assert_layer_methods(resnet, cut_at_layer4(resnet), some_images(resnet, grid))


@SIZES
@pytest.mark.parametrize("index", [0, 1, -1])
def test_layer_methods_on_token_grid(
    vit: ZeroShotClassifier, index: int, grid: tuple[int, int] | None
) -> None:
    images = some_images(vit, grid)
    cut = cut_at_vit_grid(vit, index, images)
    assert_layer_methods(vit, cut, images)
    assert_grad_cam(vit, cut, images)


@SIZES
def test_grad_cam_on_layer4(resnet: ZeroShotClassifier, grid: tuple[int, int] | None) -> None:
    assert_grad_cam(resnet, cut_at_layer4(resnet), some_images(resnet, grid))


@SIZES
def test_grad_cam_on_token_grid_of_resnet(
    resnet: ZeroShotClassifier, grid: tuple[int, int] | None
) -> None:
    images = some_images(resnet, grid)
    assert_grad_cam(resnet, cut_at_resnet_grid(resnet, images), images)


def test_two_token_grids_at_once(vit: ZeroShotClassifier) -> None:
    """One asked for earlier stays in the path and changes nothing."""
    images = some_images(vit)
    first = LayerGradCam(vit, vit.token_grid(0)).attribute(images, target=TARGETS)
    assert_grad_cam(vit, cut_at_vit_grid(vit, -1, images), images)
    again = LayerGradCam(vit, vit.token_grid(0)).attribute(images, target=TARGETS)
    assert torch.equal(again, first)


@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not", "ignore:Setting backward hooks")
def test_guided_grad_cam(resnet: ZeroShotClassifier) -> None:
    images = some_images(resnet)
    cut = cut_at_layer4(resnet)
    found = GuidedGradCam(resnet, cut.layer).attribute(images, target=TARGETS)
    guided = GuidedBackprop(resnet).attribute(images, target=TARGETS)
    activation, gradient = by_hand(resnet, cut, images)
    cam = (gradient.mean((2, 3), keepdim=True) * activation).sum(1, keepdim=True).relu()
    assert_close(found, guided * F.interpolate(cam, images.shape[-2:]), 1e-4)
    assert_untouched(resnet)
    plain = Saliency(resnet).attribute(images, target=TARGETS, abs=False)
    assert relative_error(guided, plain) > 0.1


# --- users' own hooks ---------------------------------------------------------------------------


def hooked(clip: ZeroShotClassifier) -> dict[str, nn.Module]:
    visual = clip.model.visual
    if hasattr(visual, "transformer"):
        return {"resblocks[-1]": visual.transformer.resblocks[-1], "ln_post": visual.ln_post}
    return {"layer4": visual.layer4, "attnpool": visual.attnpool}


@pytest.mark.parametrize("grid", [None, (4, 4), (3, 5), (1, 2)], ids=str)
def test_hooks_fire_and_what_they_return_counts(
    clip: ZeroShotClassifier, grid: tuple[int, int] | None
) -> None:
    images = some_images(clip, grid)
    plain = clip(images)
    assert relative_error(plain[1:].detach(), plain[:1].detach()) > 0.01
    native = images.shape[-2:] == clip.native_size
    for name, module in hooked(clip).items():
        if name == "attnpool" and not native:
            continue  # it knows one grid only, so its parts are called instead
        fired = []

        def blank(module: nn.Module, inputs: object, output: Tensor, fired=fired) -> Tensor:
            fired.append(tuple(output.shape))
            return torch.zeros_like(output)

        handle = module.register_forward_hook(blank)
        blanked = clip(images)
        handle.remove()
        assert len(fired) == 1, name
        assert fired[0][0] == 2, name
        # With nothing left of the images, both give the same.
        assert torch.equal(blanked[0], blanked[1]), name
        assert torch.equal(clip(images), plain), name
