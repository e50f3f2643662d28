"""Describe modules by content, so that another process describes equal modules equally."""

from __future__ import annotations

import functools
import hashlib
import json
import sys
import types
import warnings
from collections import deque
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from captum_clip_surgery.models._internals import has_hooks
from captum_clip_surgery.models._state import PLAIN, REGISTRIES

#: Packages whose version determines what their code does.
RELEASED = (
    *("captum_clip_surgery", "huggingface_hub", "open_clip", "peft", "timm", "torch"),
    "transformers",
)
MAX_DEPTH = 8  # of objects within objects


class ProcessLocalError(Exception):
    """Content of a module that means nothing in another process."""


def settings_digest(model: nn.Module) -> str:
    """Return the SHA-256 of the classes, modes and plain attributes of a model's modules.

    For a model with hooks, replaced methods or objects that mean nothing in another process, there
    is not digested: the reason is returned, and a warning is issued.
    """
    contents = ModuleContents()
    try:
        described = [contents.describe(name, module) for name, module in model.named_modules()]
    except ProcessLocalError as error:
        warnings.warn(
            f"{error}, which cannot be compared across processes; if this run is resumed, changes "
            "of it are not detected",
            stacklevel=3,
        )
        return f"none: {error}"
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


class ModuleContents:
    """Contents of modules as JSON, and the tensors and packages met on the way."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.packages: set[str] = set()
        self._classes: dict[type, list[Any]] = {}

    def describe(self, place: str, module: nn.Module) -> list[Any]:
        """Return a module's class, mode and attributes as JSON.

        Args:
            place: Name of the module, for messages.
            module: The module.

        Raises:
            ProcessLocalError: If it has hooks, a replaced method, or an attribute that means
                nothing in another process.
        """
        if has_hooks([module]):
            raise ProcessLocalError(f"{place} has hooks")
        attributes = {
            name: self._value(f"{place}.{name}", value)
            for name, value in vars(module).items()
            if name not in REGISTRIES and not name.startswith("__")
        }
        return [place, self._class(place, type(module)), module.training, attributes]

    def _value(self, place: str, value: Any, depth: int = 0) -> Any:
        if type(value) in PLAIN:
            return [type(value).__name__, repr(value)]
        if depth > MAX_DEPTH:
            raise ProcessLocalError(f"{place} is nested too deeply")
        if type(value) in (Tensor, nn.Parameter):
            self.tensors.append(value)
            return ["tensor", str(value.dtype), list(value.shape)]
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            digest = hashlib.sha256(value.tobytes()).hexdigest()
            return ["array", str(value.dtype), value.shape, digest]
        if isinstance(value, type):
            return ["class", *self._class(place, value)]
        if isinstance(value, nn.Module):
            raise ProcessLocalError(f"{place} is a module outside the tower's tree of modules")
        if isinstance(value, (types.FunctionType, types.BuiltinFunctionType)):
            return self._function(place, value)
        if isinstance(value, functools.partial):
            parts = (value.func, value.args, value.keywords)
            return ["partial", *(self._value(place, part, depth + 1) for part in parts)]
        if isinstance(value, Enum):
            return ["enum", *self._class(place, type(value)), value.name]
        return self._object(place, value, depth + 1)

    def _object(self, place: str, value: Any, depth: int) -> Any:
        def describe(part: Any) -> Any:
            return self._value(place, part, depth)

        kind = self._class(place, type(value))
        if isinstance(value, dict):
            return ["dict", kind, [[describe(k), describe(v)] for k, v in value.items()]]
        if isinstance(value, (list, tuple, deque)):
            return ["list", kind, [describe(part) for part in value]]
        if isinstance(value, (set, frozenset)):
            return ["set", kind, sorted(repr(describe(part)) for part in value)]
        if _is_described_by_attributes(value):
            return ["object", kind, describe(vars(value))]
        raise ProcessLocalError(f"{place} is a {type(value).__name__}")

    def _function(self, place: str, value: Any) -> list[str]:
        """Describe a function by its name, if it can be found under it."""
        module, name = value.__module__ or "", value.__qualname__
        target: Any = sys.modules.get(module)
        for part in name.split("."):
            target = getattr(target, part, None)
        if target is not value and not isinstance(value, types.BuiltinFunctionType):
            raise ProcessLocalError(f"{place} is a function without a name to import it by")
        return ["function", name, self._origin(place, module)]

    def _class(self, place: str, kind: type) -> list[Any]:
        """Describe a class and its bases: where each is defined, and its members."""
        if kind in self._classes:
            return self._classes[kind]
        content: list[Any] = [kind.__qualname__]
        self._classes[kind] = [kind.__qualname__]  # an enumeration holds members of its own class
        for base in kind.__mro__[:-1]:
            content.append(self._origin(place, base.__module__))
            if base is not nn.Module:  # libraries add methods to it as they are imported
                content += self._members(f"{place}: {base.__name__}", base)
        self._classes[kind] = content
        return content

    def _members(self, place: str, kind: type) -> Iterator[list[Any]]:
        for name, member in vars(kind).items():
            function = getattr(member, "__func__", member)
            if isinstance(function, types.FunctionType):
                yield [name, *self._method(f"{place}.{name}", function)]
            elif not name.startswith("__") and type(member) in {*PLAIN, dict, list, tuple, set}:
                yield [name, self._value(f"{place}.{name}", member)]

    def _method(self, place: str, function: types.FunctionType) -> list[Any]:
        """Describe a method by its place in a source file, if it holds no values of its own."""
        module = function.__module__ or ""
        captured = set(function.__code__.co_freevars) - {"__class__"}
        if captured and not _is_released(module):
            raise ProcessLocalError(f"{place} was replaced or made by a function")
        line = function.__code__.co_firstlineno
        return [function.__qualname__, line, self._origin(place, module)]

    @functools.cache  # noqa: B019  as short-lived as one digest
    def _origin(self, place: str, module: str) -> str:
        """Describe a Python module by its name if its package is released, else by its source."""
        if _is_released(module):
            self.packages.add(module.partition(".")[0])
            return module
        file = getattr(sys.modules.get(module), "__file__", None)
        if file is None or not Path(file).is_file():
            raise ProcessLocalError(f"{place} is defined in {module}, which has no source file")
        return f"{module} {hashlib.sha256(Path(file).read_bytes()).hexdigest()}"


def _is_described_by_attributes(value: Any) -> bool:
    """Return whether an object's `__dict__` holds all of its content."""
    kinds = type(value).__mro__[:-1]
    hidden = any(vars(k).get("__slots__") or k.__module__.startswith("torch._C") for k in kinds)
    return hasattr(value, "__dict__") and not hidden


def _is_released(module: str) -> bool:
    package = module.partition(".")[0]
    return package in RELEASED or package in sys.stdlib_module_names - {"__main__"}
