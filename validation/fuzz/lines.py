"""Run a command line in this process, as ``loraplan`` would, and say whether it ended as promised."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sim import cli

RATIOS = ("hit_ratio", "delayed_hit_ratio", "miss_ratio")


@dataclass(frozen=True)
class Ended:
    """How a line ended.

    :ivar trace: the traceback of what no error of ours explains.
    :ivar warned: warnings that a user would have seen on stderr.
    """

    code: int
    out: str
    err: str
    trace: str = ""
    warned: list[str] = field(default_factory=list)


@contextlib.contextmanager
def _in(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def run_line(line: list[str], folder: Path) -> Ended:
    """Run one command in a folder."""
    out, err, trace = io.StringIO(), io.StringIO(), ""
    argv, sys.argv = sys.argv, ["loraplan", *line]
    try:
        with (
            _in(folder),
            warnings.catch_warnings(record=True) as warned,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            warnings.simplefilter("always")
            try:
                code = cli._exit_code(list(line), debug=True, confined=False)
            except SystemExit as stopped:
                code = int(stopped.code or 0)
            except Exception as error:
                code = cli._explain(error)
                if code not in (1, 2):
                    trace = traceback.format_exc()
    finally:
        sys.argv = argv
    return Ended(code, out.getvalue(), err.getvalue(), trace, [f"{w.category.__name__}: {w.message}" for w in warned])


def faults_of(line: list[str], ended: Ended, folder: Path, *, lawful: bool) -> list[str]:
    """Return what a line's end breaks of what was promised, in words; nothing if all is well.

    :param lawful: whether results must satisfy the laws.
    """
    if ended.trace:
        return [f"a failure inside: {ended.trace}"]
    found = [f"a warning of Python's: {words}" for words in dict.fromkeys(ended.warned)]
    if ended.code not in (0, 1, 2):
        found.append(f"exit code {ended.code}")
    if ended.code == 2:
        found += _unexplained(ended.err)
    if "Traceback (most recent call last)" in ended.err + ended.out:
        found.append("prints a traceback")
    found += [f"prints a control character: {text!r}" for text in _controls(ended.out + ended.err)[:1]]
    if ended.code in (0, 1) and ended.out.strip() and "--json" in line and not {"--help", "--version"} & set(line):
        try:
            data = json.loads(ended.out, parse_constant=_no_constant)
        except ValueError as error:
            found.append(f"prints no JSON: {error}")
        else:
            found += _laws(data) if lawful and line[:1] in (["run"], ["sweep"]) else []
    if ended.code in (0, 1):
        found += [f"{file.relative_to(folder)}: {problem}" for file, problem in _torn(folder, line)]
    return found


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def _unexplained(err: str) -> list[str]:
    errors = [text for text in err.splitlines() if text.startswith("error: ")]
    if not errors and "Usage:" not in err:  # the help of a command without its arguments
        return [f"exit code 2 without a reason: {err[:300]!r}"]
    return [f"an error of one word: {text!r}" for text in errors if " " not in text.removeprefix("error: ").strip()]


def _controls(text: str) -> list[str]:
    return [line[:200] for line in text.split("\n") if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in line)]


def _laws(data: Any) -> list[str]:
    """Return the laws that a summary breaks."""
    found: list[str] = []
    points = data.get("points") if isinstance(data, dict) else None
    for point in points if isinstance(points, list) else ():
        metrics = point.get("metrics", {}) if isinstance(point, dict) else {}
        values = {name: metric["value"] for name, metric in metrics.items()}
        shares = [values[name] for name in RATIOS if values.get(name) is not None]
        if len(shares) == len(RATIOS) and not math.isclose(sum(shares), 1, abs_tol=1e-9):
            found.append(f"hits, delayed hits and misses make {sum(shares)} of the admitted requests")
        for name, metric in metrics.items():
            value, low, high = metric["value"], metric["lo"], metric["hi"]
            if value is not None and (
                value < 0 or (name.endswith("_ratio") and name != "byte_miss_ratio" and value > 1 + 1e-9)
            ):
                found.append(f"{name} is {value}")
            if None not in (value, low, high) and not low - 1e-9 * abs(low) <= value <= high + 1e-9 * abs(high):
                found.append(f"{name}: {value} lies outside {low} to {high}")
    return found


def _torn(folder: Path, line: list[str]) -> Iterator[tuple[Path, str]]:
    """Yield files of a run directory that a command has just finished and that can't be read."""
    if line[:1] not in (["run"], ["sweep"], ["plan"]) or "--out" not in line[:-1]:
        return
    out = folder / line[line.index("--out") + 1]
    for name in ("manifest.json", "summary.json"):
        file = out / name
        if file.is_file():
            try:
                json.loads(file.read_bytes(), parse_constant=_no_constant)
            except ValueError as error:
                yield file, str(error)
    for draft in out.rglob(".*.tmp"):
        yield draft, "a draft that was left"
    table = out / "points.csv"
    if table.is_file() and len({len(row) for row in csv.reader(io.StringIO(table.read_text()))}) > 1:
        yield table, "rows of different lengths"
