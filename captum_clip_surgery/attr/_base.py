"""Base classes of every method: scores of patches for texts, in Captum's two shapes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, overload

import torch
from captum.attr import Attribution, LayerAttribution
from captum.log import log_usage
from torch import Tensor, nn

from captum_clip_surgery.attr._coverage import upsample_to_image
from captum_clip_surgery.attr._engine import Explainer, forward_pass
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.models import _validation
from captum_clip_surgery.models._internals import unwrap_parallel
from captum_clip_surgery.models._validation import Target
from captum_clip_surgery.models.image import PathConfig

#: Makes a method for a classifier. It raises TypeError where the method is not defined, and
#: ImportError where an extra is missing.
Method = Callable[[ZeroShotClassifier], Explainer]


class PatchAttribution(Attribution):
    """Base class of methods that score every patch of an image for every text.

    A method implements `scores` only; `LayerShapeMixin` and `InputShapeMixin` turn them into
    attributions. Maps are raw and signed: scaling them is left to the viewer.

    Maps of dense methods can be differentiated if the images, or the features given to
    `from_features`, require gradients: then with respect to the model's parameters as well.
    Otherwise they carry no autograd graph, even outside of `torch.no_grad`.
    """

    forward_func: ZeroShotClassifier
    #: The method's name in figures and tables, as its paper spells it.
    method_name: ClassVar[str | None] = None

    @classmethod
    def get_name(cls) -> str:
        """Return the method's name as its paper spells it, for Captum's figures and tables."""
        name = cls.method_name or cls.__name__.removeprefix("Layer")
        return f"Layer {name}" if issubclass(cls, LayerAttribution) else name

    @property
    def path_config(self) -> PathConfig | None:
        """The tower's path that the scores come from, or None for a method with its own pass.

        Methods with a path share one forward pass in `attribute_many`.
        """
        return None

    @abstractmethod
    def scores(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the scores of patches for texts.

        Args:
            images: Images (N, 3, H, W), checked.
            targets: Indices of texts, (K,) for all images or (N, K).

        Returns:
            Scores (N, K, h, w).
        """

    @abstractmethod
    def _upsample(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Bring maps (N, K, h, w) of images of `size` to the shape `attribute_all` returns."""

    @abstractmethod
    def _expand_channels(self, maps: Tensor) -> Tensor:
        """Bring upsampled maps (N, 1, ., .) to the shape `attribute` returns."""

    def _set_layer(self, index: int) -> None:
        """Record the block where the method starts; in the layer shape it is `layer`."""

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
        """Return the map of one text per image.

        Args:
            inputs: Images (N, 3, H, W), or a tuple that holds only this tensor. With
                `requires_grad_()`, maps of dense methods carry gradients to images and parameters.
            target: Index of a text, where negative values count from the end, or a tensor or list
                of one index per image. Optional if there is one text. `clip.index(text)` returns
                it.
            additional_forward_args: Must be None; part of Captum's signature.

        Returns:
            The attribution, raw and signed, as a tuple if the inputs were one: (N, 1, h, w) for
            `Layer...` classes, otherwise (N, 3, H, W) with the map in equal thirds on the channels.

        Raises:
            TypeError: If `inputs` or `target` has the wrong type, or `additional_forward_args` is
                given.
            ValueError: If the images do not fit the model or contain NaN or infinity, or `target`
                does not fit the batch.
            IndexError: If a target is out of range.
            RuntimeError: If a parameter of the model changes during the call.
        """
        images = single_input(inputs, additional_forward_args)
        if isinstance(inputs, tuple):
            return (self.attribute(images, target),)
        clip = self.forward_func
        with forward_pass(clip, images):
            chosen = _validation.resolve_target(target, len(images), len(clip.texts), images.device)
            return self._expand_channels(self._maps(images, chosen))

    @log_usage()  # type: ignore[untyped-decorator]
    def attribute_all(
        self, inputs: Tensor, targets: Sequence[int] | None = None, check_finite: bool = True
    ) -> Tensor:
        """Return the maps of many texts, from one forward pass of the image tower.

        Args:
            inputs: Images (N, 3, H, W). With `requires_grad_()`, maps of dense methods carry
                gradients to images and parameters.
            targets: Indices of the texts to return; None means all. Whatever is returned, all
                of the classifier's texts and distractors compete in feature surgery.
            check_finite: Whether to raise on NaN and infinity in images and maps. On a GPU this
                waits for the result once; without it, and with all targets, nothing waits, except
                for `DirectEffect`, which checks that its parts sum up.

        Returns:
            One map per text: (N, K, h, w) for `Layer...` classes, otherwise (N, K, H, W).

        Raises:
            TypeError: If `inputs` or `targets` has the wrong type.
            ValueError: If the images do not fit the model, or images or maps contain NaN or
                infinity.
            IndexError: If a target is out of range.
            RuntimeError: If a parameter of the model changes during the call.
        """
        clip = self.forward_func
        with forward_pass(clip, inputs):
            count = len(clip.texts)
            if targets is None:  # made where the images are
                chosen = torch.arange(count, device=inputs.device)
            else:
                chosen = _validation.resolve_indices(targets, count, inputs.device)
            return self._maps(inputs, chosen, check_finite)

    def _maps(self, images: Tensor, targets: Tensor, check_finite: bool = True) -> Tensor:
        return self._shape(images, self.scores(images, targets), check_finite)

    def _shape(self, images: Tensor, scores: Tensor, check_finite: bool = True) -> Tensor:
        if check_finite:
            _validation.check_finite(images, scores, "maps")
        maps = self._upsample(scores, (images.shape[-2], images.shape[-1]))
        return maps.to(images.dtype)


class LayerShapeMixin(PatchAttribution, LayerAttribution):
    """Maps on the patch grid, shaped as Captum's layer attributions are.

    Args:
        forward_func: The classifier.
        layer: The block where the method starts; None means the last one.
    """

    def __init__(self, forward_func: ZeroShotClassifier, layer: nn.Module | None = None) -> None:
        blocks = check_classifier(forward_func).tower.blocks
        LayerAttribution.__init__(self, forward_func, blocks[-1] if layer is None else layer)

    def _set_layer(self, index: int) -> None:
        self.layer = self.forward_func.tower.blocks[index]

    def _upsample(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        return maps

    def _expand_channels(self, maps: Tensor) -> Tensor:
        return maps


class InputShapeMixin(PatchAttribution):
    """Maps shaped like the images, as Captum's input attributions are.

    `attribute` returns the map in equal thirds on the three channels: their sum, which Captum's
    visualization takes, is the map of `attribute_all`.

    Args:
        forward_func: The classifier.
    """

    def __init__(self, forward_func: ZeroShotClassifier) -> None:
        super().__init__(check_classifier(forward_func))

    def _upsample(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        return upsample_to_image(self.forward_func, maps, size)

    def _expand_channels(self, maps: Tensor) -> Tensor:
        return (maps / 3).expand(-1, 3, -1, -1).contiguous()


def single_input(inputs: Tensor | tuple[Tensor], additional_forward_args: Any) -> Tensor:
    """Return the tensor of images in Captum's `inputs`.

    Raises:
        TypeError: If `additional_forward_args` is given.
        ValueError: If `inputs` is a tuple of another length than one.
    """
    if additional_forward_args is not None:
        raise TypeError("additional_forward_args must be None: texts belong to the classifier")
    if not isinstance(inputs, tuple):
        return inputs
    if len(inputs) != 1:
        raise ValueError(
            f"inputs must be one tensor or a tuple of one, got a tuple of {len(inputs)}"
        )
    return inputs[0]


def check_classifier(forward_func: object) -> ZeroShotClassifier:
    """Return the classifier.

    Raises:
        TypeError: If `forward_func` is not a `ZeroShotClassifier`.
    """
    if isinstance(forward_func, ZeroShotClassifier):
        return forward_func
    kind = type(forward_func).__name__
    if isinstance(unwrap_parallel(forward_func), ZeroShotClassifier):
        raise TypeError(
            f"forward_func must be a ZeroShotClassifier, got one inside {kind}; pass the "
            "classifier itself. To compile, compile a method's attribute_all; to use several "
            "devices, make a classifier on each"
        )
    raise TypeError(
        f"forward_func must be a ZeroShotClassifier, got {kind}; wrap the model: "
        "ZeroShotClassifier(model, texts)"
    )
