"""Everything of a model that its user can see, to tell whether anything touched it.

A snapshot holds the bits of parameters and buffers, and the identity of everything else a module
has, so that whatever is swapped, cast, hooked or switched shows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

Snapshot = dict[tuple[str, ...], Any]


def snapshot(model: nn.Module) -> Snapshot:
    """Everything of a model that its user can see, by place."""
    seen: Snapshot = {}
    for name, module in model.named_modules():
        seen["module", name] = Same(module)
        seen["training", name] = module.training
        for key, value in module.__dict__.items():
            seen["attribute", name, key] = Same(value)
            # Hooks, parameters, buffers and submodules stand in dictionaries.
            if isinstance(value, dict):
                seen["contents", name, key] = [(k, Same(v)) for k, v in list(value.items())]
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        seen["tensor", name] = Same(tensor)
        seen["storage", name] = (tensor.data_ptr(), tensor.shape, tensor.stride())
        seen["kind", name] = (tensor.dtype, tensor.device, tensor.requires_grad)
        seen["version", name] = tensor._version
        seen["grad", name] = Same(tensor.grad)
        seen["grad bits", name] = Bits(tensor.grad)
    for name, value in model.state_dict().items():
        seen["bits", name] = content(value)
    return seen


def content(value: Any) -> Any:
    """Bits, also where quantised layers have a pair of tensors, new at each look, or a type."""
    if isinstance(value, tuple):
        return [content(each) for each in value]
    return Bits(value) if isinstance(value, Tensor) else Same(value)


class Same:
    """Equal to itself alone; holds the object, so that its place in memory is not used anew."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    __hash__ = None  # type: ignore[assignment]


class Bits:
    """The values of a tensor at one moment."""

    def __init__(self, tensor: Tensor | None) -> None:
        self.tensor = None if tensor is None else tensor.detach().clone()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Bits) or self.tensor is None or other.tensor is None:
            return isinstance(other, Bits) and self.tensor is other.tensor
        return self.tensor.dtype == other.tensor.dtype and torch.equal(self.tensor, other.tensor)

    __hash__ = None  # type: ignore[assignment]


def differences(before: Snapshot, after: Snapshot) -> list[tuple[str, ...]]:
    """The places where two snapshots differ."""
    return [key for key in before | after if before.get(key, ...) != after.get(key, ...)]
