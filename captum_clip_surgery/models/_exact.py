"""Modules whose own methods are not called: their class, and what was replaced on the instance.

An adapter reads a module's parameters and calls its children, so a subclass or a patched method
would have no effect. Only the classes whose code the adapter restates are accepted.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

HINT = (
    "the adapter would not call it; register an adapter of your own in "
    "captum_clip_surgery.models.image.FAMILIES (CONTRIBUTING.md), undo the change, or fold it into "
    "the "
    "weights of the original class"
)


def why_not_exactly(module: nn.Module, *classes: type[nn.Module]) -> str | None:
    """Return how a module departs from some classes as a predicate, or None if it is of one.

    Parametrized modules count as the class they were before, because their tensors are read
    through the parametrization.
    """
    if type(module) not in classes:
        kind = type_before_parametrizations(module)
        if kind not in classes:
            return _departure(kind, classes)
    replaced = replaced_methods(module)
    if replaced:
        return f"has {_listed(replaced)} replaced on the instance"
    return None


def replaced_methods(module: nn.Module) -> dict[str, Any]:
    """Return the methods of a module's class that are overridden in the instance's `__dict__`."""
    kind: Any = type(module)
    names = _method_names(kind)
    if names.isdisjoint(module.__dict__):
        return {}
    return {name: value for name, value in module.__dict__.items() if name in names}


def functions_of(kind: type[nn.Module]) -> tuple[Callable[..., Any], ...]:
    """Return the functions in force in a class and its parents below `nn.Module`."""
    return tuple(
        value
        for each in kind.__mro__[: kind.__mro__.index(nn.Module)]
        for value in vars(each).values()
        if type(value) is FunctionType
    )


class Makeup:
    """The classes, methods and children of modules at one moment.

    Args:
        model: the model.
        names: methods of the model that are compared as well, whether they are of its class or of
            the instance.
        modules: whose classes' functions, methods replaced on the instance and children count.
        tower: an adapter, whose blocks count.
    """

    def __init__(
        self, model: Any, names: tuple[str, ...], modules: Sequence[nn.Module], tower: Any = None
    ) -> None:
        self._model, self._names, self._tower = model, names, tower
        self._modules = modules
        self._kinds = list(dict.fromkeys(type(module) for module in modules))
        self._found = self._look()

    def holds(self) -> bool:
        """Return whether everything is as it was then; takes some 30 microseconds."""
        return self._look() == self._found

    def _look(self) -> list[object]:
        kind, instance = type(self._model), self._model.__dict__
        found: list[object] = [kind]
        for name in self._names:
            found += (instance.get(name), getattr(kind, name, None))
        if self._tower is not None:
            found += self._tower.blocks
        for module in self._modules:
            found.append(type(module))
            found += module._modules.values()
            found += replaced_methods(module).values()
        for each in self._kinds:
            found += functions_of(each)
        return found


@functools.lru_cache(maxsize=256)
def _method_names(kind: type[nn.Module]) -> frozenset[str]:
    return frozenset(function.__name__ for function in functions_of(kind)) | {"forward"}


def _departure(kind: type[nn.Module], classes: tuple[type[nn.Module], ...]) -> str:
    bases = [base for base in classes if issubclass(kind, base)]
    if not bases:
        return f"is a {kind.__name__}, not a {' or '.join(each.__name__ for each in classes)}"
    added = kind.__mro__[: kind.__mro__.index(bases[0])]
    names = {
        name: value
        for each in added
        for name, value in vars(each).items()
        if type(value) is FunctionType and hasattr(bases[0], name) and name != "__init__"
    }
    overrides = f" and overrides {_listed(names)}" if names else ""
    return f"is a {kind.__name__}, which derives from {bases[0].__name__}{overrides}"


def _listed(names: dict[str, Any]) -> str:
    return ", ".join(sorted(names))
