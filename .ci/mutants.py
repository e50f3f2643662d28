"""Test the mutants of a group in the folder that `mutation.py` made for it.

This is a separate program because mutmut reads its settings from the current folder on import.
"""

from __future__ import annotations

import random
import sys
from typing import Any

import mutmut.__main__ as mutmut
from mutmut.mutation import file_mutation
from mutmut.runners.harness import PytestRunner
from mutmut.stats import status_by_exit_code

KILLED = ("killed", "timeout")
SEED = 0


def mutate_decorated_functions() -> None:
    """Make mutmut mutate decorated functions, such as properties, which it leaves out.

    It would decorate every mutant; here only the function that chooses among them is decorated.
    """
    skips = file_mutation.MutationVisitor._skip_node_and_children
    arrange = file_mutation.function_trampoline_arrangement

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


def run_tests_in_order() -> None:
    """Run tests in the order of their names instead of the order of a set."""
    arguments = PytestRunner._pytest_args_regular_run
    PytestRunner._pytest_args_regular_run = lambda self, tests: arguments(self, sorted(tests))


def results(sample: int | None) -> dict[str, str]:
    """Return the status of each mutant drawn."""
    found = {}
    for path in mutmut.walk_mutatable_files():
        data = mutmut.SourceFileMutationData(path=path)
        data.load()
        found.update({k: status_by_exit_code[code] for k, code in data.exit_code_by_key.items()})
    names = sorted(found)
    random.Random(SEED).shuffle(names)  # a smaller sample is part of a larger one
    return {name: found[name] for name in names[:sample]}


def run(name: str, sample: int | None, again: bool, processes: int) -> None:
    """Test the mutants without a result (with `again`, also the survivors) and print survivors."""
    mutate_decorated_functions()
    run_tests_in_order()
    # Results stay valid when the list of tests grows.
    mutmut._apply_config_change_invalidation = lambda _: False
    mutmut.makedirs("mutants", exist_ok=True)
    mutmut.copy_src_dir()
    mutmut.create_mutants(processes)
    waiting = [
        mutant
        for mutant, status in results(sample).items()
        if status == "not checked" or (again and status not in KILLED)
    ]
    if waiting:
        mutmut._run(waiting, processes)
    report(name, results(sample))


def report(name: str, found: dict[str, str]) -> None:
    for mutant, status in sorted(found.items()):
        if status not in KILLED:
            print(f"\n# {mutant}: {status}")
            print(mutmut.get_diff_for_mutant(mutant, path=mutmut.find_mutant(mutant).path))
    counts = {status: list(found.values()).count(status) for status in sorted({*found.values()})}
    killed = sum(counts.get(status, 0) for status in KILLED)
    print(f"\n{name}: {killed} of {len(found)} killed, {killed / len(found):.1%}; {counts}")


if __name__ == "__main__":
    group, sample, again, processes = sys.argv[1:]
    run(group, int(sample) or None, again == "again", int(processes))
