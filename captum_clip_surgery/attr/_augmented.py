"""Transformed copies of images, and the way of their maps back to the images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_clip_surgery.attr._coverage import Size


@dataclass(frozen=True)
class View:
    """Shifts and flips of resized images.

    Attributes:
        offset: Rows and columns in pixels by which their content moves up and to the left.
        flip: Whether they are then flipped horizontally.
    """

    offset: Size
    flip: bool

    def apply(self, images: Tensor) -> Tensor:
        """Return the transformed images (N, 3, H, W)."""
        down, right = self.offset
        if down or right:
            images = F.pad(images, (0, right, 0, down), mode="reflect")[..., down:, right:]
        return images.flip(-1) if self.flip else images

    def invert(self, maps: Tensor, frame: Frame) -> Tensor:
        """Bring maps (N, K, h, w) of transformed images back to the geometry of the images."""
        if not any(self.offset) and not self.flip and frame.is_of(maps):
            return maps
        if maps.shape[-2] > frame.size[0]:  # maps of enlarged pixels: sampling would skip some
            maps = F.interpolate(
                maps, frame.size, mode="bilinear", align_corners=False, antialias=True
            )
        # The cell of the result at g in -1..1 lies at factor * g + start in -1..1 of the map.
        theta = torch.zeros(1, 2, 3, dtype=maps.dtype, device=maps.device)
        for axis in (0, 1):
            length = frame.shown[axis] * frame.part[axis]
            factor = length / frame.covered[axis]
            start = (length - 2 * self.offset[axis]) / frame.covered[axis] - 1
            if axis == 1 and self.flip:
                factor, start = -factor, 2 * (frame.shown[1] / frame.covered[1] - 1) - start
            theta[0, 1 - axis, 1 - axis] = factor
            theta[0, 1 - axis, 2] = start
        points = F.affine_grid(theta, [1, 1, *frame.size], align_corners=False)
        points = points.expand(len(maps), -1, -1, -1)
        return F.grid_sample(maps, points, padding_mode="border", align_corners=False)


@dataclass(frozen=True)
class Frame:
    """Positions of the maps of resized images, and of the result.

    Attributes:
        shown: (height, width) of the resized images in pixels.
        covered: (height, width) in pixels that the maps cover of them.
        size: Rows and columns of the result.
        part: The part of the images' height and width that the result covers, in 0..1.
    """

    shown: Size
    covered: Size
    size: Size
    part: tuple[float, float]

    def is_of(self, maps: Tensor) -> bool:
        """Return whether the cells of the result are those of the maps."""
        covered = (self.covered[0] / self.shown[0], self.covered[1] / self.shown[1])
        return size_of(maps) == self.size and covered == self.part


@dataclass(frozen=True)
class Copies:
    """Transformed copies of images.

    Attributes:
        images: The copies (M, 3, H, W).
        views: How each was transformed.
        indices: The image that each is a copy of.
        resized: Whether they are of another size than the images.
    """

    images: Tensor
    views: tuple[View, ...]
    indices: list[int]
    resized: bool

    def originals(self) -> Iterator[tuple[int, int]]:
        """Yield the place and the index of each image that is not changed."""
        for place, (view, index) in enumerate(zip(self.views, self.indices, strict=True)):
            if not (self.resized or any(view.offset) or view.flip):
                yield place, index


def size_of(images: Tensor) -> Size:
    """Return the height and width of images or maps (..., H, W)."""
    return images.shape[-2], images.shape[-1]
