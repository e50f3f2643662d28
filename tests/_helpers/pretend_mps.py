"""A device without float64, as Apple's GPUs: tensors of the CPU that say they are on "mps"."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map_only

MPS = torch.device("mps", 0)
#: Calls that take values off the device, and those that may read an index on the CPU.
OFF = {Tensor.cpu, Tensor.numpy, Tensor.__array__}
INDEXED = {Tensor.__getitem__, Tensor.__setitem__}
#: What a tensor says about itself, which needs no values.
ABOUT = {Tensor.is_inference, Tensor.stride, Tensor.data_ptr} | {
    getattr(Tensor, name).__get__ for name in ("_version", "shape", "layout", "dtype", "ndim")
}


class OnMps(Tensor):
    """A tensor on the device: what is computed from it is there as well, and never in float64."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in ABOUT:
            with torch._C.DisableTorchFunction():
                return func(*args)
        kwargs = dict(kwargs or {})
        if func == Tensor.device.__get__:
            return MPS
        flat = tree_flatten((args, kwargs))[0]
        device = next(
            (d for d in flat if isinstance(d, (str, torch.device)) and _is_device(d)), None
        )
        if func is Tensor.to:
            other = args[1] if len(args) > 1 else kwargs.get("other")
            device = other.device if isinstance(other, Tensor) else device
        moved = func in (Tensor.to, torch.as_tensor)
        if func in OFF or (device is not None and moved and torch.device(device).type == "cpu"):
            plain = args[0].as_subclass(Tensor)
            return func(plain, *args[1:], **kwargs)
        if func not in INDEXED and func not in (Tensor.to, Tensor.copy_):
            check_one_device(func, flat)
        args, kwargs = (tree_map_only((str, torch.device), _to_cpu, v) for v in (args, kwargs))
        return check_dtypes(super().__torch_function__(func, types, args, kwargs))  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: dict[int, Any]) -> OnMps:
        copied: Any = to_mps(self.cpu().detach().clone())
        copied = nn.Parameter(copied) if isinstance(self, nn.Parameter) else copied
        return memo.setdefault(id(self), copied)


class PretendMps(TorchFunctionMode):
    """Sends tensors to the device, and makes them there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if any(issubclass(kind, OnMps) for kind in types):
            return func(*args, **kwargs)
        flat = tree_flatten((args, kwargs))[0]
        devices = [d for d in flat if isinstance(d, (str, torch.device)) and _is_device(d)]
        like = args[1] if func is Tensor.to and len(args) > 1 else None
        there = any(torch.device(d).type == "mps" for d in devices) or isinstance(like, OnMps)
        if not there:
            return func(*args, **kwargs)
        args, kwargs = (tree_map_only((str, torch.device), _to_cpu, v) for v in (args, kwargs))
        result = func(*args, **kwargs)
        return check_dtypes(to_mps(result) if isinstance(result, Tensor) else result)


def to_mps(values: Tensor) -> OnMps:
    """Return a tensor as one of the device, with the same memory."""
    return check_dtypes(values.as_subclass(OnMps))


def model_to_mps(model: nn.Module) -> nn.Module:
    """Move a model's parameters and buffers in place."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(to_mps(parameter.detach()))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = to_mps(buffer)
    return model


def check_dtypes(result: Any) -> Any:
    """Raise as the device does where float64 would be on it."""
    for value in result if isinstance(result, (tuple, list)) else [result]:
        with torch._C.DisableTorchFunction():
            wide = isinstance(value, OnMps) and value.dtype == torch.float64
        if wide:
            raise TypeError("the MPS framework doesn't support float64. Please use float32 instead")
    return result


def check_one_device(func: Any, values: Iterable[Any]) -> None:
    """Raise where tensors of both devices meet; scalars may."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    with torch._C.DisableTorchFunction():
        kinds = {isinstance(value, OnMps) for value in tensors if value.ndim}
    if len(kinds) > 1:
        raise RuntimeError(f"Expected all tensors to be on the same device, in {func.__name__}")


def _is_device(value: Any) -> bool:
    return isinstance(value, torch.device) or value in ("cpu", "mps", "mps:0")


def _to_cpu(value: Any) -> Any:
    return torch.device("cpu") if _is_device(value) else value
