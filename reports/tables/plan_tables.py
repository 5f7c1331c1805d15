"""Tables of plans, of what-ifs, and of priced remedies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from reports.answers.plan_reading import PlanReading
from reports.axes import make_axis
from reports.formatting import likelihood, metric_words, percent, read_terms, show
from reports.table import Table
from reports.text.metric_text import CLEAR_WORDS, bounds_words, capital, with_interval
from sim.results.model import MetricChange
from sim.results.pairs import BETTER, WORSE
from sim.results.point import Point
from sim.results.run_directory.study_records import RemedyRow, WhatIfRow
from sim.results.verdict import verdict, verdict_word
from sim.spec.units import human_bytes

if TYPE_CHECKING:
    from sim.results.run_directory.store import RunData


# Tables of a plan: the designs that the search evaluated, and what the formulas estimate.

_MOST_ROWS = 200
RECOMMENDED = "recommended"
_P = "p is the probability of meeting the SLO."


def search_table(data: RunData) -> Table | None:
    """Return the designs that the search evaluated, in order; None for a run that is no plan."""
    read = PlanReading(data)
    record = read.record
    if not record.looks:
        return None
    rows = []
    for number, look in enumerate(record.looks[:_MOST_ROWS], 1):
        term, seen = metric_words(look.term), "" if look.value is None else show(look.term, look.value)
        if look.unserved is not None:
            term, seen = "refused or failed", percent(look.unserved)
        score = percent(look.score) if look.score is not None else ""
        likely = "" if look.probability is None else likelihood(look.probability)
        runs = f"{look.replications}" if look.requests is None else f"{look.replications} × {look.requests:,}"
        rows.append([str(number), read.phrase(look.set), term, seen, score, look.word, likely, runs])
    share = record.simulated_requests / max(1, record.every_candidate_requests)
    note = f"{record.simulated_requests:,} requests were simulated"
    if share < 1:
        note += f", {percent(share)} of what one run of each of the {record.candidates:,} candidates would take"
    note += "."
    head = ["evaluation", "design", "worst term", "value", "of its target", "verdict", "p", "requests"]
    return Table("How the search went", head, rows, note, words=(1, 2, 5))


def frontier_table(data: RunData) -> Table | None:
    """Return the designs to choose from: by value of the first of two variables, or by fleet; None where there is one.

    The recommended one is marked.
    """
    read = PlanReading(data)
    record = read.record
    if record.fleets:
        return _fleets_table(read)
    if len(record.frontier) < 2:
        return None
    keys = record.keys
    axes = [make_axis(key, read.points) for key in keys]
    priced = any(row.price is not None for row in record.frontier)
    rows = [
        [
            *(axis.label(row.set[key]) for axis, key in zip(axes, keys, strict=True)),
            *([f"${row.price:,.2f}" if row.price is not None else "–"] if priced else []),
            row.verdict,
            likelihood(row.probability),
            RECOMMENDED if row.set == record.answer else "",
        ]
        for row in record.frontier
    ]
    head = [*(axis.words for axis in axes), *(["price per hour"] if priced else []), "SLO", "p", ""]
    extreme = "largest" if record.direction == "maximize" else "smallest"
    note = f"Each row has the {extreme} second value for the first. {_P}"
    if read.mix_price is not None:
        note = f"By replicas of the first pool, the fewest of the second. Mixes that cost more are not searched. {_P}"
    slo = head.index("SLO")
    verdicts = {(number, slo): verdict_word(row.probability) for number, row in enumerate(record.frontier)}
    return Table("What is enough", head, rows, note, words=(slo, slo + 2), verdicts=verdicts, keys=2)


def _fleets_table(read: PlanReading) -> Table:
    record = read.record
    grades = {tuple(sorted(grade.set.items())): grade for grade in record.grades}
    rows = []
    for fleet in record.fleets:
        cells = [fleet.fleet, f"${fleet.price:,.2f}"]
        if fleet.total is None:
            rows.append([*cells, "–", "–", fleet.word, "–", ""])
            continue
        count = (fleet.replicas or 0) + fleet.full_replicas
        grade = grades.get((("fleet", fleet.fleet), ("fleet.replicas", fleet.replicas)))
        likely = "–" if grade is None else likelihood(grade.probability)
        mark = RECOMMENDED if fleet.fleet == record.answer.get("fleet") else ""
        rows.append([*cells, f"{count * fleet.gpus}", f"${fleet.total:,.2f}", fleet.word, likely, mark])
    head = ["fleet", "price per GPU hour", "GPUs", "price per hour", "SLO", "p", ""]
    note = f"Each row has the fewest replicas of its fleet. A fleet that costs more is not searched further. {_P}"
    return Table("What each fleet costs", head, rows, note, words=(4, 6))


def formulas_table(data: RunData) -> Table | None:
    """Return what the formulas estimate for the answer, next to what was simulated."""
    read = PlanReading(data)
    formulas = read.record.formulas
    if formulas is None or read.chosen is None:
        return None
    metrics, kv = read.chosen.metrics, read.chosen.capacity.kv
    rows = [
        ["miss ratio (Che)", _percent(formulas.miss_ratio), _percent(metrics["miss_ratio"].value)],
        ["load of the loaders", _percent(formulas.loader_load), _percent(metrics["loader_utilization"].value)],
        ["load of the GPU, at its largest batch", _percent(formulas.gpu_load), "–"],
        ["KV memory that the batch needs", _percent(formulas.kv_share), _percent(kv.peak_share if kv else None)],
    ]
    note = (
        "Formulas ignore bursts and queues; they only decide where the search begins. In the simulation the miss ratio "
        "counts delayed hits as hits."
    )
    return Table("What the formulas estimate", ["", "formula", "simulated"], rows, note)


def _percent(value: float | None) -> str:
    return "–" if value is None else percent(value)


# What one change at a time would do, as a table.

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


# Tables of priced remedies: the fleet as it is and with each change, and what the vetting found.

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
