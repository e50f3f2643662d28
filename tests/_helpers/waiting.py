"""For what other processes do in their own time."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(there: Callable[[], bool], what: object, seconds: float = 60) -> None:
    """Ask again and again; fails, naming what did not come, once the time is over."""
    until = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < until, f"{what} does not come"
        time.sleep(0.01)
