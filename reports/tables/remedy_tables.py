"""Tables of priced remedies: the fleet as it is and with each change, and what the vetting found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from reports.formatting import metric_words, read_terms
from reports.table import Table
from reports.tables.what_if_table import what_if_cell
from reports.text.metric_text import capital, with_interval
from sim.results.model import MetricChange
from sim.results.pairs import BETTER, WORSE
from sim.results.point import Point
from sim.results.run_directory.study_records import RemedyRow
from sim.results.verdict import verdict
from sim.spec.units import human_bytes

if TYPE_CHECKING:
    from sim.results.run_directory.store import RunData


_MEMORY = {
    "replicas": "replicas",
    "slots": "GPU slots",
    "kv_tokens": "KV cache, tokens",
    "host_bytes": "copies in host memory",
}

_METRICS = ("miss_ratio", "loads_per_request", "ttft_p99_s", "e2e_p99_s")


def remedy_tables(data: RunData) -> list[Table]:
    """Return one table for each remedy: the fleet as it is, and with each change, side by side."""
    rows, memory = data.remedies, data.manifest["cures"]["memory"]
    terms = read_terms(data.slo)
    titles = list(dict.fromkeys(row.title for row in rows))
    return [
        _table(title, [row for row in rows if row.title == title], memory, data.points[0], terms) for title in titles
    ]


def vetted_table(data: RunData) -> Table:
    """Return what was found, with its evidence and remedies."""
    rows = []
    for each in data.manifest["cures"]["vetted"]:
        for finding in each["findings"]:
            evidence = "; ".join(seen["what"] for seen in finding["evidence"])
            cures = "; ".join(cure["words"] for cure in finding["cures"])
            rows.append([each["path"], finding["mode"], finding["confidence"], evidence, cures])
    head = ["adapter", "finding", "confidence", "evidence", "remedies, in order"]
    return Table("What the vetting found", head, rows, words=(1, 2, 3, 4))


def _table(
    title: str, rows: Sequence[RemedyRow], memory: Mapping[str, Any], base: Point, terms: Mapping[str, float]
) -> Table:
    shown = [row for row in rows if not row.refused]
    names = list(dict.fromkeys([*_METRICS[:2], *terms, *_METRICS]))
    names = [name for name in names if base.metrics[name].value is not None]
    lines = [["one such adapter", *_sizes(shown)]] if any(row.adapter_bytes[1] for row in shown) else []
    for key, words in _MEMORY.items():
        moved = any(row.memory[key][1] != memory[key] for row in shown)
        if memory[key] is not None and (moved or key != "replicas"):
            cells = [_memory_cell(key, row.memory[key][1]) for row in shown]
            lines.append([words, _memory_cell(key, memory[key]), *cells])
    for name in names:
        cells = [what_if_cell(name, row.metrics.get(name)) for row in shown]
        lines.append([metric_words(name), with_interval(name, base.metrics[name]), *cells])
    if terms:
        lines.append(["SLO", verdict(base, terms), *(str(row.verdict) for row in shown)])
    sentences = ["Brackets: the 95 % interval; for a change, that of the difference, from pairs under the same traffic"]
    sentences += [f"{capital(row.who)}: not possible, for {row.refused}" for row in rows if row.refused]
    sentences += [f"{capital(row.who)}: {row.note}" for row in shown if row.note]
    sentences += [f"{capital(row.who)}: {warning}" for row in shown for warning in row.warnings]
    clear = [[row.metrics.get(name, MetricChange()).word for name in _METRICS[:2]] for row in shown]
    if [BETTER, WORSE] in clear:
        sentences.append(
            "Fewer requests miss, because those whose adapter is resident overtake those that wait; yet more is "
            "loaded: adapters in use are evicted and come back"
        )
    return Table(capital(title), ["", "as it is", *(row.who for row in shown)], lines, f"{'. '.join(sentences)}.")


def _sizes(rows: Sequence[RemedyRow]) -> list[str]:
    before = next((row.adapter_bytes[0] for row in rows if row.adapter_bytes[0]), None)
    found = [before, *(row.adapter_bytes[1] for row in rows)]
    return ["–" if size is None else human_bytes(size) for size in found]


def _memory_cell(key: str, value: float | None) -> str:
    if value is None:
        return "–"
    return human_bytes(value) if key.endswith("bytes") else f"{value:,}"
