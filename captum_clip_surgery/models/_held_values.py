"""List the values that objects, functions, hooks and classes hold."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

MAX_HELD = 64  # entries of a list or dict that a hook uses; in longer ones it gathers
#: Packages whose classes have no tables that change.
FIXED = ("builtins", "functools", "abc", "_abc", "typing", "torch")


def attributes_of(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the attributes that an object keeps in its `__dict__` and in slots."""
    yield from getattr(value, "__dict__", {}).items()
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name[:2] != "__" and hasattr(value, name):
                yield name, getattr(value, name)


def is_table(name: str, value: Any) -> bool:
    """Return whether a member of a class holds values that can change in place."""
    if name[:2] == "__":
        return False
    if type(value) in (dict, list, set, type):
        return True
    return type(value).__module__.partition(".")[0] not in FIXED


def hook_values(hook: Any) -> Iterator[tuple[str, Any]]:
    """Yield the values in a hook's closure, defaults, arguments or object, by name.

    The entries of a dict are named singly, as a hook may gather in one and use another.
    """
    values: Iterable[tuple[str, Any]]
    if isinstance(hook, functools.partial):
        yield from hook_values(hook.func)
        values = (*enumerate(hook.args), *hook.keywords.items())  # type: ignore[arg-type]
    elif isinstance(hook, types.MethodType):
        yield from hook_values(hook.__self__)
        return
    elif isinstance(hook, types.FunctionType):
        values = enumerate(held_values(hook))  # type: ignore[assignment]
    elif isinstance(hook, nn.Module):
        values = [("", hook)]
    else:
        values = attributes_of(hook)
    for name, value in values:
        if isinstance(value, dict) and len(value) <= MAX_HELD:
            yield from ((f"{name}.{key!s:.80}", part) for key, part in value.items())
        else:
            yield f"{name}", value


def hook_settings(hook: Any) -> tuple[Any, ...]:
    """Return the floats, flags and strings in a hook's closure, defaults or object.

    What hooks collect (counts, tensors, lists of them) does not change what they do.
    """
    if isinstance(hook, functools.partial):
        return _settings((*hook.args, *hook.keywords.values())) + hook_settings(hook.func)
    if isinstance(hook, types.MethodType):
        return hook_settings(hook.__self__)
    if isinstance(hook, types.FunctionType):
        return _settings(held_values(hook))
    return _settings(getattr(hook, "__dict__", {}).values())


def _settings(values: Iterable[Any]) -> tuple[Any, ...]:
    settings = []
    for value in values:
        if isinstance(value, dict):
            value = tuple(value.values())
        parts = tuple(value) if isinstance(value, (list, tuple)) else (value,)
        if parts and all(type(part) in (bool, float, str) for part in parts):
            settings.append(parts)
    return tuple(settings)


def held_values(function: types.FunctionType) -> list[Any]:
    """Return the values in a function's closure, its defaults and its attributes."""
    values = []
    for cell in function.__closure__ or ():
        try:
            values.append(cell.cell_contents)
        except ValueError:  # a variable without a value yet
            continue
    values += function.__defaults__ or ()
    values += (function.__kwdefaults__ or {}).values()
    return values + list(vars(function).values())
