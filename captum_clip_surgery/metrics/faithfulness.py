"""Does the model need what the map shows? Insertion and deletion of pixels in the map's order."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.metrics.maps import check_maps
from captum_clip_surgery.models import validation

#: Standard deviation of the blur, in the shorter side: 10 of 224 pixels, as Fong and Vedaldi
#: (ICCV 2017) blur. RISE's own window of 11 pixels leaves objects that a good model still names.
BLUR = 10 / 224


@torch.no_grad()
def insertion_deletion(
    clip: ZeroShotClassifier,
    images: Tensor,
    maps: Tensor,
    targets: validation.Target,
    steps: int = 100,
    baseline: str | Tensor = "blur",
    batch_size: int = 32,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Area under the target's probability as pixels come into a baseline, or go from the image.

    Pixels change in equal steps, highest first in the map resized bilinearly to the image; ties
    go by position, row by row. The probability is the softmax over the classifier's texts, its
    area by the trapezoid rule.

    Args:
        clip: the classifier, of at least two texts.
        images: (N, 3, H, W), preprocessed.
        maps: (N, h, w), raw and signed.
        targets: index of a text, or one for each image.
        steps: how many; 1 to H * W.
        baseline: what stands where the image does not: "blur" (the image, blurred by a Gaussian
            of 10 pixels in 224, at least 1), "mean" (its mean colour), "noise" (Gaussian, of the
            mean and deviation of each of its channels), or images (N, 3, H, W) of your own.
        batch_size: images in one forward pass.
        seed: of the noise.

    Returns:
        Insertion, the more the better, and deletion, the less the better: (N,) each, in 0..1.

    Raises:
        TypeError, ValueError, IndexError: images and targets as in `checks`; maps of another shape
            or not finite; one text; an unknown baseline; steps or batch size out of range.

    Source: Petsiuk, Das, Saenko, "RISE" (BMVC 2018). There deletion replaces by the mean colour and
    insertion starts from the blur; here both take the one baseline given.

    Example::

        >>> clip = ZeroShotClassifier.demo(["dog", "pizza"])
        >>> images = torch.zeros(1, 3, *clip.native_size)
        >>> insertion, deletion = insertion_deletion(clip, images, torch.rand(1, 8, 8), 0, steps=5)
        >>> insertion.shape, torch.equal(insertion, deletion)  # a plain image is its own blur
        (torch.Size([1]), True)
    """
    validation.check_images(images, clip.tower, clip.device)
    check_maps(maps, len(images))
    pixels = images.shape[-2] * images.shape[-1]
    _check_numbers(clip, steps, pixels, batch_size)
    chosen = validation.resolve_target(targets, len(images), len(clip.texts), images.device)
    chosen = chosen.flatten().expand(len(images))
    background = _background(images, baseline, seed)
    ranks = _ranks(maps.to(images.device), images)
    counts = torch.arange(steps + 1, device=images.device) * pixels // steps

    def area(top: Tensor, under: Tensor) -> Tensor:
        work = torch.cartesian_prod(torch.arange(len(images)), torch.arange(steps + 1))
        found = []
        for rows in work.to(images.device).split(batch_size):
            image, step = rows.unbind(1)
            shown = ranks[image] < counts[step][:, None, None, None]
            logits = clip(torch.where(shown, top[image], under[image]))
            found.append(logits.float().softmax(-1).gather(1, chosen[image][:, None]))
        curves = torch.cat(found).view(len(images), steps + 1)
        return torch.trapezoid(curves, counts.float() / pixels)

    return area(images, background), area(background, images)


def _check_numbers(clip: ZeroShotClassifier, steps: int, pixels: int, batch_size: int) -> None:
    if len(clip.texts) < 2:
        raise ValueError(
            f"the classifier has one text, {clip.texts[0]!r}, whose probability is 1 whatever the "
            "image; give it others to compete with: clip.with_texts([...])"
        )
    if not 1 <= steps <= pixels:
        raise ValueError(f"steps {steps!r} must be from 1 to the image's {pixels} pixels")
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size!r} must be at least 1")


def _ranks(maps: Tensor, images: Tensor) -> Tensor:
    """Place of each pixel in the order of the maps, from 0: (N, 1, H, W)."""
    size = (images.shape[-2], images.shape[-1])
    large = F.interpolate(maps[:, None].float(), size, mode="bilinear", align_corners=False)
    order = large.flatten(1).argsort(descending=True, stable=True)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).view_as(large)


# --- baselines: preprocessing is affine for each channel, so these are the same in pixels ---------


def _background(images: Tensor, baseline: str | Tensor, seed: int) -> Tensor:
    if isinstance(baseline, Tensor):
        if baseline.shape != images.shape:
            raise ValueError(
                f"baseline has shape {tuple(baseline.shape)}, expected that of the images, "
                f"{tuple(images.shape)}"
            )
        return baseline.to(images)
    if baseline not in BASELINES:
        known = ", ".join(map(repr, BASELINES))
        raise ValueError(f"baseline {baseline!r} is none of {known} and no tensor of images")
    return BASELINES[baseline](images, seed)


def _blur(images: Tensor, seed: int) -> Tensor:
    deviation = max(1.0, BLUR * min(images.shape[-2:]))
    width = 2 * round(3 * deviation) + 1
    # One axis after the other: the same, at a fraction of the time.
    across = gaussian_blur(images, [width, 1], [deviation, deviation])
    return gaussian_blur(across, [1, width], [deviation, deviation])


def _mean(images: Tensor, seed: int) -> Tensor:
    return images.mean((-2, -1), keepdim=True).expand_as(images)


def _noise(images: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(images.shape, generator=generator).to(images)
    return _mean(images, seed) + noise * images.std((-2, -1), keepdim=True)


BASELINES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "blur": _blur,
    "mean": _mean,
    "noise": _noise,
}
