#!/usr/bin/env python3
"""Print how well the package keeps its layout. Standard library only.

    python .ci/house.py [--strict]     --strict: exit 1 if there is a circle, an arrow back up or
                                       a definition without a docstring

Rooms are the modules and folders directly under the package. Reported are groups of rooms that
import each other in a circle (lazy imports inside functions count, except those of `demo` in the
classifier), arrows against ORDER, private names used from another room, definitions without a
docstring (those whose names begin with an underscore need none), and sizes.
"""

import ast
import collections
import pathlib
import statistics
import sys

PACKAGE = pathlib.Path("captum_clip_surgery")
#: Lower first: a room may import rooms of an earlier line, and none of a later one.
ORDER = [
    ["functional", "preprocessing", "_utils"],
    ["models"],
    ["queries"],
    ["classifier"],
    ["attr", "metrics", "datasets"],
    ["visualization"],
    ["tasks", "comparison", "decomposition", "diagnostics"],
    ["demo"],
    ["evaluation", "export"],
    ["collection"],
    ["app"],
    ["cli", "__main__"],
]


def module_name(path):
    parts = list(path.with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def exported(tree):
    """Return the names in a module's `__all__`."""
    values = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    nodes = [node for value in values for node in ast.walk(value)]
    return {node.value for node in nodes if isinstance(node, ast.Constant)}


def undocumented(scope, prefix):
    """Return the functions and classes without a docstring, in classes too, but no overrides."""
    found = []
    for node in scope.body:
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        if not isinstance(node, kinds) or is_private(node.name) or node.name.startswith("__"):
            continue
        decorators = " ".join(map(ast.unparse, node.decorator_list))
        overrides = "override" in decorators or "overload" in decorators
        if ast.get_docstring(node) is None and not overrides:
            found.append(f"{prefix} {node.name}")
        if isinstance(node, ast.ClassDef):
            found += undocumented(node, f"{prefix} {node.name}.")
    return found


def main():
    files = {module_name(p): p for p in sorted(PACKAGE.rglob("*.py"))}
    edges, private, bare = collections.defaultdict(set), [], []
    lines, spans, public = [], [], set()
    for name, path in files.items():
        text = path.read_text()
        lines.append((len(text.splitlines()), str(path)))
        tree = ast.parse(text)
        here = room_of(name)
        for node in ast.walk(tree):
            targets = []
            if (
                isinstance(node, ast.ImportFrom)
                and node.module
                and node.module.startswith(PACKAGE.name)
            ):
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    targets.append(full if full in files else node.module)
                    if (
                        is_private(alias.name)
                        and room_of(node.module) != here
                        and full not in files
                    ):
                        private.append(f"{path}:{node.lineno} imports {alias.name}")
            elif isinstance(node, ast.Import):
                targets = [a.name for a in node.names if a.name.startswith(PACKAGE.name)]
            for target in targets:
                there = room_of(target)
                if there != here and there != "__init__" and here != "__init__":
                    edges[here, there].add(f"{path}:{node.lineno}")
            if isinstance(node, ast.Attribute) and is_private(node.attr):
                own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                if not own:
                    private.append(f"{path}:{node.lineno} {ast.unparse(node)}")
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                spans.append((node.end_lineno - node.lineno + 1, f"{path}:{node.name}"))
        bare += undocumented(tree, f"{path}:")
        if not any(map(is_private, path.with_suffix("").parts)):
            public |= exported(tree)
    graph = collections.defaultdict(set)
    for (a, b), where in edges.items():
        if b == "demo" and all("classifier" in w for w in where):
            continue  # ZeroShotClassifier.demo
        graph[a].add(b)
    circles = [c for c in components(graph) if len(c) > 1]
    floor = {room: i for i, rooms in enumerate(ORDER) for room in rooms}
    back = sorted(
        f"{a} -> {b}: {', '.join(sorted(edges[a, b])[:3])}"
        for a in graph
        for b in graph[a]
        if a in floor and b in floor and floor[b] > floor[a]
    )
    strange = sorted({r for e in edges for r in e if r not in floor})
    root = [p for p in PACKAGE.glob("*.py") if not p.name.startswith("__")]
    median = statistics.median(n for n, _ in lines)
    total = sum(n for n, _ in lines)
    print(f"{len(files)} modules, {total} lines; median {median:.0f}, longest {max(lines)}")
    print(
        f"{len(root)} modules at the package's root; {len(public)} names in `__all__` of modules "
        "without an underscore"
    )
    median = statistics.median(n for n, _ in spans)
    print(f"functions: median {median:.0f} lines, longest {max(spans)}")
    for title, found in (
        ("rooms that import each other in a circle", [" ".join(sorted(c)) for c in circles]),
        ("arrows that run back up", back),
        ("rooms not in ORDER", strange),
        ("private names used from outside (or on other objects)", private),
        ("names without an underscore and without a docstring", bare),
    ):
        print(f"\n{title}: {len(found)}")
        for line in found[:40]:
            print("   ", line)
    return 1 if "--strict" in sys.argv and (circles or back or bare) else 0


def components(graph):
    """Strongly connected components, by Tarjan's algorithm."""
    index, low, stack, on, out = {}, {}, [], set(), []

    def visit(v):
        index[v] = low[v] = len(index)
        stack.append(v)
        on.add(v)
        for w in graph.get(v, ()):
            if w not in index:
                visit(w)
                low[v] = min(low[v], low[w])
            elif w in on:
                low[v] = min(low[v], index[w])
        if low[v] == index[v]:
            group = set()
            while True:
                w = stack.pop()
                on.discard(w)
                group.add(w)
                if w == v:
                    break
            out.append(group)

    for v in list(graph):
        if v not in index:
            visit(v)
    return out


if __name__ == "__main__":
    sys.exit(main())
