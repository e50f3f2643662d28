"""Importing the package is cheap, and every public name is still found."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import captum_clip_surgery

PROBE = """
import sys
import captum_clip_surgery
heavy = {"torch", "captum", "open_clip", "matplotlib", "numpy", "PIL"} & set(sys.modules)
print(*sorted(heavy))
"""


def test_importing_imports_nothing_heavy() -> None:
    found = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == []


def test_names_are_those_that_type_checkers_see() -> None:
    tree = ast.parse(Path(captum_clip_surgery.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imported = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(imported) == sorted(captum_clip_surgery.__all__)
    assert set(captum_clip_surgery.__all__) <= set(dir(captum_clip_surgery))
    for name, module in imported.items():
        value = getattr(captum_clip_surgery, name)
        assert value is getattr(sys.modules[module or ""], name)


def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'ClipSurgery'"):
        captum_clip_surgery.ClipSurgery  # noqa: B018
