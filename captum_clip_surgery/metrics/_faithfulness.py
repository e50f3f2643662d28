"""Insertion and deletion: does the model need the pixels that a map ranks first?"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.metrics.functional._maps import check_maps
from captum_clip_surgery.models._validation import Target, check_images, resolve_target

#: Standard deviation of the blur in shorter sides: 10 of 224 pixels, as in Fong and Vedaldi (ICCV
#: 2017). After RISE's blur with a window of 11 pixels, a good model still recognizes objects.
BLUR = 10 / 224


@torch.no_grad()
def insertion_deletion(
    clip: ZeroShotClassifier,
    images: Tensor,
    maps: Tensor,
    targets: Target,
    steps: int = 100,
    baseline: str | Tensor = "blur",
    batch_size: int = 32,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return the areas under the target's probability as pixels enter or leave the image.

    Pixels change in equal steps, highest first in the map resized bilinearly to the image; ties
    are ordered by position, row by row. The probability is the softmax over the classifier's texts,
    the area follows the trapezoidal rule.

    Args:
        clip: The classifier, with at least two texts.
        images: Images (N, 3, H, W), preprocessed.
        maps: Maps (N, h, w), raw and signed.
        targets: Index of a text, or one per image.
        steps: Number of steps, 1 to H * W.
        baseline: Replacement of pixels: "blur" (the image blurred by a Gaussian whose standard
            deviation is 10 pixels in 224, at least 1), "mean" (its mean color), "noise" (Gaussian,
            with the mean and standard deviation of its channels), or images (N, 3, H, W).
        batch_size: Number of images in one forward pass.
        seed: Seed of the noise.

    Returns:
        Insertion (higher is better) and deletion (lower is better), (N,) each, in 0..1.

    Raises:
        TypeError: If `images`, `maps` or `targets` have another type.
        ValueError: If `images`, `maps` or `targets` do not fit the classifier or each other, the
            classifier has one text, `baseline` is unknown, or `steps` or `batch_size` is out of
            range.
        IndexError: If a target is out of range.

    References:
        Petsiuk, Das, Saenko: RISE: Randomized Input Sampling for Explanation of Black-box Models.
        BMVC 2018. There deletion replaces pixels by the mean color and insertion starts from a
        blurred image; here both use the same baseline.

    Example::

        >>> clip = ZeroShotClassifier.demo(["dog", "pizza"])
        >>> images = torch.zeros(1, 3, *clip.native_size)
        >>> insertion, deletion = insertion_deletion(clip, images, torch.rand(1, 8, 8), 0, steps=5)
        >>> insertion.shape, torch.equal(insertion, deletion)  # a uniform image equals its blur
        (torch.Size([1]), True)
    """
    check_images(images, clip.tower, clip.device)
    check_maps(maps, len(images))
    pixels = images.shape[-2] * images.shape[-1]
    _check_options(clip, steps, pixels, batch_size)
    indices = resolve_target(targets, len(images), len(clip.texts), images.device)
    indices = indices.flatten().expand(len(images))
    background = _background(images, baseline, seed)
    ranks = _ranks(maps.to(images.device), images)
    counts = torch.arange(steps + 1, device=images.device) * pixels // steps

    def area(top: Tensor, under: Tensor) -> Tensor:
        """Return the area (N,) as pixels of `top` replace those of `under`."""
        pairs = torch.cartesian_prod(
            torch.arange(len(images), device="cpu"), torch.arange(steps + 1, device="cpu")
        )
        probabilities = []
        for rows in pairs.to(images.device).split(batch_size):
            image, step = rows.unbind(1)
            replaced = ranks[image] < counts[step][:, None, None, None]
            logits = clip(torch.where(replaced, top[image], under[image]))
            probabilities.append(logits.float().softmax(-1).gather(1, indices[image][:, None]))
        curves = torch.cat(probabilities).view(len(images), steps + 1)
        return torch.trapezoid(curves, counts.float() / pixels)

    return area(images, background), area(background, images)


def _check_options(clip: ZeroShotClassifier, steps: int, pixels: int, batch_size: int) -> None:
    if len(clip.texts) < 2:
        raise ValueError(
            f"the classifier must have at least two texts, got one text, {clip.texts[0]!r}, whose "
            "probability is 1 for every image; add others: clip.with_texts([...])"
        )
    if not 1 <= steps <= pixels:
        raise ValueError(f"steps must be 1 to {pixels}, the number of pixels, got {steps!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size!r}")


def _ranks(maps: Tensor, images: Tensor) -> Tensor:
    """Return the rank of each pixel in its map, highest first from 0, (N, 1, H, W)."""
    size = (images.shape[-2], images.shape[-1])
    large = F.interpolate(maps[:, None].float(), size, mode="bilinear", align_corners=False)
    order = large.flatten(1).argsort(descending=True, stable=True)
    ranks = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, ranks).view_as(large)


# Preprocessing is affine per channel, so these baselines are the same before and after it.


def _background(images: Tensor, baseline: str | Tensor, seed: int) -> Tensor:
    """Return the images (N, 3, H, W) that replace pixels."""
    if isinstance(baseline, Tensor):
        if baseline.shape != images.shape:
            raise ValueError(
                f"baseline has shape {tuple(baseline.shape)}, expected that of the images, "
                f"{tuple(images.shape)}"
            )
        return baseline.to(images)
    if baseline not in BASELINES:
        known = ", ".join(map(repr, BASELINES))
        raise ValueError(f"baseline must be one of {known} or a tensor, got {baseline!r}")
    return BASELINES[baseline](images, seed)


def _blur(images: Tensor, seed: int) -> Tensor:
    deviation = max(1.0, BLUR * min(images.shape[-2:]))
    width = 2 * round(3 * deviation) + 1
    # One axis after the other gives the same result in a fraction of the time.
    across = gaussian_blur(images, [width, 1], [deviation, deviation])
    return gaussian_blur(across, [1, width], [deviation, deviation])


def _mean(images: Tensor, seed: int) -> Tensor:
    return images.mean((-2, -1), keepdim=True).expand_as(images)


def _noise(images: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(images.shape, generator=generator, device="cpu").to(images)
    return _mean(images, seed) + noise * images.std((-2, -1), keepdim=True)


BASELINES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "blur": _blur,
    "mean": _mean,
    "noise": _noise,
}
