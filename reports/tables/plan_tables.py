"""Tables of a plan: the designs that the search evaluated, and what the formulas estimate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reports.answers.plan_reading import PlanReading
from reports.axes import make_axis
from reports.formatting import likelihood, metric_words, percent, show
from reports.table import Table
from sim.results.verdict import verdict_word

if TYPE_CHECKING:
    from sim.results.run_directory.store import RunData


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
