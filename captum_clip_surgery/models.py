"""What is asked of a model itself: to be a CLIP, in one place, and the same throughout a call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from captum_clip_surgery.towers import unwrap

CHANGED = (
    "a parameter of the model was changed during the call, by another thread or a hook: the result "
    "would be half of each model. Train between calls, or explain a copy (copy.deepcopy)"
)


def check_clip(model: object) -> nn.Module:
    """The open_clip model inside whatever wraps it.

    Raises:
        TypeError: no CLIP, or a scripted or sharded one.
    """
    if not isinstance(model, nn.Module):
        hint = "; from_pretrained loads by name" if isinstance(model, str) else ""
        raise TypeError(f"model is a {type(model).__name__}, not an open_clip model{hint}")
    model = unwrap(model)
    asked = ("visual", "encode_image", "encode_text", "logit_scale")
    missing = [name for name in asked if not hasattr(model, name)]
    if missing:
        raise TypeError(
            f"{type(model).__name__} is no open_clip CLIP: it has no {', '.join(missing)}. "
            "Load one with ZeroShotClassifier.from_pretrained, which builds the activation of the "
            "weights; open_clip.create_model_and_transforms builds that of the name"
        )
    check_place([*model.visual.parameters(), model.logit_scale], "image tower")  # type: ignore
    return model


def check_place(parameters: list[Any], what: str) -> None:
    """Raises ValueError for parameters on several devices, or without values."""
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
    """Raises TypeError for layers that gradients do not pass: they would vanish without a word."""
    for name, module in tower.named_modules():
        if callable(getattr(module, "weight", None)):  # what torch's quantised layers have
            raise TypeError(
                f"{name} is quantised, and gradients do not pass {type(module).__module__}."
                f"{type(module).__name__}; take the model as it was before, or a method without "
                "gradients such as ClipSurgery"
            )


@contextmanager
def steady(model: Any, whole: bool = False) -> Iterator[None]:
    """One call, throughout which the image tower, or the `whole` model, has to stay as it is.

    A training step in another thread, or in a hook, leaves results of half the old model and half
    the new one. Parameters count their changes in place, which costs 0.1 ms to ask. What leaves no
    trace in torch (`p.data.mul_()`) is not seen, nor is anything from within a compiled graph.

    Raises:
        ValueError: parameters on several devices, or on meta.
        RuntimeError: a parameter that was changed meanwhile.
    """
    if torch.compiler.is_compiling():
        yield
        return
    watched = model if whole else model.visual
    before, devices = _state(watched)
    if devices != {model.logit_scale.device} or any(device.type == "meta" for device in devices):
        check_place([*watched.parameters(), model.logit_scale], "model" if whole else "image tower")
    try:
        yield
    except RuntimeError as error:  # autograd may have noticed first
        if _state(watched)[0] != before:
            raise RuntimeError(CHANGED) from error
        raise
    check_same(before, _state(watched)[0])


def _state(tower: nn.Module) -> tuple[int, set[torch.device]]:
    """How often parameters were changed in all, and where they are; walked by hand, for speed."""
    changes, devices = 0, set()
    queue = [tower]
    for module in queue:  # which grows as it is walked
        for parameter in module._parameters.values():
            if parameter is not None:
                changes += version_of(parameter)
                devices.add(parameter.device)
        queue += [part for part in module._modules.values() if part is not None]
    return changes, devices


def version_of(tensor: Tensor) -> int:
    """How often a tensor was changed in place; of inference mode, where nobody counts, 0."""
    return 0 if tensor.is_inference() else tensor._version


def check_same(before: object, after: object) -> None:
    """Raises RuntimeError where parameters are not what they were before."""
    if before != after:
        raise RuntimeError(CHANGED)
