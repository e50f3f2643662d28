"""Test-time augmentation: geometry of the copies, and what all copies share."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam, NoiseTunnel, Saliency
from scipy.ndimage import map_coordinates
from torch import Tensor

from captum_clip_surgery import (
    METHODS,
    CLIPSurgery,
    LayerCLIPSurgery,
    LayerDirectEffect,
    LayerLeGrad,
    LayerMaskCLIP,
    TestTimeAugmentation,
    ZeroShotClassifier,
)
from captum_clip_surgery._utils.profiling import count_passes
from captum_clip_surgery.attr import LayerShapeMixin
from tests._helpers.tiny import random_images, relative_error, with_preprocessing
from tests._helpers.tower_kinds import Tiny, _shrunk, _timm

TEXTS = ("dog", "pizza", "camera")


class Brightness(LayerShapeMixin):
    """The mean of each patch's pixels: its map of a picture shows where every cell lies."""

    def scores(self, images: Tensor, targets: Tensor) -> Tensor:
        cells = F.avg_pool2d(images, self.forward_func.tower.patch_size).mean(1, keepdim=True)
        return cells.expand(-1, targets.shape[-1], -1, -1)


@pytest.fixture(scope="module")
def clip() -> ZeroShotClassifier:
    return ZeroShotClassifier.demo(list(TEXTS))


def test_the_layer_of_a_method_is_the_last_block_unless_chosen(clip):
    blocks = clip.tower.blocks
    assert Brightness(clip).layer is blocks[-1]
    assert Brightness(clip, blocks[2]).layer is blocks[2]


def planes(height: int, width: int) -> Tensor:
    """Return two pictures (2, 3, height, width) whose pixels are linear in their position."""
    down = (torch.arange(height) + 0.5) / height
    across = (torch.arange(width) + 0.5) / width
    plane = 2 * down[:, None] + 3 * across
    return torch.stack([plane, 5 - plane]).unsqueeze(1).expand(-1, 3, -1, -1).contiguous()


@pytest.mark.parametrize(
    "options",
    [
        {"scales": (1,), "shifts": 2},
        {"scales": (1,), "shifts": 3, "flip": True},
        {"scales": (1, 1.5), "shifts": 1, "flip": True},
        {"scales": (0.5, 2), "shifts": 2, "flip": True},
    ],
)
def test_every_copy_is_brought_back_to_where_it_came_from(clip, options):
    """On a plane, bilinear resampling is exact; borders apart, so is every copy."""
    images = planes(160, 192)
    maps = TestTimeAugmentation(Brightness(clip), **options).attribute_all(images, [0])
    expected = planes(*maps.shape[-2:])[:, :1]
    margin = maps.shape[-1] // 12 + 1
    inner = slice(2 * margin, -2 * margin)
    assert torch.allclose(maps[..., inner, inner], expected[..., inner, inner], atol=2e-5)


def test_towers_that_leave_out_pixels():
    """The patches cover 32 of 36 pixels at the native size, and all at others."""
    vision = _timm(_shrunk("vit_so400m_patch14_siglip_384", img_size=36), "map", "none")
    model = Tiny("ViT-SO400M-14-SigLIP-384", vision | {"image_size": 36}, embed_dim=32).build()
    clip = ZeroShotClassifier(with_preprocessing(model.eval()), ["a dog"], templates=())
    images = planes(36, 36)
    same = TestTimeAugmentation(Brightness(clip), scales=(1,), shifts=1)
    assert torch.equal(same.attribute_all(images), Brightness(clip).attribute_all(images))
    maps = TestTimeAugmentation(Brightness(clip), scales=(1, 2), shifts=1).attribute_all(images)
    expected = planes(*maps.shape[-2:])[:, :1]
    assert torch.allclose(maps[..., 2:-3, 2:-3], expected[..., 2:-3, 2:-3], atol=1e-2)


def test_mean_of_copies_restated_with_scipy(clip):
    images = random_images(clip, 1)[..., :80, :96]
    method = LayerMaskCLIP(clip)
    maps = TestTimeAugmentation(method, scales=(1, 2), shifts=2, flip=True).attribute_all(images)
    assert maps.shape[-2:] == (20, 24)
    total = np.zeros(maps.shape[1:])
    for scale, down, right, flip in product((1, 2), (0, 8), (0, 8), (False, True)):
        size = (80 * scale, 96 * scale)
        copy = images
        if scale > 1:
            copy = F.interpolate(images, size, mode="bicubic", antialias=True)
        pixels = np.pad(copy.numpy(), [(0, 0), (0, 0), (0, down), (0, right)], "reflect")
        pixels = pixels[..., down:, right:]
        copy = torch.from_numpy(np.ascontiguousarray(pixels[..., ::-1] if flip else pixels))
        cells = method.attribute_all(copy)[0].numpy()
        cells = cells[..., ::-1] if flip else cells
        # Pixel centers of the result, in pixels of the copy and then in its cells of 16 pixels.
        rows = ((np.arange(20) + 0.5) / 20 * size[0] - down) / 16 - 0.5
        columns = ((np.arange(24) + 0.5) / 24 * size[1] - right) / 16 - 0.5
        points = np.meshgrid(rows, columns, indexing="ij")
        total += [map_coordinates(each, points, order=1, mode="nearest") for each in cells]
    assert np.allclose(maps[0].numpy(), total / 16, atol=1e-6)


def test_one_copy_is_the_method_itself(clip):
    images = random_images(clip)
    once: dict[str, Any] = {"scales": (1,), "shifts": 1}
    for method in (LayerCLIPSurgery(clip), CLIPSurgery(clip), LayerLeGrad(clip)):
        maps = TestTimeAugmentation(method, **once).attribute_all(images)
        assert torch.equal(maps, method.attribute_all(images))


@pytest.mark.parametrize("layer", [False, True])
def test_flips_turn_with_the_image(clip, layer):
    images = random_images(clip, 1)
    method = (LayerCLIPSurgery if layer else CLIPSurgery)(clip)
    both = TestTimeAugmentation(method, scales=(1, 1.5), shifts=1, flip=True)
    maps = both.attribute(images, target=1)
    assert relative_error(both.attribute(images.flip(-1), target=1).flip(-1), maps) < 1e-5


def test_batches_targets_and_chunks(clip):
    images = random_images(clip, 3)[..., :64, :80]
    fine = TestTimeAugmentation(LayerCLIPSurgery(clip), scales=(1, 2), shifts=2)
    maps = fine.attribute_all(images)
    assert maps.shape == (3, 3, 16, 20)
    one_by_one = [fine.attribute_all(image) for image in images.split(1)]
    assert relative_error(maps, torch.cat(one_by_one)) < 1e-5
    small = TestTimeAugmentation(
        LayerCLIPSurgery(clip), scales=(1, 2), shifts=2, internal_batch_size=2
    )
    assert relative_error(small.attribute_all(images), maps) < 1e-5
    chosen = fine.attribute(images, target=[2, 0, -2])
    assert relative_error(chosen[:, 0], maps[range(3), [2, 0, 1]]) < 1e-5
    assert relative_error(fine.attribute_all(images, [1])[:, 0], maps[:, 1]) < 1e-5


def test_feature_surgery_weights_texts_by_the_image_itself(clip, monkeypatch):
    """Copies of other sizes have other embeddings, which would weight texts otherwise."""
    images = random_images(clip, 1)[..., :64, :64]
    method = LayerCLIPSurgery(clip, feature_surgery="release")
    seen = []
    score = LayerCLIPSurgery.scores_from_output

    def record(self, output, targets=None):
        seen.append(output.pooled)
        return score(self, output, targets)

    monkeypatch.setattr(LayerCLIPSurgery, "scores_from_output", record)
    with count_passes() as passes:
        method.attribute_all(images)
    assert passes.forward == 1
    (own,) = seen.pop()
    for scales in ((2.0,), (2.0, 1.0)):
        seen.clear()
        TestTimeAugmentation(method, scales, shifts=2).attribute_all(images)
        rows = torch.cat(seen)
        assert len(rows) == 4 * len(scales)
        assert relative_error(rows, own.expand_as(rows)) < 1e-5
    # Methods that do not weight texts need no pass for the image's own embedding.
    for plain in (LayerMaskCLIP(clip), LayerCLIPSurgery(clip, feature_surgery="empty")):
        with count_passes() as passes:
            TestTimeAugmentation(plain, (2.0,), shifts=2).attribute_all(images)
        assert passes.forward == 4


def test_captums_own_methods_and_tools(clip):
    images = random_images(clip, 2)[..., :64, :64]
    shifted: dict[str, Any] = {"scales": (1, 2), "shifts": 2}
    saliency = TestTimeAugmentation(Saliency(clip), **shifted)
    assert saliency.attribute(images, target=[0, 1], abs=False).shape == images.shape
    grad_cam = TestTimeAugmentation(LayerGradCam(clip, clip.token_grid(-1)), **shifted)
    assert grad_cam.attribute(images, target=1).shape == (2, 1, 16, 16)
    listed = TestTimeAugmentation(METHODS["Saliency"](clip), **shifted)
    assert listed.attribute_all(images, [0, 1]).shape == (2, 2, 64, 64)
    fine = TestTimeAugmentation(CLIPSurgery(clip), **shifted)
    (single,) = fine.attribute((images,), target=1)
    smooth = NoiseTunnel(fine).attribute(images, target=1, nt_samples=1, stdevs=0.0)
    assert relative_error(smooth, single) < 1e-5


def test_half_precision(clip):
    images = random_images(clip, 1)[..., :64, :80]
    expected = TestTimeAugmentation(LayerMaskCLIP(clip), (1.5,)).attribute_all(images)
    half = ZeroShotClassifier.demo(list(TEXTS))
    half.model.bfloat16()
    maps = TestTimeAugmentation(LayerMaskCLIP(half), (1.5,)).attribute_all(images.bfloat16())
    assert maps.dtype == torch.bfloat16
    assert relative_error(maps.float(), expected) < 0.1


def test_gradients_pass(clip):
    images = random_images(clip, 1)[..., :64, :64].requires_grad_()
    fine = TestTimeAugmentation(LayerCLIPSurgery(clip), scales=(1, 1.5), shifts=1)
    maps = fine.attribute(images, target=0)
    (gradient,) = torch.autograd.grad(maps.sum(), images)
    step = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ahead = fine.attribute(images + 1e-2 * step, target=0).sum()
        back = fine.attribute(images - 1e-2 * step, target=0).sum()
    expected = float((ahead - back) / 2e-2)
    assert float((gradient * step).sum()) == pytest.approx(expected, rel=1e-2)


def test_what_a_subclass_overrides_is_averaged(clip):
    class Negated(LayerCLIPSurgery):
        def attribute_all(self, *args: Any, **options: Any) -> Tensor:
            return -super().attribute_all(*args, **options)

    images = random_images(clip, 1)[..., :64, :64]
    fine = TestTimeAugmentation(LayerCLIPSurgery(clip), (1,)).attribute_all(images)
    assert torch.equal(TestTimeAugmentation(Negated(clip), (1,)).attribute_all(images), -fine)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": ()}, r"scales must be positive, finite numbers, got \(\)"),
        ({"scales": (0,)}, "scales must be positive"),
        ({"scales": (float("nan"),)}, "scales must be positive"),
        ({"shifts": 0}, "shifts must be at least 1, got 0"),
        ({"internal_batch_size": 0}, "internal_batch_size must be at least 1, got 0"),
    ],
)
def test_wrong_options(clip, options, message):
    with pytest.raises(ValueError, match=message):
        TestTimeAugmentation(LayerCLIPSurgery(clip), **options)


def test_wrong_use(clip):
    with pytest.raises(TypeError, match=r"must be an attribution .* got LayerCLIPSurgery"):
        TestTimeAugmentation(LayerCLIPSurgery)
    with pytest.raises(TypeError, match="got function"):
        TestTimeAugmentation(lambda images: images)
    images = random_images(clip, 1)
    saliency = TestTimeAugmentation(Saliency(clip))
    with pytest.raises(TypeError, match="Saliency has no attribute_all"):
        saliency.attribute_all(images)
    with pytest.raises(TypeError, match="baselines must not be a tensor"):
        saliency.attribute(images, target=0, baselines=images)
    with pytest.raises(TypeError, match="return_convergence_delta is not supported"):
        TestTimeAugmentation(LayerDirectEffect(clip)).attribute(
            images, target=0, return_convergence_delta=True
        )
    with pytest.raises(TypeError, match="scales must be a list of numbers, got 2"):
        TestTimeAugmentation(Saliency(clip), scales=2)
    with pytest.raises(TypeError, match=r"shifts must be an int, got 1\.5"):
        TestTimeAugmentation(Saliency(clip), shifts=1.5)
    with pytest.raises(ValueError, match="target is None"):
        saliency.attribute(images)
    with pytest.raises(ValueError, match="do not divide into patches"):
        saliency.attribute(images[..., :60], target=0)
