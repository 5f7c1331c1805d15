"""The page of a comparison of two runs, and the tables that the terminal shares with it; one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reports.answers.comparison_text import details, headline
from reports.answers.deltas import change_cell, relative_cell
from reports.answers.run_comparison import OPEN, Comparison, key_metrics
from reports.axes import spread
from reports.charts.comparison_charts import charts_of
from reports.formatting import metric_words, show
from reports.pages import method
from reports.pages.run_page import template
from reports.table import Table
from sim.results.pairs import BETTER, NOT_COMPARABLE, UNCLEAR, WORSE, Difference
from sim.results.run_directory.result_files import write_text
from sim.results.run_directory.store import RunData

_MOST_ROWS, _MOST_IN_TERMINAL = 400, 60
_BADGES = {
    BETTER: ("✓", "B is better", "met"), WORSE: ("✕", "B is worse", "not-met"),
    OPEN: ("?", "Open", "unclear"), UNCLEAR: ("?", "No clear difference", "unclear"),
    NOT_COMPARABLE: ("–", "Not comparable", "no-SLO"),
}  # fmt: skip
_PP_NOTE = "pp: percentage points."


def write_page(comparison: Comparison, path: Path, command: str) -> Path:
    """Write the page; a reader never sees half a file."""
    write_text(path, template("compare.html.j2").render(**_context(comparison, command)))
    return path


def _context(comparison: Comparison, command: str) -> dict[str, Any]:
    runs = [(letter, run) for letter, run in (("A", comparison.one), ("B", comparison.other))]
    single = len(comparison.pairs) == 1
    return {
        "names": [_name(run) for _, run in runs], "headline": headline(comparison), "details": details(comparison),
        "badge": _BADGES.get(comparison.word, ("◐", "Better in one, worse in another", "partly")),
        "judged": ", ".join(_judged_words(comparison)), "cautions": comparison.cautions,
        "sides": [(letter, _name(run), _side_words(run)) for letter, run in runs],
        "differs": differs_table(comparison), "key": key_table(comparison),
        "all": all_table(comparison) if single else None, "charts": charts_of(comparison),
        "made": _made_table(comparison), "command": command,
    }  # fmt: skip


def _name(run: RunData) -> str:
    return run.path.resolve().name or str(run.path)


def _side_words(run: RunData) -> str:
    name = str(run.manifest.get("name", ""))
    count = f", {len(run.points)} points" if len(run.points) > 1 else ""
    return f"{name}{count}"


def _judged_words(comparison: Comparison) -> list[str]:
    terms = comparison.terms
    return [metric_words(n) + (f" (SLO {show(n, terms[n])})" if n in terms else "") for n in comparison.judged]


def differs_table(comparison: Comparison) -> Table | None:
    """Return the keys in which the scenarios differ, with the values of both; None where they don't."""
    if not comparison.changed:
        return None
    note = "Defaults included: a preset such as fleet.engine changes several keys. Names and descriptions are left out."
    rows = [list(row) for row in comparison.changed]
    return Table("What differs between the scenarios", ["key", "A", "B"], rows, note, words=(1, 2))


def _made_table(comparison: Comparison) -> Table:
    """Return how both runs were made."""
    told = [{"folder": str(run.path), "code": str(run.manifest.get("code", "unknown")),
             **dict(method.provenance(run.manifest)), "command": str(run.manifest.get("command", ""))}
            for run in (comparison.one, comparison.other)]  # fmt: skip
    rows = [[key, *(side.get(key, "–") for side in told)] for key in dict.fromkeys([*told[0], *told[1]])]
    return Table("How the runs were made", ["", "A", "B"], rows, words=(1, 2))


def key_table(comparison: Comparison) -> Table:
    """Return what decides, and the metrics that explain it: one row a metric, in a sweep one a point and metric."""
    axes = comparison.axes
    if len(comparison.pairs) == 1:
        return _table("The metrics that matter, from A to B", comparison, key_metrics(comparison))
    head = ["metric", *(axis.words for axis in axes), "A", "B", "change", "relative", "B is"]
    rows = [
        [metric_words(name), *(axis.point_label(pair.other) for axis in axes), *_cells(d)]
        for name in comparison.judged
        for pair in comparison.pairs
        if (d := pair.differences.get(name)) is not None
    ]
    shown = spread(rows, _MOST_ROWS)
    note = "" if len(shown) == len(rows) else f"{len(shown)} of {len(rows)} rows, evenly spaced; compare.json has all."
    caption = "Change from A to B at every point, in what decides"
    return Table(caption, head, shown, f"{note} {_note(shown)}".strip(), words=(len(head) - 1,))


def all_table(comparison: Comparison) -> Table:
    """Return every metric of a single pair."""
    known = [d.name for d in comparison.pairs[0].differences.values() if d.one is not None or d.other is not None]
    return _table("Every metric, from A to B", comparison, known)


def _table(caption: str, comparison: Comparison, names: Sequence[str]) -> Table:
    differences = comparison.pairs[0].differences
    known = [differences[name] for name in names if name in differences]
    rows = [[_words(d, comparison), *_cells(d), d.note] for d in known]
    head = ["metric", "A", "B", "change", "relative", "B is", "remark"]
    if not any(row[-1] for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    return Table(caption, head, rows, _note(rows), words=(5, 6))


def _words(d: Difference, comparison: Comparison) -> str:
    target = comparison.terms.get(d.name)
    return metric_words(d.name) + ("" if target is None else f", SLO {show(d.name, target)}")


def _cells(d: Difference) -> list[str]:
    values = ["–" if value is None else show(d.name, value, d.unit) for value in (d.one, d.other)]
    return [*values, change_cell(d), relative_cell(d), d.word]


def _note(rows: Sequence[Sequence[str]]) -> str:
    brackets = "In brackets: the 95 % interval of the change."
    return f"{brackets} {_PP_NOTE}" if any(" pp" in cell for row in rows for cell in row) else brackets


def terminal_table(comparison: Comparison) -> Table:
    """Return the key table for a terminal: without remarks, a star on what is unsettled, not too long."""
    table = key_table(comparison)
    head, rows, note = list(table.head), [list(row) for row in table.rows], table.note
    if head[-1] == "remark":
        starred = [row[-1].startswith("unsettled") for row in rows]
        head, rows = (
            head[:-1],
            [[*row[:-2], row[-2] + (" *" if s else "")] for row, s in zip(rows, starred, strict=True)],
        )
        note += " * unsettled: the interval is doubled; the page says why" if any(starred) else ""
    shown = spread(rows, _MOST_IN_TERMINAL)
    if len(shown) < len(rows):
        note += f" {len(shown)} of {len(rows)} rows, evenly spaced; the page has more."
    return Table(table.caption, head, shown, note.strip())
