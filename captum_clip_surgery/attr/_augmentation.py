"""Test-time augmentation: a method's maps averaged over sizes, sub-patch shifts and flips."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, product
from typing import Any

import torch
import torch.nn.functional as F
from captum.attr import Attribution
from captum.log import log_usage
from torch import Tensor

from captum_clip_surgery.attr._augmented import Copies, Frame, View, size_of
from captum_clip_surgery.attr._base import check_classifier, single_input
from captum_clip_surgery.attr._coverage import Size, covered_size
from captum_clip_surgery.attr._engine import forward_pass, path_of, tower_output
from captum_clip_surgery.attr._passes import images_per_pass
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.functional import CONTRASTING
from captum_clip_surgery.models._validation import (
    Target,
    check_images,
    resolve_indices,
    resolve_target,
)
from captum_clip_surgery.models.image import PathConfig, TowerOutput
from captum_clip_surgery.models.image._data import nearest_multiple

#: Returns the maps (M, K, h, w) of copies.
_Explain = Callable[[Copies], Tensor]


class TestTimeAugmentation(Attribution):
    """A method's maps averaged over sizes, sub-patch shifts and flips of the images.

    The method explains each transformed copy of the images. The maps are resampled bilinearly to
    the images' geometry and averaged; their mean is finer and more stable than one map. Texts
    compete as they do without augmentation: in every copy, the feature surgery of dual-path methods
    weights them by the embedding of the original image.

    Each image takes `num_passes` calls of the method, and a pass of the image itself where that
    embedding is needed and no copy is unchanged. A copy of scale s has s² times as many patches.

    Args:
        method: An attribution on a `ZeroShotClassifier`, from this package or from Captum.
        scales: Sizes of the copies as factors of the images' size, each rounded to a multiple of
            the patch.
        shifts: The number of positions in each direction, at fractions 0, 1/shifts, ... of the
            patch: shifts² copies per size. The border is continued by reflection.
        flip: Whether each copy is also explained flipped horizontally.
        internal_batch_size: Maximum number of copies that the method explains at once; None means
            as many as have 4,096 patches in total.

    Raises:
        TypeError: If `method` is not an attribution on a `ZeroShotClassifier`, or an option has the
            wrong type.
        ValueError: If `scales` is empty or contains a number that is not positive and finite, or
            `shifts` or `internal_batch_size` is below 1.

    Example::

        >>> from captum_clip_surgery import LayerCLIPSurgery
        >>> clip = ZeroShotClassifier.demo(["dog", "pizza"])
        >>> fine = TestTimeAugmentation(LayerCLIPSurgery(clip), scales=(1, 2), shifts=2)
        >>> fine.num_passes, fine.attribute_all(torch.zeros(1, 3, 64, 64)).shape
        (8, torch.Size([1, 2, 16, 16]))
    """

    forward_func: ZeroShotClassifier
    __test__ = False  # pytest collects classes whose names begin with "Test"

    def __init__(
        self,
        method: Any,
        scales: Sequence[float] = (1.25,),
        shifts: int = 2,
        flip: bool = False,
        internal_batch_size: int | None = None,
    ) -> None:
        if isinstance(method, type) or not hasattr(method, "forward_func"):
            kind = method.__name__ if isinstance(method, type) else type(method).__name__
            raise TypeError(
                f"method must be an attribution such as LayerCLIPSurgery(clip), got {kind}"
            )
        super().__init__(check_classifier(method.forward_func))
        for name, value, kinds in (
            ("scales", scales, (list, tuple)),
            ("shifts", shifts, (int,)),
            ("internal_batch_size", internal_batch_size, (int, type(None))),
        ):
            if not isinstance(value, kinds):
                raise TypeError(
                    f"{name} must be {'a list of numbers' if name == 'scales' else 'an int'}, "
                    f"got {value!r}"
                )
        if not scales or not all(0 < scale < math.inf for scale in scales):
            raise ValueError(f"scales must be positive, finite numbers, got {scales!r}")
        if shifts < 1:
            raise ValueError(f"shifts must be at least 1, got {shifts!r}")
        if internal_batch_size is not None and internal_batch_size < 1:
            raise ValueError(f"internal_batch_size must be at least 1, got {internal_batch_size!r}")
        self.method = method
        self.scales = tuple(scales)
        self.shifts = shifts
        self.flip = flip
        self.internal_batch_size = internal_batch_size

    @property
    def num_passes(self) -> int:
        """The number of copies of an image that the method explains."""
        return len(self.scales) * len(self._views((1, 1)))

    @log_usage()  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor],
        target: Target = None,
        additional_forward_args: Any = None,
        **options: Any,
    ) -> Tensor | tuple[Tensor]:
        """Return the averaged attribution of one text per image.

        Args:
            inputs: Images (N, 3, H, W), or a tuple that holds only this tensor. Gradients flow
                as they do through the method.
            target: Index of a text, or a tensor or list of one index per image.
            additional_forward_args: Must be None; part of Captum's signature.
            **options: Further arguments of the method's `attribute`. Tensors are not supported,
                because copies have several sizes.

        Returns:
            The attribution, as a tuple if `inputs` is one: (N, 3, H, W) for input attributions; for
            layer attributions, maps on the finest grid, `shifts` times that of the largest copies.

        Raises:
            TypeError: If `inputs` or `target` has the wrong type, an option is a tensor, or
                `additional_forward_args` is given.
            ValueError: If the images do not fit the model, or `target` does not fit the batch.
            IndexError: If a target is out of range.
        """
        images = single_input(inputs, additional_forward_args)
        tensors = [name for name, value in options.items() if isinstance(value, Tensor)]
        if tensors:
            raise TypeError(
                f"{tensors[0]} must not be a tensor: the method explains copies of several sizes"
            )
        if options.get("return_convergence_delta"):
            raise TypeError(
                "return_convergence_delta is not supported: a mean of maps has no delta; call the "
                "method itself"
            )
        clip = self.forward_func
        check_images(images, clip.tower, clip.device)
        resolved = resolve_target(target, len(images), len(clip.texts), images.device)
        chosen = resolved.flatten().expand(len(images))
        attribution = self._average(
            images,
            lambda copies: self.method.attribute(
                copies.images, target=chosen[copies.indices], **options
            ),
        )
        return (attribution,) if isinstance(inputs, tuple) else attribution

    @log_usage()  # type: ignore[untyped-decorator]
    def attribute_all(self, inputs: Tensor, targets: Sequence[int] | None = None) -> Tensor:
        """Return the averaged maps of many texts.

        Args:
            inputs: Images (N, 3, H, W). Gradients flow as they do through the method.
            targets: Indices of the texts to return; None means all.

        Returns:
            One map per text: (N, K, H, W) if the method's maps have the images' size, otherwise
            on the finest grid, `shifts` times that of the largest copies.

        Raises:
            TypeError: If `inputs` or `targets` has the wrong type, or the method has no
                `attribute_all`, which is the case for Captum's own classes.
            ValueError: If the images do not fit the model.
            IndexError: If a target is out of range.
        """
        if not hasattr(self.method, "attribute_all"):
            raise TypeError(
                f"{type(self.method).__name__} has no attribute_all; call attribute(images, "
                "target), or take the method from METHODS"
            )
        clip = self.forward_func
        check_images(inputs, clip.tower, clip.device)
        count = len(clip.texts)
        wanted = range(count) if targets is None else targets
        chosen = resolve_indices(wanted, count, inputs.device).tolist()
        return self._average(
            inputs, lambda copies: self.method.attribute_all(copies.images, chosen)
        )

    def _average(self, images: Tensor, explain: _Explain) -> Tensor:
        """Return the mean of the maps of all copies of images (N, 3, H, W)."""
        path = path_of(self.method)
        if path is not None and getattr(self.method, "variant", None) in CONTRASTING:
            explain = _OneClassFeature(self.forward_func, path, images, explain)
        sums: dict[int, Tensor] = {}
        for copies in self._copies(images):
            maps = _wide(explain(copies))
            frame = self._frame(maps, size_of(copies.images), size_of(images))
            for view, index, copy in zip(copies.views, copies.indices, maps.split(1), strict=True):
                back = view.invert(copy, frame)
                sums[index] = sums[index] + back if index in sums else back
        mean = torch.cat([sums[index] for index in range(len(images))]) / self.num_passes
        return mean.to(images.dtype)

    def _copies(self, images: Tensor) -> Iterator[Copies]:
        """Yield all copies of images, as many at a time as the method explains at once."""
        # Unchanged images come first: all other copies use their embeddings.
        for size in sorted(self._sizes(size_of(images)), key=lambda size: size != size_of(images)):
            resized = _resize(images, size)
            count = self.internal_batch_size or images_per_pass(self.forward_func, resized)
            views = self._views(self.forward_func.tower.patch_size)
            pairs = product(views, range(len(images)))
            while chunk := list(islice(pairs, count)):
                parts = [view.apply(resized[index : index + 1]) for view, index in chunk]
                chosen, indices = zip(*chunk, strict=True)
                yield Copies(torch.cat(parts), chosen, list(indices), resized is not images)

    def _sizes(self, size: Size) -> list[Size]:
        """Return (height, width) in pixels of the copies of images of a size."""
        sizes = []
        for scale in self.scales:
            sides = zip(size, self.forward_func.tower.patch_size, strict=True)
            height, width = (nearest_multiple(scale * side, patch) for side, patch in sides)
            sizes.append(size if scale == 1 else (height, width))
        return sizes

    def _views(self, patch_size: Size) -> list[View]:
        """Return the shifts and flips of the copies of each size, unchanged copies first."""
        steps = range(self.shifts)
        rows, columns = ([patch * k // self.shifts for k in steps] for patch in patch_size)
        flips = (False, True) if self.flip else (False,)
        return [View((row, column), flip) for flip, row, column in product(flips, rows, columns)]

    def _frame(self, maps: Tensor, shown: Size, size: Size) -> Frame:
        """Return where maps of copies of size `shown` lie, and their mean for images of `size`."""
        clip = self.forward_func
        covered = covered_size(clip, maps, shown)
        if size_of(maps) == shown:
            return Frame(shown, covered, size, (1.0, 1.0))
        grids = [clip.tower.grid(*each) for each in self._sizes(size)]
        finest = max(rows for rows, _ in grids), max(columns for _, columns in grids)
        finest = finest[0] * self.shifts, finest[1] * self.shifts
        whole = covered_size(clip, maps.new_empty(1, 1, *finest), size)
        return Frame(shown, covered, finest, (whole[0] / size[0], whole[1] / size[1]))

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.method!r}, scales={self.scales}, shifts={self.shifts}, "
            f"flip={self.flip}), {self.num_passes} passes"
        )


class _OneClassFeature:
    """Explains copies by a dual-path method, with the embeddings of the images themselves.

    Args:
        clip: The classifier.
        path: The method's path.
        images: The images (N, 3, H, W).
        explain: Explains copies by the method.
    """

    def __init__(
        self, clip: ZeroShotClassifier, path: PathConfig, images: Tensor, explain: _Explain
    ) -> None:
        self.clip = clip
        self.path = path
        self.images = images
        self.explain = explain
        self._pooled: dict[int, Tensor] = {}

    def __call__(self, copies: Copies) -> Tensor:
        """Return the maps of copies."""
        outputs: dict[PathConfig, TowerOutput] = {}
        with forward_pass(self.clip, copies.images, [self.path], outputs):
            output = tower_output(self.clip, copies.images, self.path)
            for place, index in copies.originals():
                self._pooled[index] = output.pooled[place]
            pooled = torch.stack([self._embedding(index) for index in copies.indices])
            outputs[self.path] = TowerOutput(output.patches, pooled, output.grid)
            return self.explain(copies)

    def _embedding(self, index: int) -> Tensor:
        """Return the unnormalized embedding (C,) of an image."""
        if index not in self._pooled:
            image = self.images[index : index + 1]
            self._pooled[index] = tower_output(self.clip, image, self.path).pooled[0]
        return self._pooled[index]


def _resize(images: Tensor, size: Size) -> Tensor:
    if size_of(images) == size:
        return images
    resized = F.interpolate(
        _wide(images), size, mode="bicubic", align_corners=False, antialias=True
    )
    return resized.to(images.dtype)


def _wide(values: Tensor) -> Tensor:
    """Return values in float32 or wider: half precision would lose positions between cells."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
