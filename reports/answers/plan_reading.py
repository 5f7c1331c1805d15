"""A plan's run directory: its points by role, and the terms that they miss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from reports.axes import make_axis
from reports.formatting import read_terms
from sim.results.point import Point
from sim.results.verdict import NOT_MET, UNCLEAR, term_verdict

if TYPE_CHECKING:
    from sim.results.run_directory.store import RunData

GAIN = 0.005
"""Share of a value from which one step further is a gain to mention."""


def is_plan(manifest: Mapping[str, Any]) -> bool:
    """Return whether a run directory holds a finished plan."""
    return manifest.get("kind") == "plan" and "answer" in (manifest.get("plan") or {})


def shown_metrics(terms: Mapping[str, float]) -> list[str]:
    """Return the metrics that tables of a plan show: the SLO's terms, and what else one wants to see."""
    return list(dict.fromkeys([*terms, "ttft_p99_s", "e2e_p99_s", "miss_ratio"]))


class PlanReading:
    """A plan's run directory, its points by the role they have.

    :ivar record: what the search left (``manifest["plan"]``).
    :ivar chosen: the answer's point, or that of the best that was found.
    :ivar edge: the more wanted neighbour that does not do; None: the range ends there, or it can't be built.
    """

    def __init__(self, data: RunData) -> None:
        self.record = data.plan
        self.terms = read_terms(data.slo)
        self.points = data.points
        by_key = dict(zip(data.manifest["point_keys"], data.points, strict=False))
        self.chosen: Point | None = by_key.get(self.record.answer_key or self.record.best_key or "")
        self.edge = by_key.get(self.record.edge_key or "")
        self.beyond = by_key.get(self.record.beyond_key or "")
        self.other_edge = by_key.get(self.record.other_edge_key or "")

    @property
    def feasible(self) -> bool:
        """Whether anything meets the SLO."""
        return self.record.feasible

    def phrase(self, set_: Mapping[str, Any]) -> str:
        """Return values in words: ``64 GPU slots, 2 replicas``."""
        return ", ".join(make_axis(key, self.points).phrase(value) for key, value in set_.items())


def missed_terms(read: PlanReading, point: Point) -> list[str]:
    """Return the terms that a point does not certainly meet, those that it certainly misses first."""
    words = {n: term_verdict(point, n, target) for n, target in read.terms.items()}
    return [name for word in (NOT_MET, UNCLEAR) for name in words if words[name] == word]


def tightest_term(read: PlanReading) -> str:
    """Return the term that is nearest its target at the chosen point."""
    assert read.chosen is not None, "checked by the caller"
    metrics = read.chosen.metrics

    def over(name: str) -> float:
        value = metrics[name].value
        return 0.0 if value is None or not read.terms[name] else value / read.terms[name]

    return max(read.terms, key=over)
