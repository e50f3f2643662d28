"""The command line, called within the test's process."""

from __future__ import annotations

import sys

import pytest

from captum_clip_surgery import cli


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int | str:
    """Run `clip-surgery` with arguments, and return its exit code or its error message."""
    monkeypatch.setattr(sys, "argv", ["clip-surgery", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    return exit_info.value.code or 0
