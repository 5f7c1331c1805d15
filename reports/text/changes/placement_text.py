"""What a placement controller did, in sentences."""

from __future__ import annotations

from reports.formatting import number, percent
from sim.results.point import Point
from sim.spec.units import human_seconds


def placement_sentences(point: Point) -> list[str]:
    """Return what moves of adapters cost; nothing where no controller places them."""

    def value(name: str) -> float | None:
        metric = point.metrics.get(name)
        return None if metric is None else metric.value

    moves, share = value("placement_moves"), value("placed_share")
    if moves is None:
        return []
    placed = "" if share is None else f"{percent(share)} of the requests are for adapters that have a place"
    if not moves:
        return [f"No adapter moves: {placed}." if placed else "No adapter moves."]
    loads, seconds = value("placement_loads") or 0.0, value("placement_load_s") or 0.0
    cost = "none of these moves costs a load"
    if loads:
        cost = f"{number(loads)} of these moves cost a load, {human_seconds(seconds)} in total"
    moved = f"Per replication, the controller moves {number(moves)} adapters: {cost}."
    return [f"{moved} {placed}." if placed else moved]
