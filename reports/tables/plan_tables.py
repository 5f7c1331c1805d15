"""Tables of a plan: the designs that the search evaluated, and what the formulas estimate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reports.answers.plan_answer import Read
from reports.formatting import metric_words, percent, show
from reports.table import Table
from sim.results.point import Point

if TYPE_CHECKING:
    from sim.results.run_directory.store import RunData


_MOST_ROWS = 200


def search_table(data: RunData) -> Table | None:
    """Return the designs that the search evaluated, in order; None for a run that is no plan."""
    read = Read(data)
    looks = read.record.get("looks", [])
    if not looks:
        return None
    rows = []
    for number, look in enumerate(looks[:_MOST_ROWS], 1):
        term, seen = metric_words(look["term"]), "" if look["value"] is None else show(look["term"], look["value"])
        if look.get("unserved") is not None:
            term, seen = "refused or failed", percent(look["unserved"])
        rows.append(
            [
                str(number),
                read.phrase(look["set"]),
                term,
                seen,
                percent(look["score"]) if look["score"] is not None else "",
                look["word"],
                f"{look['replications']}",
            ]
        )
    record = read.record
    share = record["simulated_requests"] / max(1, record["every_candidate_requests"])
    note = (
        f"{record['simulated_requests']:,} requests were simulated, {percent(share)} of what one run of each of the "
        f"{record['candidates']:,} candidates would take."
    )
    head = ["evaluation", "design", "worst term", "value", "of its target", "verdict", "replications"]
    return Table("How the search went", head, rows, note, words=(1, 2, 5))


def formulas_table(data: RunData) -> Table | None:
    """Return what the formulas estimate for the answer, next to what was simulated."""
    read = Read(data)
    formulas = read.record.get("formulas")
    if not formulas or read.chosen is None:
        return None
    metrics = read.chosen.metrics
    rows = [
        ["miss ratio (Che)", _percent(formulas["miss_ratio"]), _percent(metrics["miss_ratio"].value)],
        ["load of the loaders", _percent(formulas["loader_load"]), _percent(metrics["loader_utilization"].value)],
        ["load of the GPU, at its largest batch", _percent(formulas["gpu_load"]), "–"],
        ["KV memory that the batch needs", _percent(formulas["kv_share"]), _percent(_of(read.chosen, "kv"))],
    ]
    note = (
        "Formulas ignore bursts and queues; they only decide where the search begins. In the simulation the miss ratio "
        "counts delayed hits as hits."
    )
    return Table("What the formulas estimate", ["", "formula", "simulated"], rows, note)


def _of(point: Point, part: str) -> float | None:
    value = point.capacity.get(part, {}).get("peak_share")
    return None if value is None else float(value)


def _percent(value: float | None) -> str:
    return "–" if value is None else percent(value)
