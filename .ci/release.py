"""Run the release checklist, everything short of the upload.

    python .ci/release.py [DIST]     DIST: empty folder for the built files (default: dist)

The commit is built, not the folder, so files that git ignores cannot slip in. The script stops at
the first check that fails, with status 1. It needs git; tools and the wheel are installed in fresh
virtual environments.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Iterable
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent
PACKAGE = "captum_clip_surgery"
TOOLS = ("build", "twine", "cyclonedx-bom")
MAX_BYTES = 12 * 2**20  # a wheel has 7 MiB, most of it the embedded model, compressed
#: Files of a wheel's dist-info, with the licenses there.
DIST_INFO = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt"}
DIST_INFO |= {"licenses/LICENSE", f"licenses/{PACKAGE}/demo/OFL.txt"}
#: Files of a source distribution that the build generates.
GENERATED = re.compile(rf"PKG-INFO|setup\.cfg|{PACKAGE}\.egg-info/.*")


def run(*command: str | Path, cwd: Path = SOURCE, **variables: str) -> str:
    """Run a command and return its output; exit with it if the command fails."""
    # A source tree on the path would hide that the wheel lacks a file.
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    words = [str(part) for part in command]
    done = subprocess.run(words, cwd=cwd, env=kept | variables, text=True, capture_output=True)
    if done.returncode:
        output = f"{done.stdout}\n{done.stderr}".strip()
        sys.exit(f"`{' '.join(words)}` ended with {done.returncode}:\n{output}")
    return done.stdout


def environment(folder: Path, *packages: str | Path) -> Path:
    """Create a virtual environment with these packages, and return its interpreter."""
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    run(python, "-m", "pip", "install", "--quiet", "--upgrade", "pip", *packages)
    return python


def check_commit(source: Path = SOURCE) -> str:
    """Check that all is committed and the changelog begins with the version; return the version."""
    if changed := run("git", "status", "--porcelain", cwd=source):
        sys.exit(f"the working tree is not clean, so a tag would not name it:\n{changed}")
    code, changes = source / PACKAGE / "__init__.py", source / "CHANGELOG.md"
    (version,) = re.findall(r'^__version__ = "(.+)"$', code.read_text(), re.M)
    headings = re.findall(r"^## +(\S+)", changes.read_text(), re.M)
    if headings[:1] != [version]:
        sys.exit(f"__version__ is {version}, but CHANGELOG.md begins with {headings[:1]}")
    return version


def build(source: Path, dist: Path, python: Path, time: str) -> tuple[Path, Path]:
    """Build a source distribution, and a wheel from it; the same time gives the same bytes."""
    run(python, "-m", "build", "--outdir", dist, source, SOURCE_DATE_EPOCH=time)
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    run(python, "-m", "twine", "check", "--strict", wheel, sdist)
    return wheel, sdist


def wheel_names(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return [name for name in archive.namelist() if not name.endswith("/")]


def sdist_names(path: Path) -> list[str]:
    """List the files of a source distribution without its top folder."""
    with tarfile.open(path) as archive:
        return [member.name.partition("/")[2] for member in archive if member.isfile()]


def wheel_problems(names: Iterable[str], tracked: Iterable[str]) -> list[str]:
    """List stray and missing files of a wheel: it holds the package in git, and its dist-info."""
    inside = {re.sub(r"^[^/]+\.dist-info/", "dist-info/", name) for name in names}
    expected = {name for name in tracked if name.startswith(f"{PACKAGE}/")}
    expected |= {f"dist-info/{name}" for name in DIST_INFO}
    return [
        *(f"wheel: stray file {name}" for name in sorted(inside - expected)),
        *(f"wheel: missing {name}" for name in sorted(expected - inside)),
    ]


def sdist_problems(names: Iterable[str], tracked: Iterable[str]) -> list[str]:
    """List stray and missing files of a source distribution, which has no tests."""
    inside = {name for name in names if not GENERATED.fullmatch(name)}
    allowed = {name for name in tracked if not name.startswith("tests/")}
    package = {name for name in allowed if name.startswith(f"{PACKAGE}/")}
    return [
        *(f"sdist: stray file {name}" for name in sorted(inside - allowed)),
        *(f"sdist: missing {name}" for name in sorted(package - inside)),
    ]


def check_contents(wheel: Path, sdist: Path) -> None:
    """Compare the built files with git, and the wheel's size with what is expected."""
    tracked = run("git", "ls-files").splitlines()
    problems = wheel_problems(wheel_names(wheel), tracked)
    problems += sdist_problems(sdist_names(sdist), tracked)
    if (size := wheel.stat().st_size) > MAX_BYTES:
        problems.append(f"wheel: {size:,} bytes, expected at most {MAX_BYTES:,}")
    if problems:
        sys.exit("\n".join(problems))


def check_installed(python: Path, version: str, folder: Path) -> None:
    """Run the installed command away from the sources."""
    command = python.with_name("clip-surgery")
    if (shown := run(command, "--version", cwd=folder).strip()) != version:
        sys.exit(f"the installed command has version {shown}, the sources {version}")
    run(command, "demo", cwd=folder)
    if not (folder / "clip-surgery-demo" / "demo.png").is_file():
        sys.exit("`clip-surgery demo` wrote no figure")


def main() -> None:
    dist = Path(sys.argv[1] if sys.argv[1:] else SOURCE / "dist").resolve()
    version = check_commit()
    if any(dist.glob("*")):
        sys.exit(f"{dist} is not empty; move its files away")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        tools = environment(work / "tools", *TOOLS)
        run("git", "archive", "--output", work / "commit.tar", "HEAD")
        with tarfile.open(work / "commit.tar") as tar:
            tar.extractall(work / "commit", filter="data")
        time = run("git", "log", "-1", "--format=%ct").strip()
        wheel, sdist = build(work / "commit", dist, tools, time)
        check_contents(wheel, sdist)
        installed = environment(work / "installed", wheel)
        check_installed(installed, version, work)
        bill = dist / f"{PACKAGE}-{version}.cdx.json"  # software bill of materials
        output = ("--output-format", "JSON", "--output-file", bill)
        run(tools, "-m", "cyclonedx_py", "environment", installed, *output)
    print(f"{dist} holds {wheel.name}, {sdist.name} and {bill.name}; all checks passed.")
    print("Left to a person: tag the commit, and upload the wheel and the source distribution.")


if __name__ == "__main__":
    main()
