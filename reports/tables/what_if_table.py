"""What one change at a time would do, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reports.formatting import metric_words, show
from reports.table import Table
from reports.text.deltas import CLEAR_WORDS, bounds_words
from sim.results.model import MetricChange
from sim.results.run_directory.study_records import WhatIfRow

COSTS = ("usd_per_m_tokens",)
"""Metrics that the table ends with, where there is a price."""


def what_if_table(rows: Sequence[WhatIfRow], names: Sequence[str]) -> Table | None:
    """Return each change with its effect on every metric; None where nothing was tried.

    :param names: metrics, the most important first.
    """
    if not rows:
        return None
    base: Mapping[str, MetricChange] = next((row.metrics for row in rows if row.metrics), {})
    names = [*names, *(name for name in COSTS if name in base and name not in names)]
    lines = []
    for row in rows:
        if row.refused:
            lines.append([row.label, "not possible", *([""] * len(names))])
            continue
        cells = [what_if_cell(name, row.metrics.get(name)) for name in names]
        lines.append([row.label, row.verdict or "", *cells])
    refused = [f"{row.label}: {row.refused}" for row in rows if row.refused]
    notes = [f"{row.label}: {row.note}" for row in rows if row.note]
    known = [name for name in names if name in base and base[name].one is not None]
    sentences = [
        "As planned: " + ", ".join(f"{metric_words(name)} {show(name, base[name].one)}" for name in known),
        "Brackets: the change and its 95 % interval, from pairs under the same traffic",
        *refused,
        *notes,
    ]
    note = ". ".join(sentences)
    head = ["change", "SLO", *(metric_words(name) for name in names)]
    verdicts = {(index, 1): row.verdict for index, row in enumerate(rows) if row.verdict}
    optional = tuple(range(len(head) - 1, 2, -1))
    return Table("What if? One change at a time", head, lines, f"{note}.", (1,), verdicts, optional)


def what_if_cell(name: str, found: MetricChange | None) -> str:
    """Return what a metric becomes, and the interval of its change where that is clear."""
    if found is None or found.other is None:
        return "–"
    text = show(name, found.other)
    if found.lo is None or found.hi is None:
        return text
    if found.word not in CLEAR_WORDS:
        return f"{text} (no clear change)"
    return f"{text} ({CLEAR_WORDS[found.word]}: {bounds_words(name, found)})"
