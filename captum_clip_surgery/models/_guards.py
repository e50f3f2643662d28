"""Checks that a model is a CLIP in one place, and stays the same throughout a call."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn

from captum_clip_surgery.models._changes import (
    Change,
    list_changes,
    raise_changed,
    unexplained_changes,
)
from captum_clip_surgery.models._dual_encoders import TransformersCLIP, family_of
from captum_clip_surgery.models._internals import parameters_of
from captum_clip_surgery.models._state import ModelState, read_state
from captum_clip_surgery.models.image._registry import build_tower, unwrap


def check_clip(model: object) -> nn.Module:
    """Check that a model is a CLIP with all its weights in one place.

    Returns:
        The model inside compiled, data-parallel and peft's wrappers; one of transformers with
        open_clip's interface.

    Raises:
        TypeError: If the model is not a CLIP, or is scripted or sharded.
        ValueError: If parameters are on several devices or on meta.
    """
    if not isinstance(model, nn.Module):
        hint = "; from_pretrained loads by name" if isinstance(model, str) else ""
        raise TypeError(
            f"model is a {type(model).__name__}, not a model of open_clip or transformers{hint}"
        )
    clip: nn.Module = unwrap(model)
    if not isinstance(clip, TransformersCLIP) and family_of(clip):
        clip = TransformersCLIP(clip)
        warnings.warn(
            f"the preprocessing of {type(clip.source).__name__} is not known; using "
            f"mean={clip.family.mean} and std={clip.family.std}. Pass processor=",
            stacklevel=4,
        )
    required = ("visual", "encode_image", "encode_text", "logit_scale")
    missing = [name for name in required if not hasattr(clip, name)]
    if missing:
        raise TypeError(
            f"model must be a CLIP of open_clip or transformers, but {type(clip).__name__} has no "
            f"{', '.join(missing)}. Load one with ZeroShotClassifier.from_pretrained, which builds "
            "the activation of the weights; open_clip.create_model_and_transforms builds that of "
            "the name"
        )
    check_place([*clip.visual.parameters(), clip.logit_scale], "image tower")  # type: ignore
    return clip


def check_place(parameters: list[Any], what: str) -> None:
    """Check that parameters are on one device and have values.

    Args:
        parameters: The parameters.
        what: Name of the part they belong to, for the message.

    Raises:
        ValueError: If they are on several devices or on meta.
    """
    devices = sorted({str(parameter.device) for parameter in parameters})
    if "meta" in devices:
        raise ValueError(
            f"parameters of the {what} are on {' and '.join(devices)}, and on meta they have no "
            "values; load the weights first (model.to_empty(device=...), then load_state_dict)"
        )
    if len(devices) > 1:
        raise ValueError(
            f"parameters of the {what} and the logit scale are on {' and '.join(devices)}; bring "
            "them to one device: model.to(device)"
        )


def check_differentiable(tower: nn.Module) -> None:
    """Check that gradients pass all layers of a tower.

    Raises:
        TypeError: If a layer is quantized, so that gradients would vanish without an error.
    """
    for name, module in tower.named_modules():
        if callable(getattr(module, "weight", None)):  # as in torch's quantized layers
            raise TypeError(
                f"{name} is quantized, and gradients do not pass {type(module).__module__}."
                f"{type(module).__name__}; use the model as it was before quantization, or a "
                "method without gradients such as CLIPSurgery"
            )


class ModelWatch:
    """A model's state at one moment, to compare later states with.

    Args:
        model: The model.
        whole: Whether to watch the text tower as well as the image tower.
    """

    def __init__(self, model: Any, whole: bool = False) -> None:
        self._model, self._whole = model, whole
        self._before = read_state(self._watched())

    def check(self) -> None:
        """Check that the model is unchanged.

        What modules do to themselves as they run (caches, counters, kept tensors) is told from
        changes by one more pass of an image, which runs only if there is something to tell.

        Raises:
            RuntimeError: If something that determines results has changed; the message names it.
        """
        after = self._read()
        raise_changed(unexplained_changes(self._before, after, self._rerun))

    def changes(self) -> list[Change]:
        """List what has changed, without the attributes that modules may set as they run."""
        return [c for c in list_changes(self._before, self._read()) if c.module is None]

    def check_devices(self) -> None:
        """Check that all parameters are on one device and have values.

        Raises:
            ValueError: If they are on several devices or on meta.
        """
        named = (p for module in self._before.modules for p in parameters_of(module).values())
        parameters = [p for p in named if p is not None]
        device = self._model.logit_scale.device
        if device.type == "meta" or any(p.device != device for p in parameters):
            what = "model" if self._whole else "image tower"
            check_place([*parameters, self._model.logit_scale], what)

    def _watched(self) -> nn.Module:
        return self._model if self._whole else self._model.visual

    def _read(self) -> ModelState:
        return read_state(self._watched(), previous=self._before)

    def _rerun(self) -> tuple[ModelState, None]:
        # If the pass fails, nothing is known to be rewritten, and every change counts.
        with suppress(Exception), torch.no_grad():
            _run_once(self._model, self._whole)
        return self._read(), None


@contextmanager
def assert_parameters_unchanged(model: Any, whole: bool = False) -> Iterator[None]:
    """Raise if the model changes within the block.

    A training step, another adapter or another mode, set by another thread or a hook, would leave
    results that are half of the old model and half of the new one. Reading the state of ViT-B/16's
    image tower twice takes 1.7 ms. Not detected: writes through `p.data` (`p.data.mul_()`; but
    `p.data = new` is), what is changed and changed back, and changes from within a compiled graph.

    Args:
        model: An open_clip model.
        whole: Whether to watch the text tower as well as the image tower.

    Raises:
        ValueError: If parameters are on several devices or on meta.
        RuntimeError: If something that determines results changes within the block.
    """
    if torch.compiler.is_compiling():
        yield
        return
    watch = ModelWatch(model, whole)
    watch.check_devices()
    try:
        yield
    except (RuntimeError, ValueError) as error:  # autograd or a check may have noticed first
        raise_changed(watch.changes(), error)
        raise
    watch.check()


def _run_once(model: Any, whole: bool) -> None:
    tower = build_tower(model.visual)
    device = model.logit_scale.device
    tower.encode(torch.zeros(1, 3, *tower.native_size, dtype=tower.dtype, device=device))
    if whole:
        length = getattr(model, "text", model).context_length
        model.encode_text(torch.zeros(1, length, dtype=torch.long, device=device))
