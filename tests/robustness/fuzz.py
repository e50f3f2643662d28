"""Fuzzing with atheris: bytes that coverage leads to new places, in place of what others hand over.

    python -m tests.robustness.fuzz TARGET [--minutes N] [--runs N] [--seed N] [--corpus FOLDER]

Targets and what each may do are in `fuzz_targets.py`. Inputs that fail are written to the
current folder and told with where they failed, each place once; the status is 1 if there is any.
`--input FILE` tries one of them again.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

TARGETS = ("template", "configuration", "run", "image")
#: Of one input, beyond which it is a finding: seconds of the processor, and megabytes in all.
SECONDS, MEGABYTES = 5, 2000
#: What is instrumented: the package, and what reads formats in Python.
LOOKED_INTO = ["captum_clip_surgery", "PIL", "tomllib"]
FINDING = "FINDING"
MODULE = "tests.robustness.fuzz"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--runs", type=int, default=-1, help="executions at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path, help="gone on with; a temporary one otherwise")
    parser.add_argument("--input", type=Path, help="one input instead")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.input is not None:
        examine_one(asked.target, asked.input)
        return 0
    if asked.inside:
        fuzz(asked)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        asked.corpus = asked.corpus or Path(folder) / "corpus"
        return watch(asked, folder)


def examine_one(target: str, path: Path) -> None:
    from tests.robustness import fuzz_targets

    be_strict()
    fuzz_targets.TARGETS[target].seeds()  # which set up what a target needs
    fuzz_targets.TARGETS[target].examine(path.read_bytes())


def be_strict() -> None:
    """As the package's tests are, and more so."""
    from PIL import Image

    # Lower than Pillow's own: what is within that may take seconds and gigabytes.
    Image.MAX_IMAGE_PIXELS = 2**20
    warnings.simplefilter("ignore")
    warnings.filterwarnings("error", category=RuntimeWarning, module="captum_clip_surgery")


# --- the process that fuzzes, which libFuzzer ends -----------------------------------------------


def fuzz(asked: argparse.Namespace) -> None:
    import atheris

    with atheris.instrument_imports(include=LOOKED_INTO):
        from tests.robustness import fuzz_targets

    be_strict()
    target = fuzz_targets.TARGETS[asked.target]
    seeds = asked.corpus / "seeds"
    seeds.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (seeds / f"{number:03d}").write_bytes(seed)
    found: set[str] = set()

    def examine(data: bytes) -> None:
        start = time.process_time()
        try:
            target.examine(data)
            if time.process_time() - start > SECONDS:
                raise TimeoutError(f"an input of {len(data)} bytes took longer than {SECONDS} s")
        except Exception as error:
            where = place_of(error)
            if where not in found:
                found.add(where)
                path = Path(f"finding-{asked.target}-{len(found)}").absolute()
                path.write_bytes(data)
                traceback.print_exc()
                print(f"{FINDING} {where}: {path}", flush=True)

    (asked.corpus / "grown").mkdir(exist_ok=True)
    options = {
        "max_total_time": round(asked.minutes * 60), "runs": asked.runs, "seed": asked.seed,
        "timeout": 10 * SECONDS, "rss_limit_mb": MEGABYTES, "max_len": target.longest,
        "print_final_stats": 1, "len_control": 0, "artifact_prefix": f"finding-{asked.target}-",
    }  # fmt: skip
    given = [f"-{name}={value}" for name, value in options.items()]
    folders = [str(asked.corpus / "grown"), str(seeds)]
    atheris.Setup([sys.argv[0], *given, *folders], examine, custom_mutator=target.changed)
    atheris.Fuzz()


def place_of(error: BaseException) -> str:
    """The kind of an error, and the line it came from: what makes two of them the same."""
    if isinstance(error, AssertionError) and error.__cause__ is not None:
        error = error.__cause__  # what was refused, in a way that is not to be
    frames = traceback.extract_tb(error.__traceback__)
    last = [frame for frame in frames if "captum_clip_surgery" in frame.filename] or frames
    lines = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in (last[-1], frames[-1])]
    return f"{type(error).__name__} at {' '.join(dict.fromkeys(lines))}"


# --- the process that watches it -----------------------------------------------------------------


def watch(asked: argparse.Namespace, folder: str) -> int:
    """Run it, pass on what it says, and sum up; what it leaves behind lies in a folder."""
    given = ["--minutes", asked.minutes, "--runs", asked.runs, "--seed", asked.seed]
    command = [
        sys.executable,
        "-m",
        MODULE,
        asked.target,
        "--inside",
        "--corpus",
        asked.corpus,
        *given,
    ]
    process = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=os.environ | {"HF_HUB_OFFLINE": "1", "TMPDIR": folder},
    )
    assert process.stdout is not None
    executions, coverage, findings = "0", "none", 0
    for line in process.stdout:
        if state := re.match(r"#\d+\s+(\w+)\s+(cov: \d+ ft: \d+ corp: \S+)", line):
            coverage = state[2]
            if state[1] in ("NEW", "REDUCE"):
                continue
        if line.startswith("stat::number_of_executed_units"):
            executions = line.split()[-1]
        findings += line.startswith((FINDING, "SUMMARY: "))
        print(line, end="", flush=True)
    status = process.wait()
    print(f"{asked.target}: {executions} executions, {coverage}, {findings} findings")
    return int(bool(findings or status))


if __name__ == "__main__":
    sys.exit(main())
