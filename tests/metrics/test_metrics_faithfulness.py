"""Insertion and deletion against loops over pixels, and where the answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter
from torch import Tensor

from captum_clip_surgery import LayerCLIPSurgery, ZeroShotClassifier
from captum_clip_surgery.demo import Scenes, nouns
from captum_clip_surgery.metrics import insertion_deletion
from captum_clip_surgery.metrics._faithfulness import BASELINES
from tests._helpers.cases import each
from tests._helpers.tiny import random_images, tiny_model

TEXTS = ["a dog", "a cat", "a tree"]


@pytest.fixture(scope="module")
def tiny() -> ZeroShotClassifier:
    return ZeroShotClassifier(tiny_model("vit"), TEXTS, templates=["a photo of {}."])


def random_maps(count: int = 2, side: int = 4) -> Tensor:
    return torch.randn(count, side, side, generator=torch.Generator().manual_seed(1))


def area(clip: ZeroShotClassifier, pictures: list[Tensor], target: int) -> float:
    with torch.no_grad():
        curve = [clip(picture[None]).double().softmax(-1)[0, target].item() for picture in pictures]
    return float(np.trapezoid(curve, dx=1 / (len(curve) - 1)))


def naive(
    clip: ZeroShotClassifier,
    image: Tensor,
    attribution: Tensor,
    target: int,
    under: Tensor,
    steps: int,
) -> tuple[float, float]:
    """One pixel after another, each picture by itself."""
    size = (image.shape[-2], image.shape[-1])
    large = F.interpolate(attribution[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    places = [(row, column) for row in range(size[0]) for column in range(size[1])]
    places.sort(key=lambda place: -large[place].item())  # Python's sort is stable
    inserted, deleted = under.clone(), image.clone()
    insertion, deletion = [inserted.clone()], [deleted.clone()]
    for index, (row, column) in enumerate(places, 1):
        inserted[:, row, column] = image[:, row, column]
        deleted[:, row, column] = under[:, row, column]
        if index % (len(places) // steps) == 0:
            insertion.append(inserted.clone())
            deletion.append(deleted.clone())
    return area(clip, insertion, target), area(clip, deletion, target)


@pytest.mark.parametrize(
    ("side", "batch_sizes"),
    [(1, (7,)), (4, (1, 7, 1000)), (32, (7,))],
    ids=["constant", "patches", "pixels"],
)
def test_against_a_loop_over_pixels(
    tiny: ZeroShotClassifier, side: int, batch_sizes: tuple[int, ...]
) -> None:
    images, maps, targets = random_images(tiny), random_maps(side=side), [2, 0]
    under = images.flip(-1)
    expected = [
        naive(tiny, images[index], maps[index], target, under[index], 16)
        for index, target in enumerate(targets)
    ]
    for batch_size in batch_sizes:
        insertion, deletion = insertion_deletion(
            tiny, images, maps, targets, 16, under, batch_size=batch_size
        )
        assert insertion.tolist() == pytest.approx([one for one, _ in expected], abs=1e-5)
        assert deletion.tolist() == pytest.approx([other for _, other in expected], abs=1e-5)


def test_of_images_that_are_not_square_and_a_baseline_of_another_type(
    tiny: ZeroShotClassifier,
) -> None:
    images = torch.randn(2, 3, 16, 40, generator=torch.Generator().manual_seed(0))
    under, maps = images.flip(-1), random_maps()
    for baseline in (under, under.double()):
        insertion, deletion = insertion_deletion(tiny, images, maps, [2, 0], 8, baseline)
        for index, target in enumerate((2, 0)):
            expected = naive(tiny, images[index], maps[index], target, under[index], 8)
            assert float(insertion[index]) == pytest.approx(expected[0], abs=1e-5)
            assert float(deletion[index]) == pytest.approx(expected[1], abs=1e-5)


def test_steps_that_do_not_divide_the_pixels_are_weighed_by_what_they_change(
    tiny: ZeroShotClassifier,
) -> None:
    """32 x 32 pixels in 3 steps: 341, 341 and 342."""
    images, maps = random_images(tiny, 1), random_maps(1, side=32)
    found, _ = insertion_deletion(tiny, images, maps, 1, 3, "mean")
    order = maps.flatten().argsort(descending=True)
    curve, ends = [], [0, 341, 682, 1024]
    for end in ends:
        picture = images.mean((-2, -1), keepdim=True).expand_as(images).flatten(2).clone()
        picture[..., order[:end]] = images.flatten(2)[..., order[:end]]
        with torch.no_grad():
            curve.append(float(tiny(picture.view_as(images)).softmax(-1)[0, 1]))
    assert float(found) == pytest.approx(np.trapezoid(curve, np.divide(ends, 1024)), abs=1e-5)


def test_a_reversed_map_swaps_what_goes_first(tiny: ZeroShotClassifier) -> None:
    """Inserting in one order is deleting in the other, run backwards."""
    images, maps = random_images(tiny), random_maps(side=32)
    forth = insertion_deletion(tiny, images, maps, 1, 32, "mean")
    back = insertion_deletion(tiny, images, -maps, 1, 32, "mean")
    torch.testing.assert_close(forth[0], back[1])
    torch.testing.assert_close(forth[1], back[0])
    assert (forth[0] - forth[1]).abs().min() > 1e-4


@pytest.mark.slow
def test_a_map_of_the_object_beats_its_opposite() -> None:
    scenes = Scenes("test", 6, objects=[1])
    clip = ZeroShotClassifier.demo(nouns())
    images = clip.preprocess([scene.image for scene in scenes])
    targets = [clip.index(scene.nouns[0]) for scene in scenes]
    maps = LayerCLIPSurgery(clip).attribute(images, targets)[:, 0]
    good = insertion_deletion(clip, images, maps, targets, 8)
    bad = insertion_deletion(clip, images, -maps, targets, 8)
    assert good[0].mean() > bad[0].mean() + 0.3
    assert good[1].mean() < bad[1].mean() - 0.3
    for values in (*good, *bad):
        assert values.shape == (6,)
        assert ((values >= 0) & (values <= 1)).all()
        assert not values.requires_grad


# --- baselines -----------------------------------------------------------------------------------


def test_blur_is_scipy_s_and_grows_with_the_image() -> None:
    images = torch.rand(2, 3, 224, 336, generator=torch.Generator().manual_seed(0))
    found = BASELINES["blur"](images, 0)
    expected = gaussian_filter(images.double().numpy(), (0, 0, 10, 10), mode="mirror", radius=30)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    spot = torch.zeros(1, 1, 16, 16)
    spot[..., 8, 8] = 1
    spread = (BASELINES["blur"](spot, 0)[0, 0].sum(0) * (torch.arange(16) - 8) ** 2).sum()
    assert float(spread) == pytest.approx(1, abs=0.05)  # at least a pixel, not 10 / 14 of one


def test_blur_of_preprocessed_images_is_that_of_the_pixels(tiny: ZeroShotClassifier) -> None:
    """An independent Gaussian on the pixels themselves: Pillow's."""
    smooth = Image.effect_noise((32, 32), 40).filter(ImageFilter.BoxBlur(2)).convert("RGB")
    found = tiny.unnormalize(BASELINES["blur"](tiny.preprocess(smooth), 0))[0].permute(1, 2, 0)
    expected = np.asarray(smooth.filter(ImageFilter.GaussianBlur(10 / 7))) / 255
    inner = (slice(6, -6), slice(6, -6))
    np.testing.assert_allclose(found.numpy()[inner], expected[inner], atol=0.02)


def test_mean_and_noise() -> None:
    images = 5 + 3 * torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    mean = BASELINES["mean"](images, 0)
    assert torch.equal(mean, images.mean((2, 3), keepdim=True).expand(2, 3, 64, 64))
    noise = BASELINES["noise"](images, 0)
    torch.testing.assert_close(noise.mean((2, 3)), images.mean((2, 3)), atol=0.3, rtol=0)
    torch.testing.assert_close(noise.std((2, 3)), images.std((2, 3)), atol=0.2, rtol=0)
    assert torch.equal(noise, BASELINES["noise"](images, 0))
    assert not torch.equal(noise, BASELINES["noise"](images, 1))
    assert BASELINES["noise"](images.half(), 0).dtype == torch.float16


def test_noise_has_the_deviation_of_each_channel_of_each_image() -> None:
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([[1.0, 5.0, 0.1], [0.5, 2.0, 20.0]])
    rows = torch.linspace(-1, 1, 64)[:, None]  # images that change downwards alone
    images = scales[..., None, None] * (rows + 0.01 * torch.randn(64, 64, generator=generator))
    ratio = BASELINES["noise"](images, 0).std((2, 3)) / images.std((2, 3))
    torch.testing.assert_close(ratio, torch.ones(2, 3), atol=0.05, rtol=0)


@each("baseline", BASELINES)
def test_a_named_baseline_is_the_one_of_that_name(tiny: ZeroShotClassifier, baseline: str) -> None:
    images, maps = random_images(tiny), random_maps()
    named = insertion_deletion(tiny, images, maps, 0, 8, baseline, seed=3)
    given = insertion_deletion(tiny, images, maps, 0, 8, BASELINES[baseline](images, 3))
    torch.testing.assert_close(named, given, rtol=0, atol=0)


# --- cost and refusals ---------------------------------------------------------------------------


def test_passes_are_batched_and_bounded(tiny: ZeroShotClassifier) -> None:
    images, maps, sizes = random_images(tiny), random_maps(), []
    conv = tiny.model.visual.conv1
    handle = conv.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    insertion_deletion(tiny, images, maps, 0, 10, batch_size=8)
    handle.remove()
    assert sizes == [8, 8, 6] * 2  # two images at eleven points, twice


@each(
    ("changes", "error", "message"),
    [
        ({"maps": random_maps(3)}, ValueError, r"expected \(2, h, w\)"),
        ({"maps": random_maps()[:, None]}, ValueError, "sum image-shaped attributions"),
        ({"maps": random_maps() * torch.nan}, ValueError, "maps hold NaN"),
        (
            {"maps": random_maps().numpy()},
            TypeError,
            r"maps must be a tensor \(N, h, w\), got ndarray",
        ),
        ({"steps": 0}, ValueError, "steps must be 1 to 1024, the number of pixels, got 0"),
        ({"steps": 1025}, ValueError, "steps must be 1 to 1024, .* got 1025"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        (
            {"baseline": "black"},
            ValueError,
            "one of 'blur', 'mean', 'noise' or a tensor, got 'black'",
        ),
        ({"baseline": torch.zeros(1, 3, 32, 32)}, ValueError, r"expected that of the images"),
        ({"targets": 3}, IndexError, "target 3 is out of range for 3 texts"),
        ({"targets": [0]}, ValueError, "target has 1 entries for 2 images"),
    ],
)
def test_refused(
    tiny: ZeroShotClassifier, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    given = {"images": random_images(tiny), "maps": random_maps(), "targets": 0} | changes
    with pytest.raises(error, match=message):
        insertion_deletion(tiny, **given)


def test_one_text_is_refused(tiny: ZeroShotClassifier) -> None:
    with pytest.raises(ValueError, match="one text, 'a dog', whose probability is 1"):
        insertion_deletion(tiny.with_texts(["a dog"]), random_images(tiny), random_maps(), 0)
