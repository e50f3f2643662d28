"""Small helpers for tensors."""

from __future__ import annotations

from torch import Tensor

__all__ = ["version_of"]


def version_of(tensor: Tensor) -> int:
    """Return the tensor's in-place version counter, or 0 for inference tensors, which have none."""
    return 0 if tensor.is_inference() else tensor._version
