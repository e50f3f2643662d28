"""Both sides of a match: the cosine of two images, split into what each pair of patches adds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from captum_clip_surgery.attr._base import check_classifier
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.functional import full_precision
from captum_clip_surgery.models._guards import assert_parameters_unchanged
from captum_clip_surgery.models._validation import check_finite, check_modes
from captum_clip_surgery.models.image._direct_effects import direct_effects
from captum_clip_surgery.preprocessing import ImageInput
from captum_clip_surgery.tasks._images import Size, batches, covered_pixels

#: Shares of the height and the width of an image.
Shares = tuple[float, float]
#: Share of the value at its start down to which a region extends.
EXTENT = 0.5


@dataclass(frozen=True)
class RegionPair:
    """A region of one image, a region of another, and what they add to the cosine together.

    Attributes:
        contribution: Sum of the contributions of the pairs of patches of the two regions.
        query_region: Mask (h1, w1) of bool on the patches of the query image.
        region: Mask (h2, w2) of bool on the patches of the other image.
    """

    contribution: float
    query_region: Tensor
    region: Tensor


@dataclass(frozen=True)
class PairExplanation:
    """Contributions of the pairs of patches of two images to their cosine.

    Attributes:
        interactions: Contributions (h1, w1, h2, w2) of each patch of the query image with each
            patch of the other image, signed, in float32 or wider, on the model's device.
        remainder: Contributions of the parts without a place, by name: "query" (h1, w1) of each
            patch of the query image with the other image's parts that are not patches, "image" (h2,
            w2) the other way round, and "rest" () of these parts of both.
        cosine: The model's own cosine () of the images, which all contributions sum to.
        sizes: (height, width) in pixels of the parts of both images that the patches cover: nearly
            always the whole images.
        pixels: The parts (H, W, 3) of both images that the patches cover, as the model sees them,
            in 0..1.
        shares: Shares of the height and the width of both images that the patches cover.
    """

    interactions: Tensor
    remainder: Mapping[str, Tensor]
    cosine: Tensor
    sizes: tuple[Size, Size]
    pixels: tuple[np.ndarray, np.ndarray]
    shares: tuple[Shares, Shares] = ((1.0, 1.0), (1.0, 1.0))

    def sum(self) -> Tensor:
        """Return the sum () of all contributions, which is the cosine up to rounding."""
        return self.interactions.sum() + sum(part.sum() for part in self.remainder.values())

    def maps(self) -> tuple[Tensor, Tensor]:
        """Return each patch's contribution over the whole other image, (h1, w1) and (h2, w2).

        They are the images' direct effects, each with the other image as the query. The patches of
        both are counted twice, so the two maps do not sum to the cosine; `interactions` do.
        """
        query = self.interactions.sum((2, 3)) + self.remainder["query"]
        return query, self.interactions.sum((0, 1)) + self.remainder["image"]

    def pairs(self, count: int = 3) -> list[RegionPair]:
        """Return the strongest pairs of regions, strongest first.

        The pair of patches is sought whose neighborhoods of 3 x 3 patches add most. From it, each
        region extends over the connected patches whose neighborhoods, together with that of the
        other patch, add at least half as much. The pair and what surrounds it is then left out, and
        the next one is sought, so that no two pairs share a pair of patches.

        Args:
            count: Largest number of pairs, at least 1. There are fewer if no other pair raises the
                cosine.

        Raises:
            ValueError: If `count` is below 1.
        """
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count!r}")
        left = self.interactions.detach().clone()
        means = _neighborhood_means(left)
        pairs: list[RegionPair] = []
        while len(pairs) < count:
            query, place = divmod(int(means.argmax()), means[0, 0].numel())
            by_query, by_place = means.flatten(0, 1)[query], means.flatten(2)[..., place]
            if not by_query.flatten()[place] > 0:
                break
            query_region, region = _grow(by_place, query), _grow(by_query, place)
            block = _outer(query_region, region)
            contribution = float(left[block].sum())
            if contribution > 0:
                pairs.append(RegionPair(contribution, query_region, region))
            left[block] = 0
            means[_outer(_dilate(query_region), _dilate(region))] = -torch.inf
        return sorted(pairs, key=lambda pair: -pair.contribution)

    def figure(
        self,
        query_image: ImageInput | None = None,
        image: ImageInput | None = None,
        *,
        names: tuple[str, str] = ("query", "image"),
        count: int = 3,
        maps: bool = True,
        width: float | str | None = None,
    ) -> Figure:
        """Draw lines between the regions that match most, and the map of each image.

        Args:
            query_image: The query image to draw, such as the original in its own size, of which
                the part that the patches cover is drawn; None means that part as the model
                sees it.
            image: The other image likewise.
            names: Names of both images, shown as titles.
            count: Largest number of pairs of regions.
            maps: Whether to draw the maps below.
            width: Width of the figure in inches, or "column", "page", "notebook" or "slide".

        Returns:
            A figure that is not registered with pyplot; `visualization.save_figure` writes it.

        Raises:
            ValueError: If `count` is below 1, or a map is not finite.
        """
        from captum_clip_surgery.tasks._pair_figure import pair_figure

        return pair_figure(self, query_image, image, names, count, maps, width)

    def to_dict(self, count: int = 3) -> dict[str, Any]:
        """Return cosine, maps, sums of remainders and the strongest pairs, for `json.dumps`.

        The `box` of a region is (left, top, right, bottom) in pixels of its image.

        Args:
            count: Largest number of pairs of regions.
        """
        query_map, image_map = self.maps()
        return {
            "cosine": self.cosine.item(),
            "patches": self.interactions.sum().item(),
            "remainder": {name: part.sum().item() for name, part in self.remainder.items()},
            "maps": {"query": query_map.tolist(), "image": image_map.tolist()},
            "sizes": {"query": list(self.sizes[0]), "image": list(self.sizes[1])},
            "pairs": [
                {
                    "contribution": pair.contribution,
                    "query_box": _box(pair.query_region, self.sizes[0]),
                    "box": _box(pair.region, self.sizes[1]),
                }
                for pair in self.pairs(count)
            ],
        }


def explain_pair(
    clip: ZeroShotClassifier,
    query_image: ImageInput | Tensor,
    image: ImageInput | Tensor,
    *,
    size: int | Size | None = None,
) -> PairExplanation:
    """Split the cosine of two images into what each pair of their patches adds.

    Each image's embedding is the sum of what every patch contributed to it through attention, and a
    remainder. The contribution of patch j of one and patch i of the other is the product of their
    parts, u_j . c_i / (|f| |e|), where f and e are the embeddings. Each image passes the tower
    once, and nothing is approximated: contributions and remainders sum to the cosine. Exchanging
    the images transposes the result.

    Args:
        clip: A classifier; its texts are ignored.
        query_image: An image (a PIL image, an array, a path), or a preprocessed batch of one image
            (1, 3, H, W).
        image: The other image.
        size: Side or (height, width) in pixels that the model sees; None means the native
            size. A preprocessed image has its own.

    Raises:
        TypeError: If an image is of an unsupported type, or the decomposition is not defined on the
            tower.
        ValueError: If an image cannot be read, a batch does not fit the model or has several
            images, or images or contributions contain NaN or infinity.
        FileNotFoundError: If a path does not exist.
        RuntimeError: If the model changes during the call.

    References:
        Elhage et al.: A Mathematical Framework for Transformer Circuits. 2021.
        Gandelsman, Efros, Steinhardt: Interpreting CLIP's Image Representation via Text-Based
        Decomposition. ICLR 2024 (arXiv 2310.05916), Eq. 3-5, there for an image and a text.

    Example::

        >>> clip = ZeroShotClassifier.demo(["dog"])
        >>> one, other = torch.rand(2, 1, 3, 64, 96)
        >>> result = explain_pair(clip, one, other)
        >>> result.interactions.shape
        torch.Size([4, 6, 4, 6])
        >>> torch.allclose(result.sum(), result.cosine, atol=1e-5)
        True
    """
    check_modes(check_classifier(clip).model)
    with torch.no_grad(), assert_parameters_unchanged(clip.model):
        query = _Side.of(clip, query_image, size)
        other = _Side.of(clip, image, size)
        lengths = query.embedding.norm() * other.embedding.norm()
        with full_precision(query.embedding):
            interactions = query.patches.mT @ other.patches / lengths
            remainder = {
                "query": (other.rest @ query.patches / lengths).unflatten(0, query.grid),
                "image": (query.rest @ other.patches / lengths).unflatten(0, other.grid),
                "rest": query.rest @ other.rest / lengths,
            }
            cosine = query.embedding @ other.embedding / lengths
    return PairExplanation(
        interactions.unflatten(1, other.grid).unflatten(0, query.grid),
        remainder,
        cosine,
        (query.size, other.size),
        (query.pixels, other.pixels),
        (query.shares, other.shares),
    )


@dataclass(frozen=True)
class _Side:
    """One image taken apart: parts (C, h*w) of patches, the others (C,), and their sum (C,)."""

    patches: Tensor
    rest: Tensor
    embedding: Tensor
    grid: Size
    size: Size
    pixels: np.ndarray
    shares: Shares

    @classmethod
    def of(
        cls, clip: ZeroShotClassifier, image: ImageInput | Tensor, size: int | Size | None
    ) -> _Side:
        if isinstance(image, Tensor) and image.ndim == 4 and len(image) > 1:
            raise ValueError(f"a pair has one image on a side, got a batch of {len(image)}")
        ((pixels, sizes),) = batches(clip, image, size, 1)
        with full_precision(pixels):
            # The products with the axes of the joint space are the parts themselves.
            axes = torch.eye(clip.joint_width(), device=pixels.device)
            effects = direct_effects(clip.tower, pixels.to(clip.tower.dtype), axes)
        check_finite(pixels, effects.sum(), "contributions")
        patches = effects.patches[0]
        rest = torch.stack(list(effects.remainder.values())).sum(0)[0]
        embedding = effects.embedding[0].to(patches.dtype)
        (seen,) = covered_pixels(clip, pixels, effects.grid)
        shares = seen.shape[0] / pixels.shape[-2], seen.shape[1] / pixels.shape[-1]
        covered = round(sizes[0][0] * shares[0]), round(sizes[0][1] * shares[1])
        return cls(patches, rest, embedding, effects.grid, covered, seen, shares)


# --- regions -------------------------------------------------------------------------------------


def _neighborhood_means(interactions: Tensor) -> Tensor:
    """Return the mean of interactions (h1, w1, h2, w2) over 3 x 3 patches on both sides."""

    def smooth(values: Tensor) -> Tensor:
        rows = values.flatten(0, 1)[:, None]
        means = F.avg_pool2d(rows, 3, 1, 1, count_include_pad=False)[:, 0]
        return means.view_as(values).permute(2, 3, 0, 1)

    return smooth(smooth(interactions).contiguous()).contiguous()


def _grow(values: Tensor, start: int) -> Tensor:
    """Return the connected patches (h, w) around one whose values reach a share of its own."""
    inside = values >= EXTENT * values.flatten()[start]
    region = torch.zeros_like(inside)
    region.view(-1)[start] = True
    while True:
        larger = _dilate(region) & inside
        if torch.equal(larger, region):
            return region
        region = larger


def _dilate(region: Tensor) -> Tensor:
    """Return a region (h, w) and the adjacent patches."""
    return F.max_pool2d(region[None].float(), 3, 1, 1)[0] > 0


def _outer(query_region: Tensor, region: Tensor) -> Tensor:
    """Return the mask (h1, w1, h2, w2) of the pairs of patches of two regions."""
    return query_region[:, :, None, None] & region


def _box(region: Tensor, size: Size) -> list[float]:
    """Return the (left, top, right, bottom) of a region in pixels of an image of `size`."""
    rows, columns = region.any(1).nonzero(), region.any(0).nonzero()
    height, width = size[0] / region.shape[0], size[1] / region.shape[1]
    left, right = int(columns.min()) * width, int(columns.max() + 1) * width
    return [left, int(rows.min()) * height, right, int(rows.max() + 1) * height]
