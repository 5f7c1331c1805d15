"""Tables of a comparison of two runs, for the page and the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from reports.answers.run_comparison import Comparison, key_metrics
from reports.axes import spread
from reports.formatting import metric_words, show
from reports.table import Table
from reports.text.deltas import change_cell, relative_cell
from sim.results.pairs import Difference
from sim.spec.engines import engine_words

_MOST_ROWS, _MOST_IN_TERMINAL = 400, 60

_PP_NOTE = "pp: percentage points."


def differs_table(comparison: Comparison) -> Table | None:
    """Return the keys in which the scenarios differ, with the values of both; None where they don't."""
    if not comparison.changed:
        return None
    note = "Defaults included: a preset such as fleet.engine changes several keys. Names and descriptions are left out."
    rows = differing_rows(comparison)
    return Table("What differs between the scenarios", ["key", "A", "B"], rows, note, words=(1, 2))


def differing_rows(comparison: Comparison) -> list[list[str]]:
    """Return key and values of what differs between the scenarios; an idealised engine says so."""
    return [
        [key, *(map(engine_words, values) if key == "fleet.engine" else values)] for key, *values in comparison.changed
    ]


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
    last = len(head) - 1
    return Table(table.caption, head, shown, note.strip(), words=(last,), optional=(last - 2, last - 1))
