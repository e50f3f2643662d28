"""Compare two states of a model, and separate changes from side effects of forward passes.

Modules may fill caches, count calls and keep tensors while they run. None of that changes the
model: a value that only gained something is a cache, and a counter or kept tensor moves again when
the same pass is repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import starmap, zip_longest
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import nn

from captum_clip_surgery.models._state import (
    HELD,
    ModelState,
    ModuleFact,
    ObjectFact,
    TensorFact,
)

ABSENT = ObjectFact(-1, "absent")
CHANGED = (
    "by another thread, a hook or the model itself: the result would be half of each model. Change "
    "it between calls, or explain a copy (copy.deepcopy)"
)
#: Attributes of modules that forward passes were seen to rewrite.
_rewritten: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


class Change(NamedTuple):
    """One difference; only for plain attributes are the last four fields set."""

    what: str
    place: str
    module: nn.Module | None = None
    attribute: str = ""
    old: Any = None
    new: Any = None

    def __str__(self) -> str:
        return f"{self.what} of the model was changed during the call ({self.place})"


def raise_changed(changes: list[Change], cause: Exception | None = None) -> None:
    """Raise if there are changes.

    Raises:
        RuntimeError: If there are any; the message names the first one.
    """
    if changes:
        raise RuntimeError(f"{changes[0]}, {CHANGED}") from cause


def list_changes(before: ModelState, after: ModelState) -> list[Change]:
    """List the differences between two states, without attributes that passes rewrite."""
    if before.same(after):
        return []
    names = {id(module): name for name, module in before.modules[0].named_modules()}
    changes: list[Change] = []
    for module, old, new in zip(before.modules, before.facts, after.facts, strict=False):
        if old != new:
            place = names.get(old.identity) or type(module).__name__
            changes += _module_changes(module, place, old, new)
        if old.identity != new.identity or old.children != new.children:
            break  # the modules that follow are in another order
    if not changes and len(before.facts) != len(after.facts):
        changes.append(Change("a module", type(before.modules[0]).__name__))
    if before.surroundings != after.surroundings:
        changes.append(Change("a class, a global hook or the precision", "torch"))
    if not changes and not before.same_samples(after):
        changes.append(Change("a parameter", "its values"))
    return [
        c for c in changes if c.module is None or c.attribute not in _rewritten.get(c.module, ())
    ]


def unexplained_changes(
    before: ModelState, after: ModelState, rerun: Callable[[], tuple[ModelState, bool | None]]
) -> list[Change]:
    """List the changes during a forward pass that the pass does not make by itself.

    Args:
        before: The state before the pass.
        after: The state after it.
        rerun: Repeats the pass and returns the state, and whether the results were equal (None if
            unknown). It is called only if there are changes of plain attributes that are not caches
            being filled, and no other changes.
    """
    first = _by_attribute(before, after)
    firm = [c for c in first.values() if c.module is None]
    moved = [c for c in first.values() if not _grew(c.old, c.new)]
    if firm or not moved:
        return firm
    latest, equal = rerun()
    if equal is False:
        return moved
    second = _by_attribute(after, latest)
    unexplained = [c for c in second.values() if c.module is None]
    for key in first | second:
        module, attribute = key
        pair = first.get(key), second.get(key)
        if module is not None and not _is_made_by_passes(module, attribute, *pair, equal):
            unexplained += [c for c in (pair[0] or pair[1],) if c is not None]
    return unexplained


def _by_attribute(before: ModelState, after: ModelState) -> dict[tuple[Any, str], Change]:
    """List changes by module and attribute; remember and leave out what hooks gather."""
    changes = {}
    for change in list_changes(before, after):
        if change.module is not None and HELD in change.attribute:
            _rewritten.setdefault(change.module, set()).add(change.attribute)
        else:
            changes[change.module, change.attribute] = change
    return changes


def _is_made_by_passes(
    module: nn.Module,
    attribute: str,
    first: Change | None,
    second: Change | None,
    equal: bool | None,
) -> bool:
    """Return whether two passes set an attribute themselves; remember what each one rewrites."""
    if first is None or second is None:
        only = first or second
        # Equal results show that what is set once, such as a flag of readiness, changes nothing.
        return only is not None and (_grew(only.old, only.new) or bool(equal and first))
    if _grew(first.old, first.new) and _grew(second.old, second.new):
        return True
    if not _is_rewritten(first.old, first.new, second.new):
        return False
    _rewritten.setdefault(module, set()).add(attribute)
    return True


def _module_changes(
    module: nn.Module, place: str, old: ModuleFact, new: ModuleFact
) -> list[Change]:
    firm = (
        ("a module", old.identity, new.identity),
        ("a module", old.children, new.children),
        ("the class of a module", old.kind, new.kind),
        ("a parameter", old.parameters, new.parameters),
        ("a buffer", old.buffers, new.buffers),
        ("the training mode of a module", old.training, new.training),
        ("a hook", old.hooks, new.hooks),
    )
    changes = [Change(what, place) for what, one, other in firm if one != other]
    for name in old.attributes | new.attributes:
        one, other = (fact.attributes.get(name, ABSENT) for fact in (old, new))
        if one != other:
            changes.append(Change("a setting", f"{place}.{name}", module, name, one, other))
    return changes


def _grew(old: Any, new: Any) -> bool:
    """Return whether a value only gained something, as a cache does when it is filled.

    A flag, number or string in place of None is a setting, and so is anything callable.
    """
    if old is ABSENT:
        return not isinstance(new, ObjectFact)
    if old is None:
        return isinstance(new, (TensorFact, frozenset)) or type(new) is tuple
    if isinstance(old, frozenset) and isinstance(new, frozenset):
        return old <= new
    return type(old) is tuple and type(new) is tuple and old == new[: len(old)]


def _is_rewritten(first: Any, second: Any, third: Any) -> bool:
    """Return whether three successive values look like a counter or a kept tensor.

    Flags, floats and strings are settings, however often another thread changes them.
    """
    if second == third:
        return first == second or _grew(first, second)
    if first is ABSENT or first is None:  # the first pass created it
        first = second
    kinds = {type(each) for each in (first, second, third)}
    if kinds == {int}:
        return first <= second < third
    if kinds == {TensorFact}:
        return third not in (first, second)
    if kinds != {tuple} or not len(first) <= len(second) <= len(third):
        return False
    return all(starmap(_is_rewritten, zip_longest(first, second, third, fillvalue=ABSENT)))
