"""Shapes for every method: scores of patches for texts, as Captum's two kinds of attribution."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol, overload

import torch
import torch.nn.functional as F
from captum.attr import Attribution, LayerAttribution
from captum.log import log_usage
from torch import Tensor, nn

from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.models import _validation
from captum_clip_surgery.models._guards import assert_parameters_unchanged
from captum_clip_surgery.models._validation import Target


class Explain(Protocol):
    """Images (N, 3, H, W) to maps (N, K, h, w), raw and signed, as `attribute_all` does.

    K are the classifier's texts, or those whose indices are given.
    """

    def __call__(self, inputs: Tensor, targets: Sequence[int] | None = None, /) -> Tensor: ...


#: A classifier to a method on it; TypeError where it is not defined, ImportError without an extra.
Method = Callable[[ZeroShotClassifier], Explain]


class PatchAttribution(Attribution):
    """A method that scores every patch for every text.

    A method implements `scores` alone. Maps are raw and signed; bringing them to a common scale is
    the viewer's choice.
    """

    forward_func: ZeroShotClassifier

    @abstractmethod
    def scores(self, images: Tensor, targets: Tensor) -> Tensor:
        """Scores of patches for texts.

        Args:
            images: (N, 3, H, W), checked.
            targets: indices of texts, (K,) for all images or (N, K).

        Returns:
            (N, K, h, w).
        """

    @abstractmethod
    def finish(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Maps (N, K, h, w) of images of `size` in the shape `attribute_all` returns."""

    @abstractmethod
    def spread(self, maps: Tensor) -> Tensor:
        """Finished maps (N, 1, ., .) in the shape `attribute` returns."""

    @overload
    def attribute(self, inputs: Tensor, target: Target = ...) -> Tensor: ...
    @overload
    def attribute(self, inputs: tuple[Tensor], target: Target = ...) -> tuple[Tensor]: ...

    @log_usage()  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor],
        target: Target = None,
        additional_forward_args: Any = None,
    ) -> Tensor | tuple[Tensor]:
        """The map of one text for each image.

        Args:
            inputs: images (N, 3, H, W), or a tuple of this one tensor.
            target: index of a text (negative counts from the end), a tensor or list of one for
                each image; may be None where there is one text. `clip.index(text)` gives it.
            additional_forward_args: None, for Captum's sake.

        Returns:
            The attribution, raw and signed, in a tuple if the inputs came in one: (N, 1, h, w) for
            `Layer...` classes, otherwise (N, 3, H, W), the map in equal thirds on the channels.

        Raises:
            TypeError, ValueError, IndexError: see `checks`; the message says how to mend it.
            RuntimeError: a training step of the model meanwhile, see `assert_parameters_unchanged`.
        """
        if additional_forward_args is not None:
            raise TypeError("additional_forward_args must be None: texts belong to the classifier")
        if isinstance(inputs, tuple):
            if len(inputs) != 1:
                raise ValueError(f"inputs are a tuple of {len(inputs)}, expected of one tensor")
            return (self.attribute(inputs[0], target),)
        clip = self._check(inputs)
        chosen = _validation.resolve_target(target, len(inputs), len(clip.texts), inputs.device)
        return self.spread(self._maps(inputs, chosen))

    @log_usage()  # type: ignore[untyped-decorator]
    def attribute_all(
        self, inputs: Tensor, targets: Sequence[int] | None = None, check_finite: bool = True
    ) -> Tensor:
        """The maps of many texts, from one pass of the image tower.

        Args:
            inputs: images (N, 3, H, W).
            targets: indices of the texts to return; None is all. Feature surgery lets all of the
                classifier's texts and distractors compete, whatever is returned.
            check_finite: whether images and maps are searched for NaN and infinity, which are
                errors. On a GPU the answer is waited for, once; without the search nothing is,
                for all targets.

        Returns:
            (N, K, h, w) for `Layer...` classes, otherwise (N, K, H, W): one map for each text.

        Raises:
            TypeError, ValueError, IndexError: see `checks`; the message says how to mend it.
            RuntimeError: a training step of the model meanwhile, see `assert_parameters_unchanged`.
        """
        clip = self._check(inputs)
        count = len(clip.texts)
        if targets is None:  # made where the images are
            chosen = torch.arange(count, device=inputs.device)
        else:
            chosen = _validation.resolve_indices(targets, count, inputs.device)
        return self._maps(inputs, chosen, check_finite)

    def begin_at(self, index: int) -> None:
        """Remember the block where the method begins; shaped as a layer, that is its layer."""

    def _check(self, images: Tensor) -> ZeroShotClassifier:
        clip = self.forward_func
        _validation.check_images(images, clip.tower, clip.device, finite=False)
        _validation.check_modes(clip.model)
        return clip

    def _maps(self, images: Tensor, targets: Tensor, finite: bool = True) -> Tensor:
        with assert_parameters_unchanged(self.forward_func.model):
            scores = self.scores(images, targets)
        if finite:
            _validation.check_finite(images, scores, "maps")
        maps = self.finish(scores, (images.shape[-2], images.shape[-1]))
        return maps.to(images.dtype)


class LayerShapeMixin(PatchAttribution, LayerAttribution):
    """Maps on the patch grid, as Captum's layer attributions are shaped.

    `layer` is the block where the method begins; None is the last one.
    """

    def __init__(self, forward_func: ZeroShotClassifier, layer: nn.Module | None = None) -> None:
        blocks = check_classifier(forward_func).tower.blocks
        LayerAttribution.__init__(self, forward_func, blocks[-1] if layer is None else layer)

    def begin_at(self, index: int) -> None:
        self.layer = self.forward_func.tower.blocks[index]

    def finish(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        return maps

    def spread(self, maps: Tensor) -> Tensor:
        return maps


class InputShapeMixin(PatchAttribution):
    """Maps shaped like the images, as Captum's input attributions are.

    `attribute` carries the map in equal thirds on the three channels: their sum, which Captum's
    visualization takes, is the map of `attribute_all`.
    """

    def __init__(self, forward_func: ZeroShotClassifier) -> None:
        super().__init__(check_classifier(forward_func))

    def finish(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        rows, columns = self.forward_func.tower.patch_size
        seen = (maps.shape[-2] * rows, maps.shape[-1] * columns)
        maps = F.interpolate(maps, seen, mode="bilinear", align_corners=False)
        # A tower whose native size its patches do not divide never sees the last pixels.
        return F.pad(maps, (0, size[1] - seen[1], 0, size[0] - seen[0]))

    def spread(self, maps: Tensor) -> Tensor:
        return (maps / 3).expand(-1, 3, -1, -1).contiguous()


def check_classifier(forward_func: object) -> ZeroShotClassifier:
    if not isinstance(forward_func, ZeroShotClassifier):
        raise TypeError(
            f"forward_func is a {type(forward_func).__name__}, expected a ZeroShotClassifier; "
            "wrap the model: ZeroShotClassifier(model, texts)"
        )
    return forward_func
