"""Features of the images and regions that a classifier compares images with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_clip_surgery._utils.tensors import tensor_digest
from captum_clip_surgery.functional import full_precision, normalized
from captum_clip_surgery.models._changes import list_changes
from captum_clip_surgery.models._guards import assert_parameters_unchanged, check_differentiable
from captum_clip_surgery.models._image_encoder import ImageEncoder
from captum_clip_surgery.models._state import ModelState, read_state
from captum_clip_surgery.models._validation import check_finite, check_images, check_modes
from captum_clip_surgery.models.image._surgery import surgery_path
from captum_clip_surgery.models.text._templates import truncate_repr
from captum_clip_surgery.preprocessing import load_image
from captum_clip_surgery.queries._types import Box, ImageQuery, RegionQuery

#: Features (C,) by query.
Features = dict[ImageQuery | RegionQuery, Tensor]
#: Number of images that pass the tower together.
BATCH_SIZE = 16


@dataclass(frozen=True)
class _Picture:
    """A preprocessed image (1, 3, H, W), and the share (h*w,) of each patch in the region if any.

    Patches that the region misses have 0.
    """

    pixels: Tensor
    coverage: Tensor | None


class EncodedImages:
    """Features of images and regions, computed again when the image tower changes.

    Args:
        images: The image side of the model.
        queries: Images and regions, each with the name of its query for messages.

    Raises:
        FileNotFoundError: If a file does not exist.
        TypeError: If an image has another type.
        ValueError: If an image cannot be read, the patch size does not divide a tensor's height or
            width, or a region exceeds its image, has another size, or covers no patch.
    """

    def __init__(
        self, images: ImageEncoder, queries: Mapping[ImageQuery | RegionQuery, str]
    ) -> None:
        self._images = images
        self._pictures = {
            query: _load_named(images, query, name) for query, name in queries.items()
        }
        self._cached: tuple[ModelState, Features] | None = None

    @property
    def requires_grad(self) -> bool:
        """Whether one of the images requires gradients."""
        return any(picture.pixels.requires_grad for picture in self._pictures.values())

    def including(self, queries: Mapping[ImageQuery | RegionQuery, str]) -> EncodedImages:
        """Return features that hold these images and regions: this object if it holds them all."""
        known = [self._pictures[query] for query in queries if query in self._pictures]
        # If an image requires gradients, all features are computed again at each use.
        requires_grad = any(picture.pixels.requires_grad for picture in known)
        if known and len(known) == len(queries) and requires_grad == self.requires_grad:
            return self
        return EncodedImages(self._images, queries)

    def features(self) -> Features:
        """Return the L2-normalized feature (C,) of each image and region, in float32 or wider."""
        if self.requires_grad:
            check_differentiable(self._images.tower.visual)
            return self._encode()
        cached, visual = self._cached, self._images.model.visual
        if cached is not None and not list_changes(
            cached[0], read_state(visual, previous=cached[0], samples=True)
        ):
            return cached[1]
        with torch.inference_mode(False), torch.no_grad():
            features = self._encode()
        # Read after the pass, in which modules may set attributes.
        self._cached = read_state(visual, samples=True), features
        return features

    def digests(self) -> dict[ImageQuery | RegionQuery, dict[str, str]]:
        """Return digests of what the model sees of each image, and of the region if there is one.

        Unlike features, they are the same on every device.
        """
        digests = {}
        for query, picture in self._pictures.items():
            digests[query] = {"image": tensor_digest(picture.pixels)}
            if picture.coverage is not None:
                digests[query]["region"] = tensor_digest(picture.coverage)
        return digests

    def _encode(self) -> Features:
        groups: dict[tuple[bool, torch.Size], list[ImageQuery | RegionQuery]] = {}
        for query, picture in self._pictures.items():
            key = picture.coverage is None, picture.pixels.shape
            groups.setdefault(key, []).append(query)
        features: Features = {}
        for queries in groups.values():
            for start in range(0, len(queries), BATCH_SIZE):
                batch = queries[start : start + BATCH_SIZE]
                encoded = self._encode_batch([self._pictures[query] for query in batch])
                features.update(zip(batch, encoded, strict=True))
        return features

    def _encode_batch(self, pictures: Sequence[_Picture]) -> Tensor:
        """Return the features (N, C) of whole images, or of regions, of one size."""
        pixels = torch.cat([picture.pixels.to(self._images.device) for picture in pictures])
        coverage = [p.coverage for p in pictures if p.coverage is not None]
        if coverage:
            return self._encode_regions(pixels, torch.stack(coverage))
        return self._images.image_features(pixels)

    def _encode_regions(self, pixels: Tensor, coverage: Tensor) -> Tensor:
        """Return the features (N, C) of regions that cover shares (N, h*w) of patches."""
        images, tower = self._images, self._images.tower
        check_modes(images.model)
        with assert_parameters_unchanged(images.model), full_precision(pixels):
            output = tower.dual_path(pixels.to(tower.dtype), surgery_path(tower))
            tokens = normalized(output.patches)  # (N, h*w, C)
            means = coverage.to(tokens)[:, None] @ tokens  # (N, 1, C)
        return check_finite(pixels, normalized(means[:, 0]), "region features")

    def __getstate__(self) -> dict[str, object]:
        """Drop the cached features, which belong to this process's image tower."""
        return {**self.__dict__, "_cached": None}


def _load_named(images: ImageEncoder, query: ImageQuery | RegionQuery, name: str) -> _Picture:
    """Return a query's picture; errors say which query is concerned."""
    try:
        return _load(images, query)
    except (FileNotFoundError, TypeError, ValueError) as error:
        kind = type(error) if type(error) in (FileNotFoundError, TypeError) else ValueError
        raise kind(f"query {truncate_repr(name)}: {error}") from error


def _load(images: ImageEncoder, query: ImageQuery | RegionQuery) -> _Picture:
    """Return a query's picture."""
    if isinstance(query.image, Tensor):
        pixels = query.image[None] if query.image.ndim == 3 else query.image
        check_images(pixels, images.tower, pixels.device)
        if len(pixels) != 1:
            raise ValueError(
                f"the image of a query is a batch of {len(pixels)}; make a query for each image"
            )
        size = (pixels.shape[-2], pixels.shape[-1])
    else:
        loaded = load_image(query.image)
        pixels, size = images.preprocess(loaded), (loaded.height, loaded.width)
    if isinstance(query, ImageQuery):
        return _Picture(pixels, None)
    return _Picture(pixels, _coverage(images, query, size, pixels))


def _coverage(
    images: ImageEncoder, query: RegionQuery, size: tuple[int, int], pixels: Tensor
) -> Tensor:
    """Return the share (h*w,) of each patch that a region of an image of `size` covers.

    Raises:
        ValueError: If the region exceeds the image, has another size, or covers no patch.
    """
    tower, (height, width) = images.tower, (pixels.shape[-2], pixels.shape[-1])
    grid, patch = tower.grid(height, width), tower.patch_size
    if query.box is not None:
        coverage = _box_coverage(query.box, size, (height, width), grid, patch)
    else:
        mask = torch.as_tensor(query.mask, dtype=torch.float32, device="cpu")
        if tuple(mask.shape) != size:
            raise ValueError(f"the mask is {tuple(mask.shape)}, the image {size}, height by width")
        # Every pixel of the mask counts, however small: areas are averaged, not sampled.
        resized = F.interpolate(mask[None, None], (height, width), mode="area")
        covered = resized[..., : grid[0] * patch[0], : grid[1] * patch[1]]
        coverage = F.avg_pool2d(covered, patch)[0, 0]
    if not coverage.any():  # patches may leave out the last pixels
        raise ValueError("the region covers no patch of the image; enlarge it")
    return coverage.flatten()


def _box_coverage(
    box: Box,
    size: tuple[int, int],
    shown: tuple[int, int],
    grid: tuple[int, int],
    patch: tuple[int, int],
) -> Tensor:
    """Return the share (h, w) of each patch that a box covers.

    Args:
        box: (left, top, right, bottom) in pixels of the image.
        size: (height, width) of the image.
        shown: (height, width) that the model sees.
        grid: Rows and columns of patches.
        patch: (height, width) of a patch.
    """
    left, top, right, bottom = box
    if right > size[1] or bottom > size[0]:
        raise ValueError(f"box {box} exceeds the image of {size[1]} x {size[0]} (width x height)")
    shares = []
    for axis, (low, high) in enumerate(((top, bottom), (left, right))):
        scale = shown[axis] / size[axis] / patch[axis]  # to units of patches
        edges = torch.arange(grid[axis], dtype=torch.float32, device="cpu")
        inner = (edges + 1).clamp(max=high * scale) - edges.clamp(min=low * scale)
        shares.append(inner.clamp(min=0))
    return torch.outer(*shares)
