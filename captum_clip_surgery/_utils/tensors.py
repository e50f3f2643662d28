"""Small helpers for tensors."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

#: Types of devices that are sure to have float64; Apple's GPUs do not.
DOUBLE_DEVICES = ("cpu", "cuda")


def check_real(values: Tensor, name: str) -> None:
    """Check that values are real: casting complex ones would drop their imaginary part.

    Raises:
        TypeError: If they are complex.
    """
    if values.is_complex():
        raise TypeError(f"{name} must be real, got {values.dtype}; use .abs() or .real")


def double_device(device: torch.device) -> torch.device:
    """Return the device, or the CPU if the device may not have float64."""
    return device if device.type in DOUBLE_DEVICES else torch.device("cpu")


def as_double(values: Tensor) -> Tensor:
    """Return values in float64, on the CPU if their device may not have it."""
    return values.to(double_device(values.device)).double()  # moved before they are cast


def version_of(tensor: Tensor) -> int:
    """Return the tensor's in-place version counter, or 0 for inference tensors, which have none."""
    return 0 if tensor.is_inference() else tensor._version


def tensor_digest(tensor: Tensor) -> str:
    """Return the SHA-256, in hexadecimal, of a tensor's shape and of its values in float32."""
    values = tensor.detach().float().cpu().contiguous()
    return hashlib.sha256(f"{tuple(values.shape)}".encode() + values.numpy().tobytes()).hexdigest()
