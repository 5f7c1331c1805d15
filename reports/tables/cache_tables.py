"""Miss ratios of a cache-only replay, by policy and capacity."""

from __future__ import annotations

from reports.formatting import percent
from reports.table import Table
from reports.text.cache_text import capacity_words
from sim.results.traces.cache_points import CacheResult


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
