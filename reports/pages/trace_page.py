"""The page of a trace: what its traffic is like, and whether fitted traffic can replace it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from reports.charts.trace_charts import check_chart, curve_chart, rate_chart
from reports.formatting import number
from reports.pages.page import Page
from reports.table import Table
from reports.tables.trace_tables import (
    candidates_table,
    check_table,
    curve_table,
    facts_table,
    laws_table,
    lengths_table,
)
from reports.text.trace_text import headline, laws_sentences, lengths_sentences, sentences
from sim.results.traces.trace_facts import TraceFacts


@dataclass(frozen=True)
class TracePage:
    """What the page shows.

    :ivar name: the trace, as the reader knows it.
    :ivar command: the command that writes this page again.
    :ivar scenario: text of the file with the fitted traffic, or None.
    :ivar provenance: (label, text) lines.
    :ivar scenario_file: name of that file, in the folder of the page.
    """

    facts: TraceFacts
    name: str
    command: str
    scenario: str | None
    provenance: Sequence[tuple[str, str]]
    scenario_file: str = "traffic.yaml"


def write_page(page: TracePage, path: Path) -> Path:
    """Write the page and return its path."""
    return _page(page).write(path)


def build_page(page: TracePage) -> str:
    """Return the page as HTML."""
    return _page(page).html()


def _page(page: TracePage) -> Page:
    facts = page.facts
    curve = curve_table(facts)
    content = {
        "headline": _unbroken(headline(facts)),
        "sentences": _unbroken_all(sentences(facts)),
        "curve": curve_chart(facts, curve),
        "curve_table": curve,
        "check": check_chart(facts.fit),
        "check_table": check_table(facts),
        "candidates": candidates_table(facts),
        "rate": rate_chart(facts),
        "facts": facts_table(facts),
        "laws": _laws(facts),
        "laws_texts": _unbroken_all(laws_sentences(facts)),
        "lengths": lengths_table(facts),
        "lengths_texts": _unbroken_all(lengths_sentences(facts)),
        "fitted": facts.fit is not None,
        "found": facts.sessions is not None and not facts.sessions.named,
        "scenario": page.scenario,
        "scenario_file": page.scenario_file,
        "run": f"loraplan run {shlex.quote(page.scenario_file)}",
    }
    return Page("trace.html.j2", page.name, page.command, content, page.provenance, _notes(facts))


def _unbroken(text: str) -> str:
    """Return a text whose percent signs stay on the line of their number."""
    return text.replace(" %", "\u00a0%")


def _unbroken_all(texts: Sequence[str]) -> list[str]:
    return [_unbroken(text) for text in texts]


def _laws(facts: TraceFacts) -> list[Table]:
    """Return a table of laws for each thing they are of; verdicts of two words stay on one line."""
    tables = [laws_table(facts, of) for of in dict.fromkeys(law.of for law in facts.laws)]
    return [
        replace(table, rows=[[*row[:-1], row[-1].replace(" ", "\u00a0")] for row in table.rows])
        for table in tables
        if table is not None
    ]


def _notes(facts: TraceFacts) -> list[str]:
    """Return what a reader should know about the file, with the rows left out, by reason."""
    left_out = [f"Rows left out: {number(count)} ({reason})." for reason, count in facts.skipped.items()]
    return [*left_out, *facts.notes]
