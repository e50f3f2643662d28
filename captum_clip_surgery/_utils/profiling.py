"""Time and peak memory of a call."""

from __future__ import annotations

import ctypes
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

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
