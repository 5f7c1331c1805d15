"""What benchmarks found before: one line of JSON a run in ``bench_history.jsonl``, and how today's figures compare.

``worth`` travels between machines, requests per second don't: a run's worth is held against the median of the last few
runs of the same row and mode. Nothing here fails on what it finds, or on a history that is missing or damaged.
"""

from __future__ import annotations

import json
import math
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from sim.studies.study_identity import code_version

HISTORY = Path(__file__).with_name("bench_history.jsonl")
LAST = 5
"""Runs whose median a row is held against."""
SLOWER = 1.2
"""What is pointed out: worth is noisy by a tenth on a busy machine."""

Mode = Literal["full", "quick", "cache", "cache-quick"]


@dataclass(frozen=True, slots=True)
class Figures:
    """What a row took.

    :ivar worth: CPU time of one request over that of one bare SimPy timeout, or of a bare OrderedDict's request where
        caches are replayed.
    :ivar peak_mb: peak memory of the row's process; None where rows share one.
    """

    worth: float
    requests_per_s: float
    bare_per_s: float
    peak_mb: float | None = None


@dataclass(frozen=True, slots=True)
class Compared:
    """A row beside the history.

    :ivar before: the median worth of the last ``runs`` runs that have it; None without any.
    """

    name: str
    worth: float
    before: float | None
    runs: int

    @property
    def ratio(self) -> float | None:
        return self.worth / self.before if self.before else None

    @property
    def slower(self) -> bool:
        return self.ratio is not None and self.ratio > SLOWER


def append(mode: Mode, rows: Mapping[str, Figures], path: Path = HISTORY) -> None:
    """Add a run to the history.

    :raises OSError: if the file can't be written.
    """
    entry = {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ"),
        "code": code_version(),
        "python": platform.python_version(),
        "mode": mode,
        "rows": {name: _rounded(figures) for name, figures in rows.items()},
    }
    # A line that a broken-off run left must not swallow this one.
    torn = path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write(("\n" if torn else "") + json.dumps(entry) + "\n")


def read(path: Path = HISTORY) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the runs, oldest first, and in words what could not be read."""
    try:
        lines = path.read_bytes().decode(errors="replace").splitlines()
    except OSError as error:
        return [], [f"{path.name}: no history to compare with: {error.strerror or error}"]
    runs, notes = [], []
    for number, line in enumerate(lines, 1):
        try:
            run = json.loads(line)
            for row in run["rows"].values():
                if not (math.isfinite(row["worth"]) and row["worth"] > 0):
                    raise ValueError("no worth")
            runs.append({"mode": run["mode"], "rows": run["rows"]})
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
            notes.append(f"{path.name}:{number}: this line can't be read: left out")
    return runs, notes


def compare(mode: Mode, rows: Mapping[str, Figures], runs: Sequence[Mapping[str, Any]]) -> list[Compared]:
    """Hold each row against the median of the last runs of the same mode that have it."""
    found = []
    for name, figures in rows.items():
        known = [run["rows"][name]["worth"] for run in runs if run["mode"] == mode and name in run["rows"]][-LAST:]
        found.append(Compared(name, figures.worth, statistics.median(known) if known else None, len(known)))
    return found


def table(found: Sequence[Compared]) -> list[str]:
    """Return the comparison as lines of text, the slower rows named once more below it."""
    lines = [f"{'against the history':44} {'worth':>6} {'before':>7} {'runs':>5} {'ratio':>6}"]
    for row in found:
        before = f"{row.before:7.1f}" if row.before is not None else f"{'–':>7}"
        ratio = f"{row.ratio:6.2f}" if row.ratio is not None else f"{'new':>6}"
        lines.append(f"{row.name:44} {row.worth:6.1f} {before} {row.runs:5} {ratio}{'  slower' if row.slower else ''}")
    slower = [row.name for row in found if row.slower]
    if slower:
        lines.append(
            f"slower by more than {SLOWER - 1:.0%} than the median of the last {LAST} runs: {'; '.join(slower)}"
        )
    return lines


def _rounded(figures: Figures) -> dict[str, float]:
    """Return four digits of each figure: more say nothing."""
    return {name: float(f"{value:.4g}") for name, value in asdict(figures).items() if value is not None}
