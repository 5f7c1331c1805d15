"""Tables of a plan: the designs that the search evaluated, and what the formulas estimate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reports.answers.plan_reading import PlanReading
from reports.formatting import metric_words, percent, show
from reports.table import Table

if TYPE_CHECKING:
    from sim.results.run_directory.store import RunData


_MOST_ROWS = 200


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
        rows.append([str(number), read.phrase(look.set), term, seen, score, look.word, f"{look.replications}"])
    share = record.simulated_requests / max(1, record.every_candidate_requests)
    note = (
        f"{record.simulated_requests:,} requests were simulated, {percent(share)} of what one run of each of the "
        f"{record.candidates:,} candidates would take."
    )
    head = ["evaluation", "design", "worst term", "value", "of its target", "verdict", "replications"]
    return Table("How the search went", head, rows, note, words=(1, 2, 5))


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
