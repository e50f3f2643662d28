"""What is asked of a model itself: to be a CLIP, in one place, and the same throughout a call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn

from captum_clip_surgery.models._changes import Change, changes, unexplained
from captum_clip_surgery.models._state import State, read_state
from captum_clip_surgery.models.image import adapt, unwrap

CHANGED = (
    "by another thread, a hook or the model itself: the result would be half of each model. Change "
    "it between calls, or explain a copy (copy.deepcopy)"
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
                "gradients such as CLIPSurgery"
            )


class Watch:
    """A model's state at one moment, to which later ones are held.

    Args:
        model: the model.
        whole: whether the text tower counts as well as the image tower.
    """

    def __init__(self, model: Any, whole: bool = False) -> None:
        self._model, self._whole = model, whole
        self._before = read_state(self._watched())

    def check(self) -> None:
        """Check that the model is what it was.

        What modules do to themselves when they run (caches, counters, kept tensors) is told from
        changes by a pass of one small image, which is made only if there is something to tell.

        Raises:
            RuntimeError: something that determines results was changed; the message names it.
        """
        after = self._read()
        check_same(unexplained(self._before, after, self._rerun))

    def changed(self) -> list[Change]:
        """List what differs now, without the attributes that modules may set as they run."""
        return [c for c in changes(self._before, self._read()) if c.module is None]

    def check_devices(self) -> None:
        """Raises ValueError for parameters on several devices, or without values."""
        named = (p for m in self._before.modules for p in m._parameters.values())
        parameters = [p for p in named if p is not None]
        device = self._model.logit_scale.device
        if device.type == "meta" or any(p.device != device for p in parameters):
            what = "model" if self._whole else "image tower"
            check_place([*parameters, self._model.logit_scale], what)

    def _watched(self) -> nn.Module:
        return self._model if self._whole else self._model.visual

    def _read(self) -> State:
        return read_state(self._watched(), previous=self._before)

    def _rerun(self) -> tuple[State, None]:
        # If the pass fails, nothing is known to be rewritten, and every change counts.
        with suppress(Exception), torch.no_grad():
            run_once(self._model, self._whole)
        return self._read(), None


@contextmanager
def assert_parameters_unchanged(model: Any, whole: bool = False) -> Iterator[None]:
    """One call, throughout which the image tower, or the `whole` model, has to stay as it is.

    A training step, a turned adapter or another mode, set by another thread or a hook, leave
    results of half the old model and half the new one. Reading the state of ViT-B/16's image tower
    twice takes 1.6 ms. Not seen: writes through `p.data` (`p.data.mul_()`; `p.data = new` is), what
    is changed and changed back, and anything from within a compiled graph.

    Raises:
        ValueError: parameters on several devices, or on meta.
        RuntimeError: something that determines results was changed meanwhile.
    """
    if torch.compiler.is_compiling():
        yield
        return
    watch = Watch(model, whole)
    watch.check_devices()
    try:
        yield
    except (RuntimeError, ValueError) as error:  # autograd, or a check, may have noticed first
        check_same(watch.changed(), error)
        raise
    watch.check()


def run_once(model: Any, whole: bool) -> None:
    """Pass one blank image, and one blank text for the `whole` model."""
    tower = adapt(model.visual)
    device = model.logit_scale.device
    tower.encode(torch.zeros(1, 3, *tower.native_size, dtype=tower.dtype, device=device))
    if whole:
        length = getattr(model, "text", model).context_length
        model.encode_text(torch.zeros(1, length, dtype=torch.long, device=device))


def check_same(found: Sequence[Change], cause: Exception | None = None) -> None:
    """Raises RuntimeError for changes."""
    if found:
        raise RuntimeError(f"{found[0]}, {CHANGED}") from cause
