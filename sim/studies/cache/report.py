"""The report on a cache-only replay."""

from __future__ import annotations

from collections.abc import Sequence

from reports.document import Caution, File, Heading, Provenance, Report, Section, method
from reports.formatting import number, percent
from reports.table import Table
from sim.cells import csv_text
from sim.studies.cache.charts import orders_chart, policies_chart
from sim.studies.cache.findings import capacity_words, headline, sentences
from sim.studies.cache.study import CacheResult
from sim.version import __version__

_METHOD = (
    "Every cache starts empty. A request for a resident adapter is a hit; any other is a miss, and the adapter enters "
    "at once. Adapters leave until it fits; one larger than the cache is never kept.",
    "Real serving protects adapters that running requests use, and loads take time, in which further requests wait. "
    "Simulate with loraplan run before deciding on a size.",
    "LRU's curve comes from stack distances in one pass and is exact at every capacity.",
)


def cache_report(result: CacheResult, name: str, digest: str, notes: Sequence[str], command: str) -> Report:
    """Return what misses, by policy and capacity.

    :param name: the trace, as the reader knows it; ``digest``: the SHA-256 of its file.
    :param command: the command that makes the report again.
    """
    table = miss_table(result)
    several = len(result.capacities) > 1  # one capacity is a column of the table, not a chart
    adapters = f"all of them take {capacity_words(result, result.footprint)}"
    first = percent(result.adapters / result.requests)
    provenance = [
        ("Trace", f"{name}, sha256 {digest[:12]}"),
        ("Policies", ", ".join(result.policies)),
        ("Shuffles", f"{result.shuffles}, seeds fixed"),
        ("Version", f"loraplan {__version__}"),
    ]
    return Report(
        kind="cache",
        name=name,
        title=f"Cache replay of {name}",
        lead="The requests of a trace, one after the other, through caches of several policies and sizes. No times: "
        "loads take none, nothing is in use.",
        headline=headline(result),
        statements=sentences(result),
        facts=[
            ("Requests", number(result.requests), "in the order of the trace"),
            ("Adapters", number(result.adapters), adapters),
            ("First requests", first, "of requests are the first for their adapter, and miss in any cache"),
        ],
        data=[point.as_json() for point in result.points],
        terminal=[headline(result), "", table, "", *sentences(result)],
        sections=lambda: [
            Section("notes", "", *([Heading("Notes")] if notes else []), *map(Caution, notes)),
            Section("table", "What misses", table, listed="Table"),
            Section(
                "charts",
                "Over the size of the cache",
                orders_chart(result),
                policies_chart(result, of_bytes=False) if several else None,
                policies_chart(result, of_bytes=True) if several and result.at_bytes is not None else None,
                listed="Charts",
            ),
            method(*_METHOD, Provenance(provenance), command=command),
        ],
        files=[
            File("cache.csv", _cache_csv(result), "table"),
            File("lru_curve.csv", _curve_csv(result), "curve"),
        ],
        notes=notes,
    )


def miss_table(result: CacheResult) -> Table:
    """Return miss ratios by policy and capacity, with LRU in other orders below."""
    with_bytes = result.at_bytes is not None
    head = ["policy", *(capacity_words(result, capacity) for capacity in result.capacities)]
    rows = [
        [policy, *(_cell(p.miss_ratio, p.byte_miss_ratio if with_bytes else None) for p in result.row(policy))]
        for policy in result.policies
    ]
    bytes_ = result.at_bytes
    orders = (
        ("lru, requests shuffled", result.at.shuffled, None if bytes_ is None else bytes_.shuffled),
        ("lru, independent draws*", result.at.independent, None if bytes_ is None else bytes_.independent),
    )
    for label, ratios, of_bytes in orders:
        cells = [_cell(float(r), None if of_bytes is None else float(of_bytes[i])) for i, r in enumerate(ratios)]
        rows.append([label, *cells])
    note = "* What independent draws with the trace's popularity would give in the long run (Che's approximation)."
    if with_bytes:
        note = "Share of requests that miss; in brackets the share of bytes. " + note
    return Table("Miss ratio by policy and capacity", head, rows, note)


def _cell(ratio: float, byte_ratio: float | None) -> str:
    return percent(ratio) + ("" if byte_ratio is None else f" ({percent(byte_ratio)})")


def _cache_csv(result: CacheResult) -> str:
    """Return one row a policy and capacity."""
    head = ("policy", "slots", "capacity_bytes", "requests", "misses", "miss_ratio", "byte_miss_ratio")
    return csv_text(head, ([getattr(point, name) for name in head] for point in result.points))


def _curve_csv(result: CacheResult) -> str:
    """Return one row a capacity of the LRU curve."""
    curve = result.curve
    head = ("slots" if result.by_slots else "capacity_bytes", "lru", "lru_shuffled", "lru_independent_draws")
    columns = (curve.capacities, curve.real, curve.shuffled, curve.independent)
    return csv_text(head, zip(*(column.tolist() for column in columns), strict=True))
