"""Small helpers for tensors."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["as_double", "double_device", "version_of"]

#: Types of devices that are sure to have float64; Apple's GPUs do not.
DOUBLE_DEVICES = ("cpu", "cuda")


def double_device(device: torch.device) -> torch.device:
    """Return the device, or the CPU if the device may not have float64."""
    return device if device.type in DOUBLE_DEVICES else torch.device("cpu")


def as_double(values: Tensor) -> Tensor:
    """Return values in float64, on the CPU if their device may not have it."""
    return values.to(double_device(values.device)).double()  # moved before they are cast


def version_of(tensor: Tensor) -> int:
    """Return the tensor's in-place version counter, or 0 for inference tensors, which have none."""
    return 0 if tensor.is_inference() else tensor._version
