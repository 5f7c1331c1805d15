"""Judge our routers by recorded tables: ``python -m validation.routers --rows FILE_OR_FOLDER``.

A table is a JSON file; the beginning of its name says which rule it is of. Exits with 1 if a table is missed: a number
is off by more than 1e-9, or a choice is another one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from validation.routers import Judge, dynamo, gateways, llm_d

TOLERANCE = 1e-9

JUDGES: dict[str, Judge] = {**llm_d.JUDGES, **dynamo.JUDGES, **gateways.JUDGES}
"""By the beginning of the file's name; the longest one counts."""


def judge(file: Path) -> bool:
    """Print one line on a table; return whether it is met."""
    prefix = max((name for name in JUDGES if file.stem.startswith(name)), key=len, default=None)
    if prefix is None:
        print(f"MISSED {file.name}: the name begins with no table that is judged here")
        return False
    rows = list(JUDGES[prefix](json.loads(file.read_text(encoding="utf-8"))))
    error = max((row.error for row in rows), default=0.0)
    choices = [row.equal for row in rows if row.equal is not None]
    missed = [row.row for row in rows if not row.error <= TOLERANCE or row.equal is False]
    met = bool(rows) and not missed
    line = f"{'met   ' if met else 'MISSED'} {file.name}: {len(rows)} rows, largest error {error:.2g}"
    if choices:
        line += f", {sum(choices)} of {len(choices)} choices equal"
    print(line + (f"; missed: {', '.join(missed[:5])}{', ...' if len(missed) > 5 else ''}" if missed else ""))
    return met


def main(arguments: Sequence[str]) -> int:
    """Judge one table or a folder of them, and return the exit code: 1 for a missed one, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m validation.routers", description=__doc__)
    parser.add_argument("--rows", type=Path, required=True, help="a table, or a folder of tables")
    rows = parser.parse_args(arguments).rows
    files = sorted(rows.glob("*.json")) if rows.is_dir() else [rows]
    try:
        met = [judge(file) for file in files]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        print(f"not a table of recorded choices: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    if not files:
        print(f"{rows}: no table here (allowed: a JSON file, or a folder with some)", file=sys.stderr)
        return 2
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
