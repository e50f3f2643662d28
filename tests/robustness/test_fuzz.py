"""The fuzzer of `fuzz.py` itself: it runs, and finds what is there to be found."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("atheris")

ROOT = Path(__file__).parents[2]


def fuzzed(
    target: str, runs: int, folder: Path, first: str = ""
) -> subprocess.CompletedProcess[str]:
    """What `fuzz.py` says, in a process where some Python came `first`."""
    (folder / "sitecustomize.py").write_text(first)
    path = os.pathsep.join(map(str, (folder, ROOT)))
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.robustness.fuzz",
            target,
            "--runs",
            str(runs),
            "--minutes",
            "5",
        ],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("target", ["template", "configuration", "run", "image"])
def test_a_few_hundred_inputs(target: str, tmp_path: Path) -> None:
    done = fuzzed(target, 400, tmp_path)
    said = re.search(rf"{target}: (\d+) executions, cov: (\d+) .*, 0 findings$", done.stdout)
    assert done.returncode == 0, done.stdout[-3000:]
    assert said is not None
    assert int(said[1]) >= 400
    assert int(said[2]) > 100  # branches of the package: it is instrumented


def test_a_fault_is_found(tmp_path: Path) -> None:
    """A parser that fails at a word that no seed has."""
    fault = """
import json
loads = json.loads
def fragile(text, **options):
    if "NaN" in str(text):
        raise ZeroDivisionError
    return loads(text, **options)
json.loads = fragile
"""
    done = fuzzed("configuration", 2000, tmp_path, fault)
    assert done.returncode == 1
    told = re.search(r"^FINDING ZeroDivisionError at \S+:\d+.*: (\S+)$", done.stdout, re.MULTILINE)
    assert told is not None, done.stdout[-3000:]
    assert Path(told[1]).read_bytes()
