"""See quickly that modules still hold the same objects, without reading what these contain."""

from __future__ import annotations

from itertools import chain
from operator import is_, itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from captum_clip_surgery._utils.tensors import version_of
from captum_clip_surgery.models._internals import HOOKS

#: Entries of `module.__dict__` that hold other things by name.
REGISTRIES = ("_parameters", "_buffers", "_modules")
#: A tensor's identity, address, version, shape and strides.
TensorEntry = tuple[int, int, int, tuple[int, ...], tuple[int, ...]]
Table = dict[str, Any]

_registries = itemgetter(*REGISTRIES)
_hooks = itemgetter(*HOOKS)


class HeldObjects:
    """What modules held when they were read, to be compared by identity.

    Attributes:
        modules: The modules.
        kinds: Their classes.
        sizes: Sizes of each module's `__dict__` and `REGISTRIES`.
        names: Their keys.
        values: Their values.
        tensors: Parameters, buffers and tensors among the attributes.
        entries: What was read of each tensor.
        changeable: Attributes that can change in place, each with what was read of it.
        is_partial: Whether there are hooks, or tensors that wrap others, which only a full reading
            compares.
    """

    def __init__(self) -> None:
        self.modules: list[nn.Module] = []
        self.kinds: list[type] = []
        self.sizes: list[int] = []
        self.names: list[str] = []
        self.values: list[Any] = []
        self.tensors: list[Tensor] = []
        self.entries: list[TensorEntry] = []
        self.changeable: list[tuple[Any, Any]] = []
        self.is_partial = False

    def add(self, module: nn.Module) -> None:
        """Add a module, before its content is read: what changes meanwhile must look replaced."""
        own = module.__dict__
        self.modules.append(module)
        self.kinds.append(type(module))
        self.is_partial |= has_hooks(own)
        for table in (own, *_registries(own)):
            self.sizes.append(len(table))
            self.names += table
            self.values += table.values()

    def are_current(self) -> bool:
        """Return whether nothing was replaced, no tensor was changed, and there are no hooks."""
        dicts = [module.__dict__ for module in self.modules]
        tables = [table for own in dicts for table in (own, *_registries(own))]
        return (
            not self.is_partial
            and all(map(is_, map(type, self.modules), self.kinds))
            and not any(map(has_hooks, dicts))
            and list(map(len, tables)) == self.sizes
            and list(chain.from_iterable(tables)) == self.names
            and all(map(is_, chain.from_iterable(map(dict.values, tables)), self.values))
            and list(map(tensor_entry, self.tensors)) == self.entries
        )


def has_hooks(own: Table) -> bool:
    """Return whether a module has hooks, given its `__dict__`."""
    return any(_hooks(own))


def tensor_entry(tensor: Tensor) -> TensorEntry:
    """Return a tensor's identity, address, version, shape and strides."""
    strides = tensor.stride() if tensor.layout is torch.strided else ()
    return id(tensor), _address(tensor), version_of(tensor), tensor.shape, strides


def _address(tensor: Tensor) -> int:
    try:
        return tensor.data_ptr()
    except RuntimeError:  # without memory of its own: sparse, or a wrapper of other tensors
        return 0
