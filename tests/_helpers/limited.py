"""Runs something in a process of its own that may take little memory, and may crash."""

from __future__ import annotations

import os
import resource
import warnings
from collections.abc import Callable
from pathlib import Path


def outcome(action: Callable[[], object], megabytes: int = 256) -> str:
    """Run an action in a forked process; return what it returned or raised, and what it warned of.

    Args:
        action: what to run.
        megabytes: of memory that it may take beside what this process has.

    Raises:
        AssertionError: the process ended by a signal.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                pages = int(Path("/proc/self/statm").read_text().split()[0])
                most = pages * resource.getpagesize() + megabytes * 2**20
                resource.setrlimit(resource.RLIMIT_AS, (most, most))
                told = f"returned {action()!r:.500}"
            except BaseException as error:
                told = f"{type(error).__name__}: {error}"
        told += "".join(f"\nwarned: {warning.message}" for warning in warned)
        os.write(writing, told.encode(errors="replace")[:60_000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        told = stream.read().decode()
    _, status = os.waitpid(child, 0)
    assert not os.WIFSIGNALED(status), f"ended by signal {os.WTERMSIG(status)}"
    return told
