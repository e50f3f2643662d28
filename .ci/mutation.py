#!/usr/bin/env python
"""Mutation testing: small wrong changes to the code, of which the tests should notice each.

    pip install -e ".[test]" "mutmut==3.8.1"
    python .ci/mutation.py                    # all groups; takes up again where it was stopped
    python .ci/mutation.py metrics --again    # what survived in one, after tests were added

Survivors are listed with their changes; work and results are in `.cache/mutation/`.
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
    """Files whose functions are mutated, and the quick tests that should notice.

    `sample` is how many mutants are drawn, 0 for all; `without` is a pytest expression of tests
    to leave out.
    """

    files: tuple[str, ...]
    tests: tuple[str, ...]
    sample: int = 0
    without: str = "nothing"


GROUPS = {
    "functional": Group(("functional.py",), ("test_functional.py",)),
    "metrics": Group(
        ("metrics/*.py",),
        (
            "test_metrics.py",
            "test_metrics_faithfulness.py",
            "test_metrics_ignored.py",
            "test_metrics_modules.py",
            "test_metrics_pairs.py",
            "test_metrics_points.py",
            "test_metrics_sanity.py",
        ),
        sample=300,
        without="bootstrap_by_a_naive_loop or map_of_the_object_beats",  # take seconds
    ),
    "methods": Group(
        ("towers/*.py", "surgery.py", "methods/*.py"),
        (
            "test_surgery.py",
            "test_reference.py",
            "test_peers.py",
            "test_words.py",
            "test_captum.py",
            "test_towers.py",
            "test_paths.py::test_maps_as_of_each_method",
            "test_paths.py::test_types_of_images_are_kept",
            "test_paths.py::test_refused",
            "test_refusals.py",
            "test_towers_real.py::test_refused_configurations_say_why",
            "test_towers_real.py::test_refused_towers_say_why",
            "test_towers_real.py::test_unknown_positions",
            "test_captions.py::test_sub_words_of_hugging_face_tokenizers",
        ),
        sample=200,
        # One size and num_blocks of a tower, one tower of a method tell as much as all of them.
        without="test_towers.py and (many or RN50 or coca_ViT or ViTamin or PE-Core)"
        " or left_alone and not wide"
        " or test_dual_path and (wide or -0 or -1 or all)"
        " or test_positions_as and native"
        " or test_captum and not (CLIPSurgery-vit or CLIPSimilarity-vit or LeGrad-vit"
        " or two_texts or auto_counts)",
    ),
}
SETTINGS = {
    "source_paths": PACKAGE,
    # The texts of errors are for people, who know a wrong one when they see it.
    "do_not_mutate_patterns": ["^ *raise ", '^ *f?"', '^ *return f?"[^"]* '],
    "process_isolation": "forkserver",
    "timeout_constant": "3",
    "timeout_multiplier": "10",
    "track_dependencies": "false",
    "on_dependency_change": "ignore",
}
PYTEST = ("-p", "no:cacheprovider", "--override-ini", "addopts=", "-m", "not slow")
# It collects garbage five times at the end, which takes longer than most tests.
PYTEST += ("-p", "no:unraisableexception")


def prepare(name: str) -> Path:
    """A folder of the group's own, in which mutmut finds the sources and its settings."""
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
    parser.add_argument("group", nargs="?", choices=GROUPS, help="one of them; without, all")
    parser.add_argument("--again", action="store_true", help="what survived, too")
    parser.add_argument("--processes", type=int, default=1, help="at once")
    options = parser.parse_args()
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "OMP_NUM_THREADS": "1"}
    for name in [options.group] if options.group else GROUPS:
        arguments = [name, GROUPS[name].sample, "again" if options.again else "", options.processes]
        command = [sys.executable, Path(__file__).with_name("mutants.py"), *map(str, arguments)]
        subprocess.run(command, cwd=prepare(name), env=environment, check=True)


if __name__ == "__main__":
    main()
