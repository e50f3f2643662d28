"""What differs between two readings of a model's state, and what of it a pass does by itself.

Modules may fill caches, count calls and keep tensors while they run. None of that is a change of
the model: a value that only gained something is such a cache, and a counter or a kept tensor shows
itself by moving again when the same pass is made once more.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import starmap, zip_longest
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import nn

from captum_clip_surgery.models._state import ModuleFact, ObjectFact, State, TensorFact

ABSENT = ObjectFact(-1, "absent")
#: Attributes of modules that each pass was seen to rewrite.
_rewritten: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


class Change(NamedTuple):
    """One difference. `module`, `attribute`, `old` and `new` are of plain attributes alone."""

    what: str
    place: str
    module: nn.Module | None = None
    attribute: str = ""
    old: Any = None
    new: Any = None

    def __str__(self) -> str:
        return f"{self.what} of the model was changed during the call ({self.place})"


def changes(before: State, after: State) -> list[Change]:
    """List what differs between two readings, without the attributes that passes rewrite."""
    if before.same(after):
        return []
    names = {id(module): name for name, module in before.modules[0].named_modules()}
    found: list[Change] = []
    for module, old, new in zip(before.modules, before.facts, after.facts, strict=False):
        if old != new:
            place = names.get(old.identity) or type(module).__name__
            found += _module_changes(module, place, old, new)
        if old.identity != new.identity or old.children != new.children:
            break  # what follows is in another order
    if not found and len(before.facts) != len(after.facts):
        found.append(Change("a module", type(before.modules[0]).__name__))
    if before.surroundings != after.surroundings:
        found.append(Change("a class, a global hook or the precision", "torch"))
    if not found and not before.same_samples(after):
        found.append(Change("a parameter", "its values"))
    known = _rewritten
    return [c for c in found if c.module is None or c.attribute not in known.get(c.module, ())]


def unexplained(
    before: State, after: State, rerun: Callable[[], tuple[State, bool | None]]
) -> list[Change]:
    """List the changes during a pass that the pass does not make by itself.

    Args:
        before: the state before the pass.
        after: the state after it.
        rerun: makes the same pass once more, and returns the state and whether the results were the
            same (None if that cannot be told). Called only if there are changes of plain
            attributes, and no others, that are not caches being filled.
    """
    found = {(c.module, c.attribute): c for c in changes(before, after)}
    firm = [c for c in found.values() if c.module is None]
    left = [c for c in found.values() if not _grew(c.old, c.new)]
    if firm or not left:
        return firm
    last, equal = rerun()
    if equal is False:
        return left
    again = {(c.module, c.attribute): c for c in changes(after, last)}
    left = [c for c in again.values() if c.module is None]
    for key in found | again:
        first, second = found.get(key), again.get(key)
        module, attribute = key
        if module is not None and not _is_own(module, attribute, first, second, equal):
            left += [c for c in (first or second,) if c is not None]
    return left


def _is_own(
    module: nn.Module,
    attribute: str,
    first: Change | None,
    second: Change | None,
    equal: bool | None,
) -> bool:
    """Whether two passes set an attribute by themselves; what each rewrites is remembered."""
    if first is None or second is None:
        only = first or second
        # Equal results show that what is set once, such as a flag of readiness, is no change.
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
    found = [Change(what, place) for what, one, other in firm if one != other]
    for name in old.attributes | new.attributes:
        one, other = (fact.attributes.get(name, ABSENT) for fact in (old, new))
        if one != other:
            found.append(Change("a setting", f"{place}.{name}", module, name, one, other))
    return found


def _grew(old: Any, new: Any) -> bool:
    """Whether a value only gained something, as a cache does that is filled.

    A flag, number or word in place of None is a setting, and so is anything that can be called.
    """
    if old is ABSENT:
        return not isinstance(new, ObjectFact)
    if old is None:
        return isinstance(new, (TensorFact, frozenset)) or type(new) is tuple
    if isinstance(old, frozenset) and isinstance(new, frozenset):
        return old <= new
    return type(old) is tuple and type(new) is tuple and old == new[: len(old)]


def _is_rewritten(first: Any, second: Any, third: Any) -> bool:
    """Whether three values in turn are of what each pass rewrites: counters and kept tensors.

    Flags, fractions and words are settings, however often another thread turns them.
    """
    if second == third:
        return first == second or _grew(first, second)
    if first is ABSENT or first is None:  # the first pass made it
        first = second
    kinds = {type(each) for each in (first, second, third)}
    if kinds == {int}:
        return first <= second < third
    if kinds == {TensorFact}:
        return third not in (first, second)
    if kinds != {tuple} or not len(first) <= len(second) <= len(third):
        return False
    return all(starmap(_is_rewritten, zip_longest(first, second, third, fillvalue=ABSENT)))
