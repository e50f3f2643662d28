"""The release checklist: what it says of a real wheel, and of what goes wrong."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / ".ci" / "release.py"
STRAY = "captum_clip_surgery/datasets/classes/mine.txt"


@pytest.fixture(scope="module")
def release() -> Any:
    spec = importlib.util.spec_from_file_location("release", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tracked(release: Any) -> list[str]:
    """Files that git has or would take."""
    output = release.run("git", "ls-files", "--cached", "--others", "--exclude-standard")
    return [name for name in output.splitlines() if (ROOT / name).is_file()]


def wheel_of(release: Any, names: list[str]) -> list[str]:
    """The files of a right wheel of these files."""
    package = [name for name in names if name.startswith("captum_clip_surgery/")]
    return [*package, *(f"a_package-1.dist-info/{name}" for name in release.DIST_INFO)]


def test_contents_of_a_wheel(release: Any, tracked: list[str]) -> None:
    right = wheel_of(release, tracked)
    assert release.wheel_problems(right, tracked) == []
    for stray in (STRAY, "tests/conftest.py", "secrets.env"):
        problems = release.wheel_problems([*right, stray], tracked)
        assert problems == [f"wheel: stray file {stray}"]
    for needed in ("captum_clip_surgery/py.typed", "a_package-1.dist-info/RECORD"):
        missing = needed.replace("a_package-1.", "")
        problems = release.wheel_problems([name for name in right if name != needed], tracked)
        assert problems == [f"wheel: missing {missing}"]


def test_contents_of_a_source_distribution(release: Any, tracked: list[str]) -> None:
    package = [name for name in tracked if name.startswith("captum_clip_surgery/")]
    right = [*package, "setup.py", "PKG-INFO", "captum_clip_surgery.egg-info/SOURCES.txt"]
    assert release.sdist_problems(right, tracked) == []
    wrong = [*right[1:], "tests/conftest.py", "notes.txt"]
    assert release.sdist_problems(wrong, tracked) == [
        "sdist: stray file notes.txt",
        "sdist: stray file tests/conftest.py",
        f"sdist: missing {right[0]}",
    ]


def test_the_commit_is_checked(release: Any, tmp_path: Path) -> None:
    """The script itself, in a repository of its own."""
    for name in (".ci/release.py", "captum_clip_surgery/__init__.py", "CHANGELOG.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "old.whl").touch()

    def git(*words: str) -> None:
        subprocess.run(["git", *words], cwd=tmp_path, check=True, capture_output=True)

    def message() -> str:
        done = subprocess.run(
            [sys.executable, ".ci/release.py"], cwd=tmp_path, text=True, capture_output=True
        )
        assert done.returncode == 1
        return done.stderr

    git("init")
    assert "not clean, so a tag would not name it:\n?? .ci/" in message()
    git("add", ".")
    author = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    git(*author, "commit", "-m", "all")
    assert "dist is not empty; move its files away" in message()
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 9.8\n")
    git(*author, "commit", "-am", "another version")
    assert "but CHANGELOG.md begins with ['9.8']" in message()


@pytest.mark.slow
def test_what_is_built_is_what_git_has(release: Any, tracked: list[str], tmp_path: Path) -> None:
    """A wheel by way of the source distribution, of a tree with one file too many."""
    source = tmp_path / "source"
    for name in tracked:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    (source / STRAY).write_text("mine")
    tools = release.environment(tmp_path / "tools", *release.TOOLS)
    wheel, sdist = release.build(source, tmp_path / "dist", tools, "1700000000")
    names = release.wheel_names(wheel)
    assert release.wheel_problems(names, tracked) == [f"wheel: stray file {STRAY}"]
    names = release.sdist_names(sdist)
    assert release.sdist_problems(names, tracked) == [f"sdist: stray file {STRAY}"]
