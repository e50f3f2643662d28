"""One forward pass of the image tower for any number of methods.

`forward_pass` checks images and model once and keeps what the tower computed of them; a method asks
for it by `tower_output`. `attribute_many` runs several methods within one such pass: each through
its own `attribute_all`, so that whatever a subclass overrides takes effect.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor

from captum_clip_surgery._utils.tensors import version_of
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.functional import normalized
from captum_clip_surgery.models._guards import assert_parameters_unchanged
from captum_clip_surgery.models._internals import are_transforms_active
from captum_clip_surgery.models._validation import check_images, check_modes
from captum_clip_surgery.models.image import PathConfig, TowerOutput


class Explain(Protocol):
    """Images (N, 3, H, W) to raw, signed maps (N, K, h, w), as `attribute_all` returns them.

    K are the classifier's texts, or those whose indices are given.
    """

    def __call__(self, inputs: Tensor, targets: Sequence[int] | None = None, /) -> Tensor: ...


class MultiTextAttribution(Protocol):
    """An object whose `attribute_all` maps images to the maps of many texts."""

    @property
    def attribute_all(self) -> Explain:
        """The method's own entry point."""


#: What computes maps on one classifier: an attribution, or a function like its `attribute_all`.
Explainer = MultiTextAttribution | Explain

#: The outputs of one pass, by the path that gave them.
Outputs = MutableMapping[PathConfig, TowerOutput]


class ForwardPass:
    """A batch of images on its way through a classifier's image tower.

    Args:
        clip: The classifier.
        images: Images (N, 3, H, W), checked.
        configs: Paths to compute in the same pass as the first one requested.
        outputs: Outputs already computed for these images; new ones are added.
    """

    def __init__(
        self,
        clip: ZeroShotClassifier,
        images: Tensor,
        configs: Sequence[PathConfig] = (),
        outputs: Outputs | None = None,
    ) -> None:
        self.clip = clip
        self.images = images
        self._configs = tuple(configs)
        self._outputs: Outputs = {} if outputs is None else outputs

    def output(self, config: PathConfig) -> TowerOutput:
        """Return the tower's output by one path, computing all configured paths on first use."""
        if config not in self._outputs:
            wanted = dict.fromkeys([config, *self._configs])
            missing = [path for path in wanted if path not in self._outputs]
            tower = self.clip.tower
            computed = tower.paths(self.images.to(tower.dtype), missing)
            self._outputs.update(zip(missing, computed, strict=True))
        return self._outputs[config]

    def image_features(self) -> Tensor:
        """Return the L2-normalized embeddings (N, C) of the images, from any output there is."""
        for output in self._outputs.values():
            return normalized(output.pooled)
        return self.clip.image_features(self.images)


#: The pass of the block that runs now, and the version of its images.
_current: ContextVar[tuple[ForwardPass, int] | None] = ContextVar("forward_pass", default=None)


def _joined(clip: ZeroShotClassifier, images: Tensor) -> ForwardPass | None:
    """Return the current pass if it is of this model and of these images, unchanged."""
    current = _current.get()
    if current is None:
        return None
    forward, version = current
    same = clip.shares_tower(forward.clip) and images is forward.images
    return forward if same and version_of(images) == version else None


@contextmanager
def forward_pass(
    clip: ZeroShotClassifier,
    images: Tensor,
    configs: Sequence[PathConfig] = (),
    outputs: Outputs | None = None,
) -> Iterator[ForwardPass]:
    """Check images and model, and share one pass of the tower within the block.

    A block inside another one on the same images and model joins it: nothing is checked or computed
    twice. Gradients are recorded only if the images or the text features require them.

    Args:
        clip: The classifier.
        images: Images (N, 3, H, W).
        configs: Paths that will be requested.
        outputs: Outputs already computed for these images by this tower; new ones are added.

    Raises:
        TypeError: If `images` is not a dense floating-point tensor.
        ValueError: If the images do not fit the model, or it is in train mode where that matters.
        RuntimeError: If a parameter of the model changes before the end of the block.
    """
    compiling = torch.compiler.is_compiling()  # context variables cannot be traced
    outer = None if compiling else _joined(clip, images)
    if outer is not None:
        yield outer
        return
    check_images(images, clip.tower, clip.device, finite=False)
    check_modes(clip.model)
    forward = ForwardPass(clip, images, configs, outputs)
    token = None if compiling else _current.set((forward, version_of(images)))
    # The parameters of nearly every model require gradients: maps that are not differentiated would
    # each keep the activations of all blocks.
    differentiable = images.requires_grad or clip.text_features_require_grad
    recorded = torch.is_grad_enabled() and (differentiable or are_transforms_active())
    try:
        with assert_parameters_unchanged(clip.model), torch.set_grad_enabled(recorded):
            yield forward
    finally:
        if token is not None:
            _current.reset(token)


def tower_output(clip: ZeroShotClassifier, images: Tensor, config: PathConfig) -> TowerOutput:
    """Return the tower's output for images by one path; reuse the current pass of these images.

    Args:
        clip: The classifier.
        images: Images (N, 3, H, W).
        config: The path.

    Raises:
        TypeError: See `forward_pass`.
        ValueError: See `forward_pass`.
        RuntimeError: See `forward_pass`.
    """
    with forward_pass(clip, images, [config]) as forward:
        return forward.output(config)


def path_of(method: Any) -> PathConfig | None:
    """Return the path whose output a method shares with others, or None."""
    return getattr(method, "path_config", None)


def explain_of(method: Explainer) -> Explain:
    """Return a method as a function of images and targets."""
    return getattr(method, "attribute_all", method)  # type: ignore[arg-type]


def attribute_many(
    methods: Mapping[str, Explainer],
    images: Tensor,
    targets: Sequence[int] | None = None,
    outputs: Outputs | None = None,
) -> dict[str, Tensor]:
    """Return the maps of several methods for the same images.

    Methods with a `path_config` share one forward pass of the image tower; the others run their
    own. Every method runs through its own `attribute_all`.

    Args:
        methods: Methods by name, all on one model.
        images: Images (N, 3, H, W).
        targets: Indices of texts; None means all.
        outputs: Outputs already computed for these images by this tower; new ones are added, so
            that a later call with other texts needs no pass.

    Returns:
        Maps by name, each (N, K, h, w) or (N, K, H, W) as the method shapes them.

    Raises:
        TypeError: If a method raises it.
        ValueError: If a method raises it, or methods that share a pass are on different models.
        IndexError: If a target is out of range.
        RuntimeError: If a parameter of the model changes during the call.
    """
    sharing: list[Any] = [method for method in methods.values() if path_of(method) is not None]
    if not sharing:
        return {name: explain_of(method)(images, targets) for name, method in methods.items()}
    clip: ZeroShotClassifier = sharing[0].forward_func
    if any(not clip.shares_tower(method.forward_func) for method in sharing):
        raise ValueError(
            "the methods belong to different models or registers, which cannot share a forward "
            "pass; call attribute_many once for each"
        )
    configs = list(dict.fromkeys(method.path_config for method in sharing))
    with forward_pass(clip, images, configs, outputs):
        return {name: explain_of(method)(images, targets) for name, method in methods.items()}


def attribute_each(
    methods: Mapping[str, Explainer], images: Tensor, targets: Sequence[Sequence[int]]
) -> list[dict[str, Tensor]]:
    """Return the maps of several methods, for other texts per image.

    Methods that share a pass compute the texts of all images at once; the others are asked image by
    image for its own texts, since their cost grows with the number of texts.

    Args:
        methods: Methods by name, all on one model.
        images: Images (N, 3, H, W).
        targets: For each image, indices of texts.

    Returns:
        For each image, maps (K, h, w) by name; empty for an image without targets.
    """
    wanted = sorted({target for row in targets for target in row})
    places = {target: place for place, target in enumerate(wanted)}
    sharing = {name: method for name, method in methods.items() if path_of(method) is not None}
    shared = attribute_many(sharing, images, wanted) if sharing and wanted else {}
    results = []
    for index, row in enumerate(targets):
        maps: dict[str, Tensor] = {}
        chosen = [places[target] for target in row]
        for name, method in methods.items() if row else ():
            if name in shared:
                maps[name] = shared[name][index, chosen]
            else:
                maps[name] = explain_of(method)(images[index : index + 1], row)[0]
        results.append(maps)
    return results
