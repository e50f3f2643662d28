"""A module's settings by content, as another process would read them too."""

from __future__ import annotations

import functools
import hashlib
import sys
import types
from collections import deque
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from captum_clip_surgery.models._blocks import has_hooks
from captum_clip_surgery.models._state import PLAIN, REGISTRIES

#: Packages whose version says what their code does.
RELEASED = ("captum_clip_surgery", "open_clip", "peft", "timm", "torch", "transformers")
DEPTH = 8  # of objects within objects


class UntellableError(Exception):
    """Part of a text tower that no digest tells apart in another process."""


class Contents:
    """Contents of modules as JSON, with the tensors and the packages of classes met on the way."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.packages: set[str] = set()
        self._kinds: dict[type, list[Any]] = {}

    def of_module(self, place: str, module: nn.Module) -> list[Any]:
        """A module's class, mode and attributes.

        Raises:
            UntellableError: hooks, a replaced method, or an attribute that cannot be told.
        """
        if has_hooks([module]):
            raise UntellableError(f"{place} has hooks")
        attributes = {
            name: self.of(f"{place}.{name}", value)
            for name, value in vars(module).items()
            if name not in REGISTRIES and not name.startswith("__")
        }
        return [place, self._kind(place, type(module)), module.training, attributes]

    def of(self, place: str, value: Any, num_blocks: int = 0) -> Any:
        """A value as JSON.

        Raises:
            UntellableError: a value that means nothing outside this process.
        """
        if type(value) in PLAIN:
            return [type(value).__name__, repr(value)]
        if num_blocks > DEPTH:
            raise UntellableError(f"{place} lies too deep")
        if type(value) in (Tensor, nn.Parameter):
            self.tensors.append(value)
            return ["tensor", str(value.dtype), list(value.shape)]
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            return [
                "array",
                str(value.dtype),
                value.shape,
                hashlib.sha256(value.tobytes()).hexdigest(),
            ]
        if isinstance(value, type):
            return ["class", *self._kind(place, value)]
        if isinstance(value, nn.Module):
            raise UntellableError(f"{place} is a module outside the tower's tree of modules")
        if isinstance(value, (types.FunctionType, types.BuiltinFunctionType)):
            return self._function(place, value)
        if isinstance(value, functools.partial):
            parts = (value.func, value.args, value.keywords)
            return ["partial", *(self.of(place, part, num_blocks + 1) for part in parts)]
        if isinstance(value, Enum):
            return ["enum", *self._kind(place, type(value)), value.name]
        return self._object(place, value, num_blocks + 1)

    def _object(self, place: str, value: Any, num_blocks: int) -> Any:
        kind = self._kind(place, type(value))
        if isinstance(value, dict):
            items = [
                [self.of(place, k, num_blocks), self.of(place, v, num_blocks)]
                for k, v in value.items()
            ]
            return ["dict", kind, items]
        if isinstance(value, (list, tuple, deque)):
            return ["list", kind, [self.of(place, part, num_blocks) for part in value]]
        if isinstance(value, (set, frozenset)):
            return ["set", kind, sorted(repr(self.of(place, part, num_blocks)) for part in value)]
        if _is_told_by_attributes(value):
            return ["object", kind, self.of(place, vars(value), num_blocks)]
        raise UntellableError(f"{place} is a {type(value).__name__}")

    def _function(self, place: str, value: Any) -> list[str]:
        """A function by its name, if that leads to it."""
        module, name = value.__module__ or "", value.__qualname__
        found: Any = sys.modules.get(module)
        for part in name.split("."):
            found = getattr(found, part, None)
        if found is not value and not isinstance(value, types.BuiltinFunctionType):
            raise UntellableError(f"{place} is a function of its own")
        return ["function", name, self._origin(place, module)]

    def _kind(self, place: str, kind: type) -> list[Any]:
        """A class and its bases: where each is defined, and what stands for its methods."""
        if kind in self._kinds:
            return self._kinds[kind]
        told: list[Any] = [kind.__qualname__]
        for base in kind.__mro__[:-1]:
            told.append(self._origin(place, base.__module__))
            if base is not nn.Module:  # to which libraries add methods as they are imported
                told += self._members(f"{place}: {base.__name__}", base)
        return self._kinds.setdefault(kind, told)

    def _members(self, place: str, kind: type) -> Iterator[list[Any]]:
        """What a class defines: its methods, and the values it has for all its objects."""
        for name, member in vars(kind).items():
            function = getattr(member, "__func__", member)
            if isinstance(function, types.FunctionType):
                yield [name, *self._method(f"{place}.{name}", function)]
            elif not name.startswith("__") and type(member) in {*PLAIN, dict, list, tuple, set}:
                yield [name, self.of(f"{place}.{name}", member)]

    def _method(self, place: str, function: types.FunctionType) -> list[Any]:
        """A method by where it is written, if that is a file and all that it knows."""
        module = function.__module__ or ""
        held = set(function.__code__.co_freevars) - {"__class__"}
        if held and not _is_released(module):
            raise UntellableError(f"{place} was replaced or made by a function")
        line = function.__code__.co_firstlineno
        return [function.__qualname__, line, self._origin(place, module)]

    @functools.cache  # noqa: B019  it lives as long as one fingerprint takes
    def _origin(self, place: str, module: str) -> str:
        """A module of code: by its package's version if it is released, otherwise its source."""
        if _is_released(module):
            self.packages.add(module.partition(".")[0])
            return module
        file = getattr(sys.modules.get(module), "__file__", None)
        if file is None or not Path(file).is_file():
            raise UntellableError(f"{place} is defined in {module}, which has no source file")
        return f"{module} {hashlib.sha256(Path(file).read_bytes()).hexdigest()}"


def _is_told_by_attributes(value: Any) -> bool:
    """Whether all that an object holds is in its `__dict__`."""
    kinds = type(value).__mro__[:-1]
    hidden = any(vars(k).get("__slots__") or k.__module__.startswith("torch._C") for k in kinds)
    return hasattr(value, "__dict__") and not hidden


def _is_released(module: str) -> bool:
    package = module.partition(".")[0]
    return package in RELEASED or package in sys.stdlib_module_names - {"__main__"}
