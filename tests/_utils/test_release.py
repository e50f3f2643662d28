"""The release checklist: what it says of a real wheel, and of what goes wrong."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / ".ci" / "release.py"
INFO = "captum_clip_surgery-0.1.0.dist-info"


@pytest.fixture(scope="module")
def release() -> Any:
    spec = importlib.util.spec_from_file_location("release", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["release"] = module  # dataclasses look for theirs
    spec.loader.exec_module(module)
    yield module
    del sys.modules["release"]


def tracked(release: ModuleType) -> list[str]:
    """Files that git has or would take."""
    told = release.run("git", "ls-files", "--cached", "--others", "--exclude-standard")
    return [name for name in told.splitlines() if (ROOT / name).is_file()]


def wheel_of(release: ModuleType, names: list[str]) -> list[str]:
    """What a right wheel of these files holds."""
    package = [name for name in names if name.startswith("captum_clip_surgery/")]
    about = [*release.DIST_INFO, *(f"licenses/{name}" for name in release.LICENSES)]
    return [*package, *(f"{INFO}/{name}" for name in about)]


def test_a_right_wheel_has_no_problems(release: ModuleType) -> None:
    names = tracked(release)
    assert release.wheel_problems(wheel_of(release, names), names) == []


STRAYS = (
    "captum_clip_surgery/datasets/classes/mine.txt",
    "captum_clip_surgery/notes.md",
    "tests/conftest.py",
    "benchmarks/speed.py",
    "secrets.env",
)


@pytest.mark.parametrize("stray", STRAYS)
def test_a_stray_file_is_found(release: ModuleType, stray: str) -> None:
    names = tracked(release)
    problems = release.wheel_problems([*wheel_of(release, names), stray], names)
    assert problems == [f"wheel: stray file {stray}"]


NEEDED = (
    "captum_clip_surgery/py.typed",
    "captum_clip_surgery/demo/model/open_clip_model.safetensors",
    "captum_clip_surgery/datasets/classes/voc20.txt",
    "captum_clip_surgery/evaluation/protocols/dense.toml",
)


@pytest.mark.parametrize("needed", NEEDED)
def test_a_lacking_file_is_found(release: ModuleType, needed: str) -> None:
    names = tracked(release)
    wheel = [name for name in wheel_of(release, names) if name != needed]
    problems = release.wheel_problems(wheel, names)
    assert f"wheel: no {needed} (package_data in setup.cfg?)" in problems
    # The same where it is gone from git as well, for what must be there.
    if needed.endswith("py.typed"):
        gone = [name for name in names if name != needed]
        assert release.wheel_problems(wheel, gone) == [f"wheel: nothing of {needed}"]


def test_lacking_licence_and_metadata_are_found(release: ModuleType) -> None:
    names = tracked(release)
    wheel = [name for name in wheel_of(release, names) if not name.endswith(("OFL.txt", "RECORD"))]
    assert release.wheel_problems([*wheel, "captum_clip_surgery/demo/OFL.txt"], names) == [
        "wheel: no RECORD in dist-info",
        "wheel: no captum_clip_surgery/demo/OFL.txt in dist-info",
    ]


def test_the_source_distribution_has_no_tests_and_nothing_unknown(release: ModuleType) -> None:
    names = tracked(release)
    right = [name for name in names if name.startswith("captum_clip_surgery/")] + ["PKG-INFO"]
    assert release.sdist_problems(right, names) == []
    wrong = [*right, "tests/_utils/test_release.py", "notes.txt"]
    assert release.sdist_problems(wrong[1:], names) == [
        "sdist: stray file notes.txt",
        "sdist: stray file tests/_utils/test_release.py",
        f"sdist: no {wrong[0]}",
    ]


def test_version_heads_the_changelog(
    release: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert release.version(None) == release.version_of(ROOT)
    monkeypatch.setattr(release, "SOURCE", tmp_path)
    (tmp_path / "captum_clip_surgery").mkdir()
    (tmp_path / "captum_clip_surgery" / "__init__.py").write_text('__version__ = "9.9"\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 9.8\n")
    monkeypatch.setattr(release, "version_of", lambda: "9.9")
    with pytest.raises(release.Refused, match=r"is 9\.9, .* begins with \['9\.8'\]"):
        release.version(None)


def test_a_tree_with_changes_is_refused(
    release: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script itself, in a repository of its own: status 1, and which file."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(SCRIPT, tmp_path / ".ci")
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    script = [sys.executable, str(tmp_path / ".ci" / "release.py"), "--only", "tree"]
    done = subprocess.run(script, text=True, capture_output=True)
    assert done.returncode == 1
    assert "not clean" in done.stderr
    assert "?? .ci/" in done.stderr
    assert "tree" in done.stdout
    assert "FAILED" in done.stdout
    unknown = subprocess.run([*script[:-1], "paint"], text=True, capture_output=True)
    assert unknown.returncode == 2
    assert "no steps ['paint']" in unknown.stderr


@pytest.mark.slow
def test_what_is_built_is_what_git_has(release: ModuleType, tmp_path: Path) -> None:
    """A wheel by way of the source distribution, of a tree with one file too many."""
    names, source, stray = tracked(release), tmp_path / "source", STRAYS[0]
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    (source / stray).write_text("mine")
    tools = release.environment(tmp_path / "tools", *release.TOOLS)
    release.build_from(source, tmp_path / "dist", tools)
    here = release.Release(tmp_path / "dist", tmp_path)
    assert release.wheel_problems(release.wheel_names(here.wheel), names) == [
        f"wheel: stray file {stray}"
    ]
    assert release.sdist_problems(release.sdist_names(here.sdist), names) == [
        f"sdist: stray file {stray}"
    ]
    assert release.twine(here) == "passed"
