"""The report on two runs side by side."""

from __future__ import annotations

from collections.abc import Sequence

from reports.axes import spread
from reports.document import Caution, File, Heading, Opening, Paragraph, Report, Section, method
from reports.formatting import metric_words, show
from reports.table import Table
from reports.text.metric_text import change_cell, relative_cell, values_of
from reports.text.setup_text import setup_line
from sim.results.model import Difference
from sim.results.pairs import BETTER, NOT_COMPARABLE, UNCLEAR, WORSE
from sim.results.run_directory.store import RunData
from sim.spec.engines import engine_words
from sim.studies.compare.charts import charts_of
from sim.studies.compare.design_words import change_phrase, side_names
from sim.studies.compare.findings import as_json, caution_sentences, details, headline, short
from sim.studies.compare.study import OPEN, Comparison, key_metrics
from sim.studies.run.method import provenance

_SHOWN = 12
"""Differing keys that the terminal lists."""
_MOST_ROWS, _MOST_IN_TERMINAL = 400, 60
_PP_NOTE = "pp: percentage points."
_BADGES = {
    BETTER: ("✓", "Better", "met"),
    WORSE: ("✕", "Worse", "not-met"),
    OPEN: ("?", "Open", "unclear"),
    UNCLEAR: ("?", "No clear difference", "unclear"),
    NOT_COMPARABLE: ("–", "Not comparable", "no-SLO"),
}
"""Mark, words and style of a verdict."""
_METHOD = (
    "A change is the value of B minus that of A, each over its whole run.",
    "Its 95 % interval comes from the change in each part of the run: one part a replication from five replications "
    "on, else a section. Both designs get the same traffic in a part where as many requests are drawn from the same "
    "random numbers; where they don't, the two intervals are combined as if independent.",
    "“Clearly” means that the interval excludes 0. Of twenty metrics that do not change, one seems clear by chance. A "
    "clear change may still be too small to matter: the relative change says.",
    "Values that are unsettled have their interval doubled. The uncertainty of the profile is in no interval here: it "
    "affects both designs, and partly cancels.",
)


def compare_report(comparison: Comparison, command: str) -> Report:
    """Return what differs between two runs, and what changes with it.

    :param command: the command that makes the report again.
    """
    runs = (("A", comparison.one), ("B", comparison.other))
    one, other = _name(comparison.one), _name(comparison.other)
    mark, words, style = _BADGES.get(comparison.word, ("◐", "Better in one, worse in another", "partly"))
    cautions, data, said = caution_sentences(comparison), as_json(comparison), short(comparison)
    terms = comparison.terms
    judged = [metric_words(n) + (f" (SLO {show(n, terms[n])})" if n in terms else "") for n in comparison.judged]
    return Report(
        kind="compare",
        name=f"{other} against {one}" if one != other else f"{other}: {change_phrase(comparison) or 'twice the same'}",
        lead="Two simulated designs, A and B, part by part. Is B better than A, and is that more than chance?",
        verdict=(mark, words, style, f"judged by {', '.join(judged)}"),
        headline=headline(comparison),
        short=said,
        facts=[
            (letter, _name(run) if name == letter else name, _side_words(run))
            for (letter, run), name in zip(runs, side_names(comparison), strict=True)
        ],
        data=data,
        terminal=_terminal(comparison),
        sections=lambda: _sections(comparison, command),
        files=[File("compare.json", data, "data")],
        notes=cautions,
        cautions=cautions,
    )


def _sections(comparison: Comparison, command: str) -> list[Section]:
    charts = charts_of(comparison)
    every = None
    if len(comparison.pairs) == 1:
        known = [d.name for d in comparison.pairs[0].differences.values() if d.one is not None or d.other is not None]
        every = _table("Every metric, from A to B", comparison, known)
    same = Paragraph("The scenarios are the same, defaults included.")
    one, other = _made(comparison.one), _made(comparison.other)
    rows = [[key, one.get(key, "–"), other.get(key, "–")] for key in dict.fromkeys([*one, *other])]
    made = Table("How the runs were made", ["", "A", "B"], rows, words=(1, 2))
    return [
        Section("lead", "", *charts[:1], Heading("Further findings"), *map(Caution, details(comparison)), *charts[1:3]),
        Section("differs", "What differs", differs_table(comparison) or same, listed="What differs"),
        Section("changes-in-numbers", "What changes", key_table(comparison), listed="Changes"),
        Section("charts", "A and B on the same axes", *charts[3:], listed="Charts"),
        Section("all", "Every metric", every),
        method(*_METHOD, Heading("Provenance"), made, command=command),
    ]


def _terminal(comparison: Comparison) -> list[str | Table | Opening]:
    found: list[str | Table | Opening] = [Opening(headline(comparison))]
    for letter, run in (("A", comparison.one), ("B", comparison.other)):
        found.append(f"{letter}  {run.path}  {run.manifest.get('name', '')}")
        found += [f"   {line}"] if (line := setup_line(run.points)) else []
    found += ["", *(f"  {sentence}" for sentence in details(comparison)), ""]
    rows = differing_rows(comparison)
    if rows:
        found.append(Table("", ["what differs", "A", "B"], rows[:_SHOWN]))
        found += [f"… and {len(rows) - _SHOWN} more: the page has all of them"] if len(rows) > _SHOWN else []
    else:
        found.append("The scenarios don't differ.")
    return [*found, "", terminal_table(comparison)]


def _name(run: RunData) -> str:
    return run.path.resolve().name or str(run.path)


def _side_words(run: RunData) -> str:
    name = " · ".join(filter(None, (str(run.path), str(run.manifest.get("name", "")), setup_line(run.points))))
    count = f", {len(run.points)} points" if len(run.points) > 1 else ""
    return f"{name}{count}"


def _made(run: RunData) -> dict[str, str]:
    folder = {"folder": str(run.path), "code": str(run.manifest.get("code", "unknown"))}
    return {**folder, **dict(provenance(run.manifest)), "command": str(run.manifest.get("command", ""))}


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
    return [*values_of(d), change_cell(d), relative_cell(d), d.word]


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
