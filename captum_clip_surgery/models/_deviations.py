"""Detect modules that differ from the class whose forward pass is restated.

An adapter reads a module's parameters and calls its children, so a subclass or a patched method
would have no effect. Only the exact classes that an adapter restates are accepted.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from types import FunctionType
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from captum_clip_surgery.models._internals import children_of

#: How to proceed with a module that no adapter restates.
HINT = (
    "the adapter would not call it; register a tower of your own with "
    "captum_clip_surgery.models.image.register_tower (CONTRIBUTING.md), undo the change, or fold "
    "it into the weights of the original class"
)


def describe_deviation(module: nn.Module, *classes: type[nn.Module]) -> str | None:
    """Describe how a module differs from the given classes, or return None if it does not.

    Parametrized modules count as the class they were before, because their tensors are read
    through the parametrization.

    Returns:
        A predicate such as "is a Lora, which derives from Linear and overrides forward", or None.
    """
    if type(module) not in classes:
        kind = type_before_parametrizations(module)
        if kind not in classes:
            return _describe_class(kind, classes)
    replaced = replaced_methods(module)
    return f"has {_enumerate(replaced)} replaced on the instance" if replaced else None


def replaced_methods(module: nn.Module) -> dict[str, Any]:
    """Return the methods of a module's class that are overridden in the instance's `__dict__`."""
    kind: Any = type(module)
    names = _method_names(kind)
    if names.isdisjoint(module.__dict__):
        return {}
    return {name: value for name, value in module.__dict__.items() if name in names}


class ImplementationSnapshot:
    """The classes, methods and children of modules at one moment.

    Args:
        model: The model.
        names: Methods of the model to compare, whether its class or the instance defines them.
        modules: Modules whose classes' functions, replaced methods and children are compared.
        tower: An adapter whose list of blocks is compared, or None.
    """

    def __init__(
        self, model: Any, names: tuple[str, ...], modules: Sequence[nn.Module], tower: Any = None
    ) -> None:
        self._model, self._names, self._tower = model, names, tower
        self._modules = modules
        self._classes = list(dict.fromkeys(type(module) for module in modules))
        self._content = self._read()

    def is_current(self) -> bool:
        """Return whether nothing has changed since; takes some 30 microseconds."""
        return self._read() == self._content

    def _read(self) -> list[object]:
        kind, instance = type(self._model), self._model.__dict__
        content: list[object] = [kind]
        for name in self._names:
            content += (instance.get(name), getattr(kind, name, None))
        if self._tower is not None:
            content += self._tower.blocks
        for module in self._modules:
            content.append(type(module))
            content += children_of(module).values()
            content += replaced_methods(module).values()
        for each in self._classes:
            content += _functions_of(each)
        return content


def _functions_of(kind: type[nn.Module]) -> tuple[Callable[..., Any], ...]:
    """Return the functions defined by a class and its bases below `nn.Module`."""
    return tuple(
        value
        for each in kind.__mro__[: kind.__mro__.index(nn.Module)]
        for value in vars(each).values()
        if type(value) is FunctionType
    )


@functools.lru_cache(maxsize=256)
def _method_names(kind: type[nn.Module]) -> frozenset[str]:
    return frozenset(function.__name__ for function in _functions_of(kind)) | {"forward"}


def _describe_class(kind: type[nn.Module], classes: tuple[type[nn.Module], ...]) -> str:
    bases = [base for base in classes if issubclass(kind, base)]
    if not bases:
        return f"is a {kind.__name__}, not a {' or '.join(each.__name__ for each in classes)}"
    added = kind.__mro__[: kind.__mro__.index(bases[0])]
    names = {
        name
        for each in added
        for name, value in vars(each).items()
        if type(value) is FunctionType and hasattr(bases[0], name) and name != "__init__"
    }
    overrides = f" and overrides {_enumerate(names)}" if names else ""
    return f"is a {kind.__name__}, which derives from {bases[0].__name__}{overrides}"


def _enumerate(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
