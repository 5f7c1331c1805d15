"""What holding a rollout back avoided, as a table."""

from __future__ import annotations

from reports.formatting import metric_words, show
from reports.table import Table
from reports.text.changes.held_back_text import clear_change, count_bounds, why_held_back
from sim.results.point import Point


def held_table(point: Point, where: str) -> Table | None:
    """Return what happened next to what would have happened; None where nothing is held back."""
    held = point.held_back
    if held is None:
        return None
    answered = held.answered
    rows = [["requests answered by the version held back", "0", f"{answered.value:,}{count_bounds(answered)}", ""]]
    if len(held.rollouts) > 1:
        for row, each in zip(held.rollouts, held.by_rollout, strict=True):
            rows.append([f"of rollouts.{row.rollout}", "0", f"{each.value:,}{count_bounds(each)}", ""])
    for name, found in held.metrics.items():
        if found.one is None or found.other is None:
            continue
        rows.append([metric_words(name), show(name, found.one), show(name, found.other), clear_change(name, found)])
    why = "; ".join(why_held_back(row) for row in held.rollouts)
    note = (
        f"Held back: {why}. Both columns are the same traffic over all replications; “during” runs from the start of "
        "the rollout to the end of its observation."
    )
    return Table(f"What holding it back avoided{where}", ["", "held back", "if rolled out", "change"], rows, note)
