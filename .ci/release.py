"""Run the release checklist, everything short of the upload.

    python .ci/release.py [--only STEP,STEP] [--dist FOLDER]

The commit is built, not the folder, so files that git ignores cannot slip in. The script stops at
the first step that fails, with status 1. It needs git; tools and the wheel are installed in fresh
virtual environments.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent
PACKAGE = "captum_clip_surgery"
TOOLS = ("build", "twine", "cyclonedx-bom")
LARGEST = 12 * 2**20  # 7 MiB, most of it the embedded model, compressed
#: Files of a wheel's dist-info, and licenses in it.
DIST_INFO = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt"}
LICENSES = {"LICENSE", f"{PACKAGE}/demo/OFL.txt"}
#: Files of a source distribution that the build generates.
GENERATED = re.compile(rf"PKG-INFO|setup\.cfg|{PACKAGE}\.egg-info/.*")
#: Package data without which the package imports but fails later.
NEEDED = (
    "demo/model/",
    "demo/sprites.png",
    "datasets/classes/",
    "evaluation/protocols/",
    "app/templates/",
    "py.typed",
)


class Refused(Exception):
    """A step of the checklist failed; the message says why."""


@dataclass(frozen=True)
class Release:
    """Folders of a release: `dist` for its files, `work` for temporary environments."""

    dist: Path
    work: Path

    @property
    def wheel(self) -> Path:
        return one(self.dist.glob("*.whl"), "wheel")

    @property
    def sdist(self) -> Path:
        return one(self.dist.glob("*.tar.gz"), "source distribution")

    @property
    def tools(self) -> Path:
        """Interpreter with the tools."""
        return environment(self.work / "tools", *TOOLS)

    @property
    def installed(self) -> Path:
        """Interpreter with the wheel and nothing of the source tree."""
        return environment(self.work / "installed", str(self.wheel.resolve()))


def one(found: Iterable[Path], what: str) -> Path:
    paths = sorted(found)
    if len(paths) != 1:
        raise Refused(f"expected one {what}, found {[path.name for path in paths]}: run `build`")
    return paths[0]


def run(*command: str | Path, cwd: Path = SOURCE) -> str:
    """Run a command and return its output; raise Refused with it if the command fails."""
    # A source tree on the path would hide that the wheel lacks a file.
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    text = [str(part) for part in command]
    done = subprocess.run(text, cwd=cwd, env=clean, text=True, capture_output=True)
    if done.returncode:
        said = f"{done.stdout}\n{done.stderr}".strip()
        raise Refused(f"`{' '.join(text)}` ended with {done.returncode}:\n{said}")
    return done.stdout


def environment(folder: Path, *packages: str) -> Path:
    """Return the interpreter of a virtual environment with these packages; create it once."""
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        run(python, "-m", "pip", "install", "--quiet", "--upgrade", "pip", *packages)
    return python


def version_of(source: Path = SOURCE) -> str:
    found = re.search(
        r'^__version__ = "(.+)"$', (source / PACKAGE / "__init__.py").read_text(), re.M
    )
    if found is None:
        raise Refused(f'{PACKAGE}/__init__.py has no line `__version__ = "..."`')
    return found[1]


# --- steps ---------------------------------------------------------------------------------------


def tree(release: Release) -> str:
    """Check that nothing is uncommitted."""
    changed = run("git", "status", "--porcelain")
    if changed:
        raise Refused(f"the working tree is not clean, so it is not what a tag names:\n{changed}")
    return run("git", "rev-parse", "--short", "HEAD").strip()


def version(release: Release) -> str:
    """Check that the package's version heads the changelog."""
    ours = version_of()
    headings = re.findall(r"^## +(\S+)", (SOURCE / "CHANGELOG.md").read_text(), re.M)
    if not headings or headings[0] != ours:
        raise Refused(f"__version__ is {ours}, CHANGELOG.md begins with {headings[:1]}")
    return ours


def build(release: Release) -> str:
    """Build a source distribution of the commit, and a wheel from it."""
    if any(release.dist.glob("*")):
        raise Refused(f"{release.dist} is not empty: move what is there away")
    commit = release.work / "commit"
    commit.mkdir()
    archive = release.work / "commit.tar"
    run("git", "archive", "--output", archive, "HEAD")
    with tarfile.open(archive) as tar:
        tar.extractall(commit, filter="data")
    # Files get the time of the commit, so that building again gives the same wheel.
    os.environ["SOURCE_DATE_EPOCH"] = run("git", "log", "-1", "--format=%ct").strip()
    build_from(commit, release.dist, release.tools)
    return f"{release.wheel.name}, {release.sdist.name}"


def build_from(source: Path, dist: Path, python: Path) -> None:
    run(python, "-m", "build", "--outdir", dist.resolve(), source.resolve())


def twine(release: Release) -> str:
    """Check the metadata and the description as an index does."""
    run(release.tools, "-m", "twine", "check", "--strict", release.wheel, release.sdist)
    return "passed"


def contents(release: Release) -> str:
    """Compare the files of the wheel and the source distribution with those in git."""
    tracked = run("git", "ls-files").splitlines()
    wheel, sdist = wheel_names(release.wheel), sdist_names(release.sdist)
    found = [*wheel_problems(wheel, tracked), *sdist_problems(sdist, tracked)]
    size = release.wheel.stat().st_size
    if size > LARGEST:
        found.append(f"wheel of {size / 2**20:.1f} MiB; at most {LARGEST / 2**20:.0f} are expected")
    if found:
        raise Refused("\n".join(found))
    return f"{len(wheel)} files, {size / 2**20:.1f} MiB; sdist {len(sdist)} files"


def install(release: Release) -> str:
    """Install the wheel away from the sources and explain an image."""
    elsewhere = release.work / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    script = release.installed.with_name("clip-surgery")
    shown = run(script, "--version", cwd=elsewhere).strip()
    if shown != version_of():
        raise Refused(f"the installed command says version {shown}, the sources {version_of()}")
    where = run(
        release.installed, "-c", f"import {PACKAGE}; print({PACKAGE}.__file__)", cwd=elsewhere
    )
    if not Path(where.strip()).is_relative_to(release.installed.parent.parent):
        raise Refused(f"imported from {where.strip()}, not from the environment")
    start = time.perf_counter()
    run(script, "demo", cwd=elsewhere)
    figure = elsewhere / "clip-surgery-demo" / "demo.png"
    if not figure.is_file() or not figure.stat().st_size:
        raise Refused("`clip-surgery demo` wrote no figure")
    return f"`clip-surgery demo` in {time.perf_counter() - start:.0f} s"


def sbom(release: Release) -> str:
    """Write a software bill of materials of the environment with the wheel."""
    path = release.dist / f"{PACKAGE}-{version_of()}.cdx.json"
    run(
        *(release.tools, "-m", "cyclonedx_py", "environment", release.installed),
        *("--output-format", "JSON", "--output-file", path.resolve()),
    )
    names = re.findall(r'"purl": "pkg:pypi/([^@"]+)', path.read_text())
    return f"{path.name}, {len(set(names))} packages"


STEPS: list[Callable[[Release], str]] = [tree, version, build, twine, contents, install, sbom]


# --- contents ------------------------------------------------------------------------------------


def wheel_names(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return [name for name in archive.namelist() if not name.endswith("/")]


def sdist_names(path: Path) -> list[str]:
    """List the files of a source distribution without its top folder."""
    with tarfile.open(path) as archive:
        return [member.name.partition("/")[2] for member in archive if member.isfile()]


def wheel_problems(names: Iterable[str], tracked: Iterable[str]) -> list[str]:
    """List stray and missing files of a wheel, one per line."""
    inside, about = set[str](), set[str]()
    for name in names:
        folder, _, rest = name.partition("/")
        if folder.endswith(".dist-info"):
            about.add(rest.removeprefix("licenses/"))
        else:
            inside.add(name)
    package = {name for name in tracked if name.startswith(f"{PACKAGE}/")}
    lacking = [
        f"{PACKAGE}/{part}"
        for part in NEEDED
        if not any(name.startswith(f"{PACKAGE}/{part}") for name in inside)
    ]
    return [
        *(f"wheel: stray file {name}" for name in sorted(inside - package)),
        *(
            f"wheel: stray file {name} in dist-info"
            for name in sorted(about - DIST_INFO - LICENSES)
        ),
        *(f"wheel: no {name} (package_data in setup.cfg?)" for name in sorted(package - inside)),
        *(f"wheel: no {name} in dist-info" for name in sorted((DIST_INFO | LICENSES) - about)),
        *(f"wheel: nothing of {part}" for part in lacking),
    ]


def sdist_problems(names: Iterable[str], tracked: Iterable[str]) -> list[str]:
    """List stray and missing files of a source distribution, one per line."""
    inside, known = set(names), set(tracked)
    package = {name for name in known if name.startswith(f"{PACKAGE}/")}
    stray = {name for name in inside - known if not GENERATED.fullmatch(name)}
    tests = {
        name for name in inside if name.startswith("tests/")
    }  # they would not run without their helpers
    return [
        *(f"sdist: stray file {name}" for name in sorted(stray | tests)),
        *(f"sdist: no {name}" for name in sorted(package - inside)),
    ]


def table(rows: Iterable[tuple[str, str]]) -> str:
    """Format steps and their results in two columns."""
    return "\n".join(f"{name:<10}{said}" for name, said in rows)


def main() -> int:
    names = [step.__name__ for step in STEPS]
    parser = argparse.ArgumentParser(description="The release checklist.")
    parser.add_argument("--only", default=",".join(names), help="comma-separated steps")
    parser.add_argument(
        "--dist", type=Path, default=SOURCE / "dist", help="folder for the built files"
    )
    arguments = parser.parse_args()
    chosen = arguments.only.split(",")
    if unknown := set(chosen) - set(names):
        parser.error(f"no steps {sorted(unknown)}; there are {names}")
    rows = []
    with tempfile.TemporaryDirectory() as work:
        release = Release(arguments.dist, Path(work))
        for step in STEPS:
            if step.__name__ not in chosen:
                continue
            print(f"... {step.__name__}: {step.__doc__}", file=sys.stderr, flush=True)
            try:
                rows.append((step.__name__, step(release)))
            except Refused as refusal:
                print(table([*rows, (step.__name__, "FAILED")]))
                print(f"\n{step.__name__}: {refusal}", file=sys.stderr)
                return 1
    print(table(rows))
    if chosen == names:
        print(
            "\nAll passed. Left to a person: tag the commit, upload dist/*.whl and dist/*.tar.gz."
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
