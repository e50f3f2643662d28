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
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "captum_clip_surgery"


@dataclass(frozen=True)
class Group:
    """Files whose functions are mutated, and quick tests that should notice.

    `sample` is the number of mutants drawn (0: all); `without` and `slow` are pytest expressions of
    the tests to leave out and of slow ones to run.
    """

    files: tuple[str, ...]
    tests: tuple[str, ...]
    sample: int = 0
    without: str = "nothing"
    slow: str = "nothing"


GROUPS = {
    "functional": Group(("functional.py",), ("test_functional.py",)),
    "metrics": Group(
        ("metrics/*.py",),  # and its folders: `*` matches `/`
        (
            "metrics",
            "test_comparison.py::test_trust_says_how_much_each_map_depends_on_its_text",
            "test_trust.py::test_limits_of_words",
            "robustness/test_devices.py::test_whatever_the_default",
        ),
        sample=300,
        slow="whatever_the_default",
    ),
    "methods": Group(
        ("models/image/*.py", "models/_blocks.py", "attr/*.py"),
        (
            "attr",
            "models/test_agreement.py::test_hooks_on_containers_are_named",
            "models/test_direct_effects.py",
            "models/test_prefixes.py",
            "models/test_refusals.py",
            "models/test_token_grid.py",
            "models/test_towers.py",
            "models/test_towers_real.py::test_refused_configurations_say_why",
            "models/test_towers_real.py::test_refused_towers_say_why",
            "models/test_towers_real.py::test_unknown_positions",
            "models/test_transformers_models.py",
            "tasks/test_captions.py::test_sub_words_of_hugging_face_tokenizers",
            "test_comparison.py::test_captums_methods_are_captums",
            "test_comparison.py::test_occlusion_hides_whole_patches_in_a_grid_of_at_most_seven",
            "test_comparison.py::test_passes_at_once_follow_from_the_size",
            "test_decomposition.py",
            "test_trust.py::test_completeness_is_reported_where_a_method_promises_it",
            "test_trust.py::test_counts_are_of_images_and_of_the_innermost_block_and_those_around",
        ),
        sample=200,
        # One size of a tower tells as much as all of them; the others take seconds each.
        without="test_towers.py and (RN50 or coca_ViT or ViTamin or PE-Core) or test_compiled.py",
        slow="neurons_that_write_outliers or register_tower or parts_of_options or resizes_them "
        "or any_size_and_gradients or text_features_of_another "
        "or resnet and (half_precision_models_give or integrated_gradients or kernel_shap)",
    ),
}
KILLED = ("killed", "timeout")
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
PYTEST = ("-p", "no:cacheprovider", "--override-ini", "addopts=")
# This plugin collects garbage five times at the end, which takes longer than most tests.
PYTEST += ("-p", "no:unraisableexception")
# These read the documentation, which isn't copied.
PYTEST += ("--ignore=tests/metrics/test_metrics_docs.py",)


def prepare(name: str) -> Path:
    """Make a folder for a group with links to the sources and mutmut's settings."""
    group, folder = GROUPS[name], ROOT / ".cache" / "mutation" / name
    folder.mkdir(parents=True, exist_ok=True)
    for linked in (PACKAGE, "tests"):
        if not (folder / linked).is_symlink():
            (folder / linked).symlink_to(ROOT / linked)
    # `-k` reads names of marks as well.
    chosen = f"(not slow or {group.slow}) and not ({group.without})"
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT / "setup.cfg")
    settings["mutmut"] = {key: lines(value) for key, value in SETTINGS.items()} | {
        "only_mutate": lines([f"{PACKAGE}/{file}" for file in group.files]),
        "pytest_add_cli_args_test_selection": lines([f"tests/{test}" for test in group.tests]),
        "pytest_add_cli_args": lines([*PYTEST, "-k", chosen]),
    }
    with (folder / "setup.cfg").open("w") as file:
        settings.write(file)
    return folder


def lines(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "\n" + "\n".join(value)


# --- in a group's folder -------------------------------------------------------------------------


def adapt() -> None:
    """Make mutmut mutate decorated functions as well, and run tests in the order of their names.

    It would decorate every mutant of a property; here only the function that chooses among the
    mutants is decorated.
    """
    from mutmut.mutation import file_mutation
    from mutmut.runners.harness import PytestRunner

    skips = file_mutation.MutationVisitor._skip_node_and_children
    arrange = file_mutation.function_trampoline_arrangement
    arguments = PytestRunner._pytest_args_regular_run

    def plain(node: Any) -> Any:
        function = isinstance(node, file_mutation.cst.FunctionDef)
        kinds = [getattr(d.decorator, "value", None) for d in node.decorators] if function else []
        if not kinds or kinds[0] in ("classmethod", "staticmethod"):
            return node
        return node.with_changes(decorators=[])

    def arranged(function: Any, mutants: Any, class_name: str | None) -> Any:
        declared, nodes, assigned, names = arrange(plain(function), mutants, class_name)
        if plain(function) is not function:
            both = [*function.decorators, *nodes[0].decorators]
            nodes[0] = nodes[0].with_changes(decorators=both)
        return declared, nodes, assigned, names

    file_mutation.MutationVisitor._skip_node_and_children = lambda self, node: skips(
        self, plain(node)
    )
    file_mutation.function_trampoline_arrangement = arranged
    PytestRunner._pytest_args_regular_run = lambda self, tests: arguments(self, sorted(tests))


def test_mutants(name: str, again: bool, processes: int) -> None:
    """Test the mutants without a result (with `again`, also survivors) and print survivors."""
    import mutmut.__main__ as mutmut
    from mutmut.stats import status_by_exit_code

    def results() -> dict[str, str]:
        found = {}
        for path in mutmut.walk_mutatable_files():
            data = mutmut.SourceFileMutationData(path=path)
            data.load()
            found.update({k: status_by_exit_code[v] for k, v in data.exit_code_by_key.items()})
        names = sorted(found)
        random.Random(0).shuffle(names)  # a smaller sample is part of a larger one
        return {mutant: found[mutant] for mutant in names[: GROUPS[name].sample or None]}

    adapt()
    # Results stay valid when the list of tests grows.
    mutmut._apply_config_change_invalidation = lambda _: False
    mutmut.makedirs("mutants", exist_ok=True)
    mutmut.copy_src_dir()
    mutmut.create_mutants(processes)
    waiting = [
        mutant
        for mutant, status in results().items()
        if status == "not checked" or (again and status not in KILLED)
    ]
    if waiting:
        mutmut._run(waiting, processes)
    statuses = results()
    survivors = {k: v for k, v in statuses.items() if v not in KILLED}
    for mutant, status in sorted(survivors.items()):
        print(f"\n# {mutant}: {status}")
        print(mutmut.get_diff_for_mutant(mutant, path=mutmut.find_mutant(mutant).path))
    killed = len(statuses) - len(survivors)
    print(f"\n{name}: {killed} of {len(statuses)} killed, {killed / len(statuses):.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("group", nargs="?", choices=GROUPS, help="group to test (default: all)")
    parser.add_argument("--again", action="store_true", help="repeat survivors")
    parser.add_argument("--processes", type=int, default=1, help="number of processes")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        test_mutants(options.group, options.again, options.processes)
        return
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "OMP_NUM_THREADS": "1"}
    for name in [options.group] if options.group else GROUPS:
        # A process of its own: mutmut reads its settings from the current folder on import.
        command = [sys.executable, __file__, name, "--here", f"--processes={options.processes}"]
        command += ["--again"] * options.again
        subprocess.run(command, cwd=prepare(name), env=environment, check=True)


if __name__ == "__main__":
    main()
