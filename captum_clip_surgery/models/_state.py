"""What determines a module's results, read cheaply enough to be compared before and after a call.

Parameters and buffers count by identity, memory and version, plain attributes by value (through
dicts, lists, sets and the attributes of objects), hooks and classes by identity. On the CPU, and
for inference tensors on any device, a sample of values is read as well: `p.data.mul_()` and changes
in inference mode leave no other trace. Reading a text tower of ViT-B/16 takes 0.9 ms; encoding one
short text to compare its feature would take 20.

Not seen: a write through `.data` that misses every sampled value (tensors of up to 4,096 values are
sampled whole, larger ones at 64 places), any write through `.data` on a GPU (reading values there
would make every call wait), what is changed and changed back between two readings, and what code
reads from outside the module, such as global variables.
"""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

#: Types whose values are compared as they are.
PLAIN = frozenset(
    {bool, int, float, complex, str, bytes, type(None), range}
    | {torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size}
)
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
HOOK_OPTIONS = (
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_is_full_backward_hook",
)
#: Entries of `module.__dict__` that are read otherwise, or have no part in results.
REGISTRIES = frozenset(HOOKS) | {
    *HOOK_OPTIONS,
    *("training", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"),
    *("_state_dict_hooks", "_state_dict_pre_hooks"),
    *("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
}
#: Captum reads a layer through hooks made here. They come and go in other threads' calls.
READERS = "captum._utils.gradient"
DEPTH = 4  # objects within objects that are looked into; deeper ones count by identity
WHOLE, PLACES = 4096, 64  # values up to which a tensor is sampled whole; otherwise how many
SAMPLED = (Tensor, nn.Parameter)
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class TensorFact(NamedTuple):
    """A tensor that is a plain attribute."""

    identity: int
    address: int
    version: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class ObjectFact(NamedTuple):
    """Anything that is compared by identity, with what it holds."""

    identity: int
    content: Any


class ModuleFact(NamedTuple):
    """One module. `attributes` holds its plain attributes by name, and what its hooks hold."""

    identity: int
    kind: int
    training: bool
    parameters: tuple[Any, ...]
    buffers: tuple[Any, ...]
    children: tuple[Any, ...]
    hooks: tuple[Any, ...]
    attributes: dict[str, Any]


class State(NamedTuple):
    """A reading. `kept` holds what was identified, so that no other object takes its identity."""

    modules: list[nn.Module]
    facts: list[ModuleFact]
    surroundings: tuple[Any, ...]
    samples: list[Tensor]
    views: list[list[Tensor]]
    kept: list[Any]

    def same(self, other: State) -> bool:
        """Whether nothing differs."""
        return (
            self.facts == other.facts
            and self.surroundings == other.surroundings
            and self.same_samples(other)
        )

    def same_samples(self, other: State) -> bool:
        """Whether the sampled values are equal to the bit."""
        return len(self.samples) == len(other.samples) and all(
            map(torch.equal, self.samples, other.samples)
        )


def read_state(
    root: nn.Module,
    without: Sequence[Any] = (),
    previous: State | None = None,
    samples: bool = False,
) -> State:
    """Read the state of a module and all modules below it.

    Args:
        root: the module.
        without: modules and parameters below it that do not count.
        previous: an earlier reading to compare this one with. It keeps what it identified, so this
            one need not, and its views of the values are used again.
        samples: whether to sample the values of all tensors, or of inference tensors alone.
    """
    reader = _Reader(root, without, keep=previous is None)
    facts = [reader.module(module) for module in reader.modules]  # grows as it is walked
    surroundings = reader.surroundings()
    if previous is not None and previous.facts == facts:
        views = previous.views
    else:
        views = _sample_views(t for t in reader.tensors if samples or t.is_inference())
    with torch.no_grad():
        sampled = [torch.cat(group) for group in views]
    return State(reader.modules, facts, surroundings, sampled, views, reader.kept)


class _Reader:
    """One reading: the modules found so far, and what must be kept alive."""

    def __init__(self, root: nn.Module, without: Sequence[Any], keep: bool) -> None:
        self.modules = [root]
        self.kept: list[Any] = []
        self.keep = keep
        self.tensors: list[Tensor] = []
        self.kinds: dict[type, None] = {}
        self.skipped = {id(part) for part in without}
        self.known = {id(root)}
        self.inside: set[int] = set()

    def module(self, module: nn.Module) -> ModuleFact:
        kind = type(module)
        self.kinds[kind] = None
        attributes = {k: v for k, v in module.__dict__.items() if k not in REGISTRIES}
        if not PLAIN.issuperset(map(type, attributes.values())):
            for name, value in attributes.items():
                if type(value) not in PLAIN:
                    attributes[name] = self.fact(value)
        children: tuple[Any, ...] = ()
        if module._modules:
            children = tuple(self._children(module._modules))
        hooks: list[Any] = []
        for registry in HOOKS:
            registered = getattr(module, registry)
            if registered:
                hooks += self._hooks(registry, registered, attributes)
        if hooks:
            hooks += [(option, repr(getattr(module, option, None))) for option in HOOK_OPTIONS]
        parameters, buffers = module._parameters, module._buffers
        return ModuleFact(
            id(module),
            id(kind),
            module.training,
            tuple(self._named(parameters)) if parameters else (),
            tuple(self._named(buffers)) if buffers else (),
            children,
            tuple(hooks),
            attributes,
        )

    def surroundings(self) -> tuple[Any, ...]:
        """What the classes define, hooks on all modules, and the precision of products."""
        kinds = dict.fromkeys(part for kind in self.kinds for part in kind.__mro__[:-1])
        members = []
        for kind in kinds:
            own = vars(kind)
            members.append((id(kind), tuple(own), tuple(map(id, own.values()))))
            if self.keep:
                self.kept.append((kind, list(own.values())))
        settings: dict[str, Any] = {}
        hooks = [
            hook
            for registry in HOOKS
            for hook in self._hooks(registry, _global_hooks(registry), settings)
        ]
        return tuple(members), tuple(hooks), settings, precision()

    def _children(self, modules: Mapping[str, nn.Module | None]) -> Iterator[tuple[str, int]]:
        for name, child in modules.items():
            if child is not None and id(child) not in self.skipped:
                self._visit(child)
                yield name, id(child)

    def _visit(self, module: nn.Module) -> None:
        if id(module) not in self.known and id(module) not in self.skipped:
            self.known.add(id(module))
            self.modules.append(module)

    def _named(self, tensors: Mapping[str, Tensor | None]) -> Iterator[tuple[Any, ...]]:
        for name, tensor in tensors.items():
            if tensor is not None and id(tensor) not in self.skipped:
                yield name, *self._tensor(tensor)

    def _tensor(self, tensor: Tensor) -> tuple[Any, ...]:
        self.tensors.append(tensor)
        if self.keep:  # its memory as well: `tensor.data = ...` lets go of it
            self.kept += (tensor, tensor.detach())
        fact = (
            id(tensor),
            _address(tensor),
            version_of(tensor),
            tensor.shape,
            tensor.stride() if tensor.layout is torch.strided else (),
        )
        if type(tensor) in SAMPLED:
            return fact
        return (*fact, self.fact(vars(tensor)))  # of a subclass, which may wrap other tensors

    def _hooks(
        self, registry: str, hooks: Mapping[int, Any], attributes: dict[str, Any]
    ) -> list[Any]:
        """Hooks by identity; the settings they hold go to the attributes."""
        found = []
        for number, hook in hooks.items():
            if getattr(hook, "__module__", None) == READERS:
                continue
            self.kept.append(hook)
            found.append((registry, number, id(hook)))
            settings = hook_settings(hook)
            if settings:
                attributes[f"{registry}[{number}]"] = settings
        return found

    def fact(self, value: Any, num_blocks: int = 0) -> Any:
        """A value of any kind in comparable form."""
        if type(value) in PLAIN:
            return value
        if isinstance(value, Tensor):
            return TensorFact(*self._tensor(value)[:5])
        if isinstance(value, nn.Module):
            self._visit(value)
            return ObjectFact(id(value), None)
        if self.keep:
            self.kept.append(value)
        if num_blocks > DEPTH or id(value) in self.inside:
            return ObjectFact(id(value), None)
        self.inside.add(id(value))
        try:
            return self._composite(value, num_blocks + 1)
        finally:
            self.inside.discard(id(value))

    def _composite(self, value: Any, num_blocks: int) -> Any:
        def fact(part: Any) -> Any:
            return self.fact(part, num_blocks)

        if isinstance(value, dict):
            if PLAIN.issuperset(map(type, value.values())) and PLAIN.issuperset(map(type, value)):
                return ("dict", *value.items())
            return ("dict", *((fact(key), fact(item)) for key, item in value.items()))
        if isinstance(value, (list, tuple, deque)):
            return (type(value).__name__, *map(fact, value))
        if isinstance(value, (set, frozenset)):
            return frozenset(map(fact, value))
        if isinstance(value, np.ndarray):
            small = value.nbytes <= WHOLE and not value.dtype.hasobject
            return ObjectFact(id(value), value.tobytes() if small else None)
        if isinstance(value, functools.partial):
            return ObjectFact(0, (fact(value.func), fact(value.args), fact(value.keywords)))
        if isinstance(value, types.MethodType):
            return ObjectFact(id(value.__func__), fact(value.__self__))
        if isinstance(value, types.FunctionType):
            held = (*closure(value), *(value.__defaults__ or ()))
            return ObjectFact(id(value), tuple(map(fact, held)))
        if isinstance(value, type) or type(value).__module__.partition(".")[0] == "torch":
            return ObjectFact(id(value), None)
        return ObjectFact(id(value), fact(getattr(value, "__dict__", None)))


def hook_settings(hook: Any) -> tuple[Any, ...]:
    """Fractions, flags and words that a hook holds in its closure, defaults or object.

    What hooks gather (counts, tensors, lists of them) does not change what they do.
    """
    if isinstance(hook, functools.partial):
        return _settings((*hook.args, *hook.keywords.values())) + hook_settings(hook.func)
    if isinstance(hook, types.MethodType):
        return hook_settings(hook.__self__)
    if isinstance(hook, types.FunctionType):
        return _settings((*closure(hook), *(hook.__defaults__ or ())))
    return _settings(getattr(hook, "__dict__", {}).values())


def _settings(values: Iterable[Any]) -> tuple[Any, ...]:
    found = []
    for value in values:
        if isinstance(value, dict):
            value = tuple(value.values())
        parts = tuple(value) if isinstance(value, (list, tuple)) else (value,)
        if parts and all(type(part) in (bool, float, str) for part in parts):
            found.append(parts)
    return tuple(found)


def closure(function: types.FunctionType) -> list[Any]:
    """What a function's closure holds; variables without a value are left out."""
    found = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:
            continue
    return found


def _global_hooks(registry: str) -> Mapping[int, Any]:
    return getattr(nn.modules.module, f"_global{registry}", {})


def has_global_hooks() -> bool:
    """Whether hooks are registered on all modules of the process."""
    return any(map(_global_hooks, HOOKS))


def precision() -> tuple[Any, ...]:
    """How exactly matrices are multiplied."""
    return (
        torch.get_float32_matmul_precision(),
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
    )


def version_of(tensor: Tensor) -> int:
    """Return the tensor's in-place version counter, or 0 for inference tensors, which have none."""
    return 0 if tensor.is_inference() else tensor._version


def _address(tensor: Tensor) -> int:
    try:
        return tensor.data_ptr()
    except RuntimeError:  # it has no memory of its own: sparse, or a wrapper of others
        return 0


# --- sampled values ------------------------------------------------------------------------------


def _sample_views(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Views of the values to compare, grouped by device and width."""
    groups: dict[tuple[torch.device, int], list[Tensor]] = {}
    for tensor in tensors:
        if _can_be_sampled(tensor):
            width = tensor.element_size()
            groups.setdefault((tensor.device, width), []).append(_sample_view(tensor, width))
    return list(groups.values())


def _can_be_sampled(tensor: Tensor) -> bool:
    return (
        type(tensor) in SAMPLED
        and tensor.layout is torch.strided
        and not tensor.is_quantized
        and tensor.element_size() in INTEGERS
        and tensor.numel() > 0
        and (tensor.device.type == "cpu" or (tensor.is_cuda and tensor.is_inference()))
    )


def _sample_view(tensor: Tensor, width: int) -> Tensor:
    """All values of a small tensor; of a large one some, the last among them."""
    values = tensor.detach().view(INTEGERS[width])
    pairs = zip(values.shape, values.stride(), strict=True)
    length = 1 + sum((size - 1) * stride for size, stride in pairs)
    step = 1 if length <= WHOLE else (length - 1) // (PLACES - 1)
    first = values.storage_offset() + (length - 1) % step
    return values.as_strided((1 + (length - 1) // step,), (step,), first)
