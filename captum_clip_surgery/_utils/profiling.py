"""What a call costs: time, and memory at its peak."""

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
#: The C library's, which gives freed memory back to the system; None where it has none.
TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None


@dataclass(frozen=True)
class Cost:
    """`seconds` of wall time, and `peak_bytes` above what was in use before.

    On a GPU the allocator's peak; on the CPU that of resident memory, as Linux counts it, after
    freed memory was given back to the system, so that what ran before hardly matters: libraries
    keep some of their first call, and a heap that grew in pieces cannot return them all. None where
    it cannot be known.
    """

    seconds: float
    peak_bytes: int | None


def measure(function: Callable[[], Result], device: torch.device) -> tuple[Result, Cost]:
    """Call a function once, and what that cost."""
    before = _reset_peak(device)
    start = time.perf_counter()
    result = function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    peak = _peak(device)
    return result, Cost(seconds, None if before is None or peak is None else peak - before)


def _reset_peak(device: torch.device) -> int | None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if TRIM is not None:
        TRIM(0)
    try:
        (PROCESS / "clear_refs").write_text("5")  # resets the peak of resident memory
    except OSError:
        return None
    return _resident("VmRSS")


def _peak(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _resident("VmHWM")


def _resident(field: str) -> int | None:
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB", (PROCESS / "status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
