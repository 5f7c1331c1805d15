"""Hold the house to its size: lines of Python by package against ``tools/budget.json``, and import circles.

    python tools/house.py      a table; exits with 1 where a package is over its budget, or imports run in a circle

A budget is what a package had when it was last set, and 3 %. Whoever raises one says in the commit message what users
got for it.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUDGETS = Path(__file__).with_name("budget.json")


def files_of(package: str) -> list[Path]:
    """Return the Python files of a package: those of a folder and all below it, or one file."""
    path = ROOT / package
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def lines_of(package: str) -> int:
    """Return the lines of Python in a package, as ``wc -l`` counts them."""
    return sum(file.read_text(encoding="utf-8").count("\n") for file in files_of(package))


def imports_of(tree: ast.Module) -> Iterator[str]:
    """Return the modules that a module needs when it is loaded: imports at its top, but not those for types alone."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def circle() -> list[str]:
    """Return modules that import each other in a circle; empty where there are none."""
    graph = {}
    for package in ("sim", "calibrate", "reports"):
        for file in files_of(package):
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            graph[name] = set(imports_of(ast.parse(file.read_text(encoding="utf-8")))) - {name}
    try:
        TopologicalSorter({name: used & graph.keys() for name, used in graph.items()}).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def main() -> int:
    """Print the table; return 1 where something is too large or in a circle."""
    budgets: dict[str, int] = json.loads(BUDGETS.read_text(encoding="utf-8"))
    over = False
    print(f"{'package':16}{'files':>8}{'lines':>8}{'budget':>8}")
    for package, budget in budgets.items():
        lines = lines_of(package)
        over = over or lines > budget
        print(f"{package:16}{len(files_of(package)):8,}{lines:8,}{budget:8,}{'  over' if lines > budget else ''}")
    if found := circle():
        print(f"imports in a circle: {' -> '.join(found)}")
    if over:
        print(f"over budget: make it smaller, or raise {BUDGETS.relative_to(ROOT)} and say what users got for it")
    return int(over or bool(found))


if __name__ == "__main__":
    sys.exit(main())
