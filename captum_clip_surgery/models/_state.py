"""Read what determines a module's results, cheaply enough to compare before and after a call.

Parameters and buffers are compared by identity, memory and version, plain attributes by value
(through dicts, lists, sets and the attributes of objects), hooks and classes by identity and by
what they hold: the values in a hook's closure or object, the tables of a class. On the
CPU, and for inference tensors on any device, a sample of values is compared as well, because
`p.data.mul_()` and changes in inference mode leave no other trace. Reading the text tower of
ViT-B/16 takes 0.9 ms; encoding one short text to compare its feature would take 20 ms.

Not detected: a write through `.data` that misses every sampled value (tensors of up to 4,096 values
are sampled whole, larger ones at 64 positions); any write through `.data` on a GPU, where reading
values would make every call wait; what is changed and changed back between two readings; and what
code reads from outside the module, such as global variables.
"""

from __future__ import annotations

import functools
import types
import weakref
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from captum_clip_surgery._utils.tensors import version_of
from captum_clip_surgery.models._held_values import (
    MAX_HELD,
    attributes_of,
    held_values,
    hook_settings,
    hook_values,
    is_table,
)
from captum_clip_surgery.models._internals import (
    HOOK_OPTIONS,
    HOOKS,
    RECORDING_HOOKS,
    buffers_of,
    children_of,
    global_hooks,
    parameters_of,
)

#: Types whose values are compared directly.
PLAIN = frozenset(
    {bool, int, float, complex, str, bytes, type(None), range}
    | {torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size}
)
#: Entries of `module.__dict__` that are read separately, or do not affect results.
REGISTRIES = frozenset(HOOKS) | {
    *HOOK_OPTIONS,
    *("training", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"),
    *("_state_dict_hooks", "_state_dict_pre_hooks"),
    *("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
}
#: Captum reads layers through hooks made here, which come and go in other threads' calls.
CAPTUM_HOOKS = "captum._utils.gradient"
MAX_DEPTH = 8  # of objects within objects; deeper ones are compared by identity
#: In the names of values that a hook holds: those that it uses, and those that it gathers.
HELD = " holds "
MAX_WHOLE = 4096  # values up to which a tensor is sampled whole
NUM_SAMPLES = 64  # values sampled of a larger tensor
SAMPLED_TYPES = (Tensor, nn.Parameter)
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class TensorFact(NamedTuple):
    """A tensor that is a plain attribute."""

    identity: int
    address: int
    version: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class ObjectFact(NamedTuple):
    """An object compared by identity, and its content."""

    identity: int
    content: Any


class ModuleFact(NamedTuple):
    """One module; `attributes` holds its plain attributes and the settings of its hooks."""

    identity: int
    kind: int
    training: bool
    parameters: tuple[Any, ...]
    buffers: tuple[Any, ...]
    children: tuple[Any, ...]
    hooks: tuple[Any, ...]
    attributes: dict[str, Any]


class ModelState(NamedTuple):
    """The state of a module and all modules below it at one moment.

    Attributes:
        modules: The modules.
        facts: What was read of each module.
        surroundings: Members of classes, global hooks, and the precision of matrix products.
        samples: Sampled values, one tensor per device and width.
        views: Views of the memory that `samples` was read from.
        references: Every object compared by identity, so that no other object can get its `id`.
    """

    modules: list[nn.Module]
    facts: list[ModuleFact]
    surroundings: tuple[Any, ...]
    samples: list[Tensor]
    views: list[list[Tensor]]
    references: list[Any]

    def same(self, other: ModelState) -> bool:
        """Return whether nothing differs."""
        return (
            self.facts == other.facts
            and self.surroundings == other.surroundings
            and self.same_samples(other)
        )

    def same_samples(self, other: ModelState) -> bool:
        """Return whether the sampled values are equal bit by bit."""
        return len(self.samples) == len(other.samples) and all(
            map(torch.equal, self.samples, other.samples)
        )


def read_state(
    root: nn.Module,
    without: Sequence[Any] = (),
    previous: ModelState | None = None,
    samples: bool = False,
) -> ModelState:
    """Read the state of a module and all modules below it.

    Args:
        root: The module.
        without: Modules and parameters below it to leave out.
        previous: An earlier state that this one will be compared with. It holds the references, so
            that this one need not, and its views of the values are reused.
        samples: Whether to sample the values of all tensors, or of inference tensors only.
    """
    reader = _Reader(root, without, keep=previous is None)
    facts = [reader.module(module) for module in reader.modules]  # the list grows in this loop
    surroundings = reader.surroundings()
    if previous is not None and previous.facts == facts:
        views = previous.views
    else:
        views = _sample_views(t for t in reader.tensors if samples or t.is_inference())
    with torch.no_grad():
        sampled = [torch.cat(group) for group in views]
    return ModelState(reader.modules, facts, surroundings, sampled, views, reader.references)


def precision() -> tuple[Any, ...]:
    """Return the settings that determine how exactly matrices are multiplied."""
    return (
        torch.get_float32_matmul_precision(),
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
    )


class _Reader:
    """One reading: the modules met so far, and the objects to keep alive."""

    def __init__(self, root: nn.Module, without: Sequence[Any], keep: bool) -> None:
        self.modules = [root]
        self.references: list[Any] = []
        self.tensors: list[Tensor] = []
        self._keep = keep
        self._classes: dict[type, None] = {}
        self._skipped = {id(part) for part in without}
        self._visited = {id(root)}
        self._met: dict[int, int] = {}  # depth at which an object's content was read
        self._in_hook = False

    def module(self, module: nn.Module) -> ModuleFact:
        kind = type(module)
        self._classes[kind] = None
        attributes = {k: v for k, v in module.__dict__.items() if k not in REGISTRIES}
        if not PLAIN.issuperset(map(type, attributes.values())):
            for name, value in attributes.items():
                if type(value) not in PLAIN:
                    attributes[name] = self._fact(value)
        hooks: list[Any] = []
        for registry in HOOKS:
            registered = getattr(module, registry)
            if registered:
                hooks += self._hooks(registry, registered, attributes)
        if hooks:
            hooks += [(option, repr(getattr(module, option, None))) for option in HOOK_OPTIONS]
        parameters, buffers, children = (
            parameters_of(module),
            buffers_of(module),
            children_of(module),
        )
        return ModuleFact(
            id(module),
            id(kind),
            module.training,
            tuple(self._named(parameters)) if parameters else (),
            tuple(self._named(buffers)) if buffers else (),
            tuple(self._children(children)) if children else (),
            tuple(hooks),
            attributes,
        )

    def surroundings(self) -> tuple[Any, ...]:
        kinds = dict.fromkeys(part for kind in self._classes for part in kind.__mro__[:-1])
        members: list[Any] = []
        for kind in kinds:
            content = vars(kind)
            members.append((id(kind), tuple(content), tuple(map(id, content.values()))))
            tables = [value for name, value in content.items() if is_table(name, value)]
            members += map(self._fact, tables)
            if self._keep:
                self.references.append((kind, list(content.values())))
        settings: dict[str, Any] = {}
        hooks = [
            hook
            for registry in HOOKS
            for hook in self._hooks(registry, global_hooks(registry), settings)
        ]
        return tuple(members), tuple(hooks), settings, precision()

    def _children(self, modules: Mapping[str, nn.Module | None]) -> Iterator[tuple[str, int]]:
        for name, child in modules.items():
            if child is not None and id(child) not in self._skipped:
                self._visit(child)
                yield name, id(child)

    def _visit(self, module: nn.Module) -> None:
        if id(module) not in self._visited and id(module) not in self._skipped:
            self._visited.add(id(module))
            self.modules.append(module)

    def _named(self, tensors: Mapping[str, Tensor | None]) -> Iterator[tuple[Any, ...]]:
        for name, tensor in tensors.items():
            if tensor is not None and id(tensor) not in self._skipped:
                yield name, *self._tensor(tensor)

    def _tensor(self, tensor: Tensor) -> tuple[Any, ...]:
        self.tensors.append(tensor)
        if self._keep:  # with its memory, which `tensor.data = ...` releases
            self.references.append(tensor.detach())
            if not self._in_hook:  # what it gathered may hold a graph
                self.references.append(tensor)
        fact = (
            id(tensor),
            _address(tensor),
            version_of(tensor),
            tensor.shape,
            tensor.stride() if tensor.layout is torch.strided else (),
        )
        if type(tensor) in SAMPLED_TYPES:
            return fact
        return (*fact, self._fact(vars(tensor)))  # a subclass may wrap other tensors

    def _hooks(
        self, registry: str, hooks: Mapping[int, Any], attributes: dict[str, Any]
    ) -> list[Any]:
        """Return hooks by identity, and add the settings and what they hold to the attributes."""
        facts = []
        for number, hook in hooks.items():
            if getattr(hook, "__module__", None) in (CAPTUM_HOOKS, RECORDING_HOOKS):
                continue
            self.references.append(hook)
            facts.append((registry, number, id(hook)))
            settings = hook_settings(hook)
            if settings:
                attributes[f"{registry}[{number}]"] = settings
            self._in_hook = True
            for name, value in hook_values(hook):
                attributes[f"{registry}[{number}]{HELD}{name}"] = self._fact(value)
            self._in_hook = False
        return facts

    def _fact(self, value: Any, depth: int = 0) -> Any:
        """Return a value of any type in comparable form."""
        if type(value) in PLAIN:
            return value
        if isinstance(value, Tensor):
            return TensorFact(*self._tensor(value)[:5])
        if isinstance(value, nn.Module):
            return self._module_in_attribute(value)
        if self._keep:
            self.references.append(value)
        # Also ends cycles: what is met again was read before, or is being read.
        if depth > MAX_DEPTH or self._met.get(id(value), MAX_DEPTH + 1) <= depth:
            return ObjectFact(id(value), None)
        self._met[id(value)] = depth
        return self._composite(value, depth + 1)

    def _module_in_attribute(self, module: nn.Module) -> ObjectFact:
        """Visit a module held by an attribute; of one held by a hook, read the tensors."""
        if not self._in_hook:
            self._visit(module)
        elif id(module) not in self._visited:
            tensors = (*module.parameters(), *module.buffers())
            return ObjectFact(id(module), tuple(map(self._tensor, tensors)))
        return ObjectFact(id(module), None)

    def _composite(self, value: Any, depth: int) -> Any:
        def fact(part: Any) -> Any:
            return self._fact(part, depth)

        if isinstance(value, weakref.ReferenceType):
            return ObjectFact(id(value), fact(value()))
        if self._in_hook and isinstance(value, (dict, list, deque)) and len(value) > MAX_HELD:
            return ObjectFact(id(value), None)
        if isinstance(value, dict):
            if PLAIN.issuperset(map(type, value.values())) and PLAIN.issuperset(map(type, value)):
                return ("dict", *value.items())
            return ("dict", *((fact(key), fact(item)) for key, item in value.items()))
        if isinstance(value, (list, tuple, deque)):
            return (type(value).__name__, *map(fact, value))
        if isinstance(value, (set, frozenset)):
            return frozenset(map(fact, value))
        if isinstance(value, (bytearray, array)):
            return ObjectFact(id(value), _sampled_bytes(np.frombuffer(value, np.uint8)))
        if isinstance(value, np.ndarray):
            return ObjectFact(id(value), _sampled_bytes(value))
        if isinstance(value, functools.partial):
            return ObjectFact(0, (fact(value.func), fact(value.args), fact(value.keywords)))
        if isinstance(value, types.MethodType):
            return ObjectFact(id(value.__func__), fact(value.__self__))
        if isinstance(value, types.FunctionType):
            return ObjectFact(id(value), tuple(map(fact, held_values(value))))
        if isinstance(value, type):
            members = vars(value).items()
            plain = tuple((n, m) for n, m in members if type(m) in PLAIN and n[:2] != "__")
            return ObjectFact(id(value), plain)
        if type(value).__module__.partition(".")[0] == "torch":
            return ObjectFact(id(value), None)
        return ObjectFact(id(value), tuple((n, fact(part)) for n, part in attributes_of(value)))


# --- tensors -------------------------------------------------------------------------------------


def _address(tensor: Tensor) -> int:
    try:
        return tensor.data_ptr()
    except RuntimeError:  # without memory of its own: sparse, or a wrapper of other tensors
        return 0


def _sample_views(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Return views of the values to compare, grouped by device and width."""
    groups: dict[tuple[torch.device, int], list[Tensor]] = {}
    for tensor in tensors:
        if _can_be_sampled(tensor):
            width = tensor.element_size()
            groups.setdefault((tensor.device, width), []).append(_sample_view(tensor, width))
    return list(groups.values())


def _can_be_sampled(tensor: Tensor) -> bool:
    return (
        type(tensor) in SAMPLED_TYPES
        and tensor.layout is torch.strided
        and not tensor.is_quantized
        and tensor.element_size() in INTEGERS
        and tensor.numel() > 0
        and (tensor.device.type == "cpu" or (tensor.is_cuda and tensor.is_inference()))
    )


def _sampled_bytes(values: np.ndarray) -> bytes | None:
    """Return all bytes of a small array, or those of some values of a large one."""
    if values.dtype.hasobject:
        return None
    if values.nbytes <= MAX_WHOLE:
        return values.tobytes()
    return bytes(np.asarray(values.flat[:: -(-values.size // NUM_SAMPLES)]).tobytes())


def _sample_view(tensor: Tensor, width: int) -> Tensor:
    """Return all values of a small tensor, or some of a large one, the last among them."""
    values = tensor.detach().view(INTEGERS[width])
    pairs = zip(values.shape, values.stride(), strict=True)
    length = 1 + sum((size - 1) * stride for size, stride in pairs)
    step = 1 if length <= MAX_WHOLE else (length - 1) // (NUM_SAMPLES - 1)
    first = values.storage_offset() + (length - 1) % step
    return values.as_strided((1 + (length - 1) // step,), (step,), first)
