"""Count what makes a code base hard to inherit: large folders, import circles, long signatures, formatter exceptions.

    python tools/house.py            a table
    python tools/house.py --list     also every place that is counted

These are figures to watch, not a gate.
"""

from __future__ import annotations

import argparse
import ast
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("sim", "calibrate", "reports")
MOST_MODULES, MOST_PARAMETERS = 16, 6
PROSE = ("note", "text", "reason", "problem", "headline")
"""Attributes that hold sentences for people. A comparison or a search in one of them is a decision that reads prose."""
SEARCHES = ("startswith", "endswith", "find", "index", "count")


def modules() -> dict[str, Path]:
    """Return every module of the packages and the public face, by dotted name."""
    found = {}
    for file in [
        *ROOT.glob("loraplan.py"),
        *(file for name in PACKAGES for file in sorted((ROOT / name).rglob("*.py"))),
    ]:
        parts = file.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports_of(name: str, tree: ast.Module, known: set[str]) -> set[str]:
    """Return the modules of ours that a module imports when it is loaded, or later inside a function."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
            found.add(node.module)
    return {each for each in found if each in known and each != name}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected components of more than one module (Tarjan's algorithm)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        number[node] = low[node] = len(number)
        stack.append(node)
        for other in graph[node]:
            if other not in number:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], number[other])
        if low[node] == number[node]:
            component = []
            while True:
                component.append(stack.pop())
                if component[-1] == node:
                    break
            if len(component) > 1:
                found.append(sorted(component))

    for node in graph:
        if node not in number:
            visit(node)
    return found


def parameters_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return how many parameters a function takes, ``self`` and ``cls`` left out."""
    taken = function.args
    names = [each.arg for each in (*taken.posonlyargs, *taken.args, *taken.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def reads_prose(node: ast.AST) -> bool:
    """Return whether an expression compares or searches an attribute that holds a sentence."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in SEARCHES:
        return isinstance(node.func.value, ast.Attribute) and node.func.value.attr in PROSE
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        named = any(isinstance(side, ast.Attribute) and side.attr in PROSE for side in sides)
        empty = any(isinstance(side, ast.Constant) and side.value in ("", None) for side in sides)
        return named and not empty
    return False


def places() -> Iterator[tuple[str, str]]:
    """Yield what is counted and where, for everything that has a place."""
    found = modules()
    known = set(found)
    graph = {}
    names: dict[str, list[str]] = defaultdict(list)
    folders: Counter[str] = Counter()
    for name, file in found.items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        graph[name] = imports_of(name, tree, known)
        where = str(file.relative_to(ROOT))
        if file.name not in ("__init__.py", "__main__.py"):
            names[file.name].append(where)
            folders[str(file.parent.relative_to(ROOT))] += 1
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and parameters_of(node) > MOST_PARAMETERS:
                yield f"functions with more than {MOST_PARAMETERS} parameters", f"{where}:{node.lineno} {node.name}"
            if reads_prose(node):
                yield "decisions that read prose", f"{where}:{node.lineno}"  # type: ignore[attr-defined]
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if "# fmt: skip" in line or "# fmt: off" in line:
                yield "formatter exceptions", f"{where}:{number}"
    yield from (("import circles", " ".join(circle)) for circle in circles(graph))
    yield from (("module names used twice or more", " ".join(files)) for files in names.values() if len(files) > 1)
    for folder, count in folders.items():
        if count > MOST_MODULES:
            yield f"folders of more than {MOST_MODULES} modules", f"{folder} ({count})"
    for file in sorted((ROOT / "tests").rglob("*.py")):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if "# fmt: skip" in line or "# fmt: off" in line:
                yield "formatter exceptions in tests", f"{file.relative_to(ROOT)}:{number}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Count what makes a code base hard to inherit.")
    parser.add_argument("--list", action="store_true", help="also print every place that is counted")
    options = parser.parse_args()
    counted: dict[str, list[str]] = {
        f"folders of more than {MOST_MODULES} modules": [],
        "import circles": [],
        "module names used twice or more": [],
        f"functions with more than {MOST_PARAMETERS} parameters": [],
        "decisions that read prose": [],
        "formatter exceptions": [],
        "formatter exceptions in tests": [],
    }
    for what, where in places():
        counted[what].append(where)
    lines = sum(file.read_text(encoding="utf-8").count("\n") for file in modules().values())
    for what, wheres in counted.items():
        print(f"{what:45} {len(wheres):6,}")
        if options.list:
            print("".join(f"    {where}\n" for where in wheres), end="")
    print(f"{'lines of Python (wc -l)':45} {lines:6,}")


if __name__ == "__main__":
    main()
