"""The page of a cache-only replay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reports.charts.cache_charts import orders_chart, policies_chart
from reports.charts.svg import Chart
from reports.formatting import number, percent
from reports.pages.page import Page
from reports.tables.cache_tables import miss_table
from reports.text.cache_text import capacity_words, headline, sentences
from sim.results.traces.cache_points import CacheResult


@dataclass(frozen=True)
class CachePage:
    """What the page shows.

    :ivar name: the trace, as the reader knows it.
    :ivar provenance: (label, text) lines.
    :ivar command: the command that writes this page again.
    """

    name: str
    result: CacheResult
    notes: Sequence[str]
    provenance: Sequence[tuple[str, str]]
    command: str


def write_page(page: CachePage, path: Path) -> Path:
    """Write the page and return its path."""
    result = page.result
    content = {
        "headline": headline(result),
        "sentences": sentences(result),
        "charts": _charts(result),
        "table": miss_table(result),
        "facts": _facts(result),
    }
    return Page("cache.html.j2", page.name, page.command, content, page.provenance, page.notes).write(path)


def _charts(result: CacheResult) -> list[Chart]:
    charts = [orders_chart(result)]
    if len(result.capacities) > 1:  # one capacity is a column of the table, not a chart
        charts.append(policies_chart(result, of_bytes=False))
        if result.at_bytes is not None:
            charts.append(policies_chart(result, of_bytes=True))
    return charts


def _facts(result: CacheResult) -> list[tuple[str, str, str]]:
    """Return label, figure and explanation of what holds at every capacity."""
    first = result.adapters / result.requests
    return [
        ("Requests", number(result.requests), "in the order of the trace"),
        ("Adapters", number(result.adapters), f"all of them take {capacity_words(result, result.footprint)}"),
        ("First requests", percent(first), "of requests are the first for their adapter, and miss in any cache"),
    ]
