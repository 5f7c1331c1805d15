"""The page of a cache-only replay, and the words and tables that the terminal shares with it; one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reports.answers.cache_findings import capacity_words, headline, sentences
from reports.charts.cache_charts import orders_chart, policies_chart
from reports.formatting import number, percent
from reports.pages.run_page import template
from reports.tables.cache_tables import miss_table
from sim.results.run_directory.result_files import write_text
from sim.results.traces.cache_points import CacheResult


@dataclass(frozen=True)
class CachePage:
    """What the page shows.

    :ivar name: the trace, as the reader knows it.
    :ivar provenance: (label, text) lines.
    :ivar command: what writes this page again.
    """

    name: str
    result: CacheResult
    notes: Sequence[str]
    provenance: Sequence[tuple[str, str]]
    command: str


def write_page(page: CachePage, path: Path) -> Path:
    """Write the page; a reader never sees half a file."""
    result = page.result
    charts = [orders_chart(result)]
    several = len(result.capacities) > 1  # one capacity is a column of the table, not a chart
    if several:
        charts.append(policies_chart(result, of_bytes=False))
    if several and result.at_bytes is not None:
        charts.append(policies_chart(result, of_bytes=True))
    context: dict[str, Any] = {
        "name": page.name, "headline": headline(result), "sentences": sentences(result), "charts": charts,
        "table": miss_table(result), "facts": _facts(result), "notes": page.notes, "provenance": page.provenance,
        "command": page.command,
    }  # fmt: skip
    write_text(path, template("cache.html.j2").render(**context))
    return path


def _facts(result: CacheResult) -> list[tuple[str, str, str]]:
    """Return label, figure and explanation of what holds at every capacity."""
    first = result.adapters / result.requests
    return [
        ("Requests", number(result.requests), "in the order of the trace"),
        ("Adapters", number(result.adapters), f"all of them take {capacity_words(result, result.footprint)}"),
        ("First requests", percent(first), "of requests are the first for their adapter, and miss in any cache"),
    ]
