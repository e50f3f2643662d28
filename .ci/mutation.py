#!/usr/bin/env python
"""Mutation testing: apply small wrong changes to the code and check that the tests notice each.

    pip install -e ".[test]" "mutmut==3.8.1"
    python .ci/mutation.py                    # all groups; resumes an interrupted run
    python .ci/mutation.py metrics --again    # repeat the survivors of one group

Survivors are printed with their changes; results are stored in `.cache/mutation/`.
"""

from __future__ import annotations

import argparse
import configparser
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "captum_clip_surgery"


@dataclass(frozen=True)
class Group:
    """Files whose functions are mutated, and quick tests that should notice.

    `sample` is the number of mutants drawn (0: all), `without` a pytest expression of the tests to
    leave out.
    """

    files: tuple[str, ...]
    tests: tuple[str, ...]
    sample: int = 0
    without: str = "nothing"


GROUPS = {
    "functional": Group(("functional.py",), ("test_functional.py",)),
    "metrics": Group(
        ("metrics/*.py",),  # and its folders: `*` matches `/`
        ("metrics",),
        sample=300,
        without="metrics_docs or bootstrap_by_a_naive_loop or map_of_the_object_beats",  # slow
    ),
    "methods": Group(
        ("models/image/*.py", "models/_blocks.py", "attr/*.py"),
        (
            "attr/test_captum.py",
            "attr/test_engine.py",
            "attr/test_paths.py",
            "attr/test_peers.py",
            "attr/test_reference.py",
            "attr/test_surgery.py",
            "attr/test_words.py",
            "models/test_refusals.py",
            "models/test_towers.py",
            "models/test_towers_real.py::test_refused_configurations_say_why",
            "models/test_towers_real.py::test_refused_towers_say_why",
            "models/test_towers_real.py::test_unknown_positions",
            "tasks/test_captions.py::test_sub_words_of_hugging_face_tokenizers",
        ),
        sample=200,
        # One size of a tower tells as much as all of them.
        without="test_towers.py and (RN50 or coca_ViT or ViTamin or PE-Core)",
    ),
}
SETTINGS = {
    "source_paths": PACKAGE,
    # Texts of messages are checked by reading.
    "do_not_mutate_patterns": ["^ *raise ", '^ *f?"', '^ *return f?"[^"]* '],
    "process_isolation": "forkserver",
    "timeout_constant": "3",
    "timeout_multiplier": "10",
    "track_dependencies": "false",
    "on_dependency_change": "ignore",
}
PYTEST = ("-p", "no:cacheprovider", "--override-ini", "addopts=", "-m", "not slow")
# This plugin collects garbage five times at the end, which takes longer than most tests.
PYTEST += ("-p", "no:unraisableexception")


def prepare(name: str) -> Path:
    """Make a folder for a group with links to the sources and mutmut's settings."""
    group, folder = GROUPS[name], ROOT / ".cache" / "mutation" / name
    folder.mkdir(parents=True, exist_ok=True)
    for linked in (PACKAGE, "tests"):
        if not (folder / linked).is_symlink():
            (folder / linked).symlink_to(ROOT / linked)
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT / "setup.cfg")
    settings["mutmut"] = {key: lines(value) for key, value in SETTINGS.items()} | {
        "only_mutate": lines([f"{PACKAGE}/{file}" for file in group.files]),
        "pytest_add_cli_args_test_selection": lines([f"tests/{test}" for test in group.tests]),
        "pytest_add_cli_args": lines([*PYTEST, "-k", f"not ({group.without})"]),
    }
    with (folder / "setup.cfg").open("w") as file:
        settings.write(file)
    return folder


def lines(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "\n" + "\n".join(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("group", nargs="?", choices=GROUPS, help="group to test (default: all)")
    parser.add_argument("--again", action="store_true", help="repeat survivors")
    parser.add_argument("--processes", type=int, default=1, help="number of processes")
    options = parser.parse_args()
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "OMP_NUM_THREADS": "1"}
    for name in [options.group] if options.group else GROUPS:
        arguments = [name, GROUPS[name].sample, "again" if options.again else "", options.processes]
        command = [sys.executable, Path(__file__).with_name("mutants.py"), *map(str, arguments)]
        subprocess.run(command, cwd=prepare(name), env=environment, check=True)


if __name__ == "__main__":
    main()
