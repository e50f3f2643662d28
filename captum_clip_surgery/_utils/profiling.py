"""Time, peak memory and passes of the image tower of a call."""

from __future__ import annotations

import ctypes
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
PROCESS = Path("/proc/self")
#: glibc's `malloc_trim`, which returns freed memory to the system; None where there is none.
TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None


@dataclass(frozen=True)
class ProfileResult:
    """Time and memory of a call.

    Attributes:
        seconds: Wall-clock time.
        peak_bytes: Peak memory above what was in use before the call, or None if unknown. On a GPU
            it is the allocator's peak. On the CPU it is Linux's peak of resident memory after freed
            memory was returned to the system, so that earlier calls hardly matter; libraries keep
            some memory of their first call, and a fragmented heap cannot be returned completely.
    """

    seconds: float
    peak_bytes: int | None


def profile_call(
    function: Callable[[], Result], device: torch.device
) -> tuple[Result, ProfileResult]:
    """Call a function once and measure its time and peak memory.

    Args:
        function: A function without arguments.
        device: Device on which it computes.

    Returns:
        What the function returned, and its profile.
    """
    before = _reset_peak(device)
    start = time.perf_counter()
    result = function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    peak = _peak(device)
    return result, ProfileResult(seconds, None if before is None or peak is None else peak - before)


def _reset_peak(device: torch.device) -> int | None:
    """Reset the peak and return the bytes in use now."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if TRIM is not None:
        TRIM(0)
    try:
        (PROCESS / "clear_refs").write_text("5")  # resets VmHWM
    except OSError:
        return None
    return _resident("VmRSS")


def _peak(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _resident("VmHWM")


def _resident(field: str) -> int | None:
    """Return a field of the process's memory status in bytes."""
    try:
        match = re.search(rf"^{field}:\s+(\d+) kB", (PROCESS / "status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) * 1024 if match else None


@dataclass
class Passes:
    """Passes of images through image towers.

    Attributes:
        forward: Number of images that entered a tower.
        backward: Number of gradients of one image's score that were taken: by this package's
            methods, and by Captum's for images that require gradients, which differentiate each
            forward pass once.
    """

    forward: int = 0
    backward: int = 0

    def __str__(self) -> str:
        return f"{self.forward} forward and {self.backward} backward passes"


_counted: ContextVar[Passes | None] = ContextVar("passes", default=None)


@contextmanager
def count_passes() -> Iterator[Passes]:
    """Count the passes that this thread runs within the block.

    Example::

        >>> with count_passes() as passes:
        ...     add_pass(torch.zeros(2, 3, 8, 8))
        >>> passes.forward
        2
    """
    outer, passes = _counted.get(), Passes()
    token = _counted.set(passes)
    try:
        yield passes
    finally:
        _counted.reset(token)
        if outer is not None:
            outer.forward += passes.forward
            outer.backward += passes.backward


def add_pass(images: Tensor) -> None:
    """Count a pass of images (N, 3, H, W) through a tower; towers call it."""
    if torch.compiler.is_compiling():  # context variables cannot be traced
        return
    passes = _counted.get()
    if passes is not None:
        passes.forward += len(images)
        passes.backward += len(images) * (images.requires_grad and torch.is_grad_enabled())


def add_backward_passes(count: int) -> None:
    """Count gradients of scores with respect to something other than images."""
    passes = _counted.get()
    if passes is not None:
        passes.backward += count
