"""A plan's run directory: its points by role, and the terms that they miss."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from reports.answers.bottleneck import Limit, largest_stage, limits
from reports.axes import make_axis
from reports.formatting import read_terms
from sim.results.point import Metric, Point
from sim.results.slo_terms import metric_of, split_term, with_tenants
from sim.results.verdict import NOT_MET, UNCLEAR, lacks_answers, term_verdict, verdict

if TYPE_CHECKING:
    from sim.results.run_directory.store import RunData

_POOL_COUNT = re.compile(r"fleet\.pools\.[A-Za-z0-9_-]+\.replicas")
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
    :ivar terms: targets of the fleet and its tenants (``sim.results.slo_terms``).
    :ivar chosen: the answer's point, or that of the best that was found.
    :ivar edge: the more wanted neighbour that does not do; None: the range ends there, or it can't be built.
    """

    def __init__(self, data: RunData) -> None:
        self.record = data.plan
        self.points = data.points
        by_key = dict(zip(data.manifest["point_keys"], data.points, strict=False))
        self.chosen: Point | None = by_key.get(self.record.answer_key or self.record.best_key or "")
        slo = read_terms(data.slo)
        self.terms = slo if self.chosen is None else with_tenants(slo, self.chosen)
        self.edge = by_key.get(self.record.edge_key or "")
        self.beyond = by_key.get(self.record.beyond_key or "")
        self.other_edge = by_key.get(self.record.other_edge_key or "")

    @property
    def feasible(self) -> bool:
        """Whether anything meets the SLO."""
        return self.record.feasible

    @property
    def mix_price(self) -> float | None:
        """What the recommended mix of two pools costs per hour; None in other plans."""
        record = self.record
        if len(record.keys) != 2 or not all(_POOL_COUNT.fullmatch(key) for key in record.keys):
            return None
        return next((row.price for row in record.frontier if row.set == record.answer), None)

    def phrase(self, set_: Mapping[str, Any]) -> str:
        """Return values in words: ``64 GPU slots, 2 replicas``."""
        return ", ".join(make_axis(key, self.points).phrase(value) for key, value in set_.items())


def missed_terms(read: PlanReading, point: Point) -> list[str]:
    """Return the terms that a point does not certainly meet, those that it certainly misses first."""
    words = {n: term_verdict(point, n, target) for n, target in read.terms.items()}
    return [name for word in (NOT_MET, UNCLEAR) for name in words if words[name] == word]


def open_by_costs(read: PlanReading) -> bool:
    """Return whether all open verdicts would be clear if the profile's costs were certain."""
    points = [point for point in read.points if point.set in read.record.doubtful]
    settled = all(point.calibration and _metric(point, name).settled for point in points for name in read.terms)
    return bool(points) and settled and UNCLEAR not in [verdict(p.without_calibration(), read.terms) for p in points]


def tightest_term(read: PlanReading) -> str:
    """Return the term that is nearest its target at the chosen point."""
    assert read.chosen is not None, "checked by the caller"
    chosen = read.chosen

    def over(name: str) -> float:
        value = _metric(chosen, name).value
        return 0.0 if value is None or not read.terms[name] else value / read.terms[name]

    return max(read.terms, key=over)


def _metric(point: Point, name: str) -> Metric:
    """Return the metric of a term; without a value where a point lacks it."""
    return metric_of(point, name) or Metric(None)


def deciding_tenant(read: PlanReading) -> str:
    """Return the tenant whose SLO decides: the neighbour misses it, or the answer is nearest to it; else empty."""
    point = read.edge if read.feasible else read.chosen
    missed = [] if point is None else missed_terms(read, point)
    return split_term(missed[0] if missed else tightest_term(read))[0]


@dataclass(frozen=True)
class SafetyStep:
    """What one step beyond the answer gives.

    :ivar name: the metric that it changes; ``here``, ``there``: its value at the answer and one step on.
    :ivar missed: a term that it misses again; None where it misses none.
    """

    point: Point
    name: str
    here: float
    there: float
    missed: str | None


def safety_step(read: PlanReading) -> SafetyStep | None:
    """Return what one step of safety gives; None where there is none, or it changes too little to mention."""
    if read.beyond is None or not read.feasible:
        return None
    assert read.chosen is not None, "it is feasible"
    lost = missed_terms(read, read.edge) if read.edge is not None else []
    name = lost[0] if lost else tightest_term(read)
    here, there = (_metric(point, name).value for point in (read.chosen, read.beyond))
    if here is None or there is None:
        return None
    missed = [n for n, t in read.terms.items() if term_verdict(read.beyond, n, t) == NOT_MET]
    if there >= here * (1 - GAIN) and not missed:
        return None
    return SafetyStep(read.beyond, name, here, there, missed[0] if missed else None)


def mixes_that_miss(read: PlanReading) -> list[dict[str, Any]]:
    """Return the largest mix of two pools that certainly misses the SLO, for each number of the first; [] in other
    plans."""
    if read.mix_price is None:
        return []
    outer, inner = read.record.keys
    largest: dict[Any, dict[str, Any]] = {}
    for row in read.record.grades:
        known = largest.get(row.set[outer])
        if row.verdict == NOT_MET and (known is None or known[inner] < row.set[inner]):
            largest[row.set[outer]] = row.set
    return [largest[count] for count in sorted(largest)]


def nearest_unserved(read: PlanReading) -> Point | None:
    """Return the point nearest to the answer at which too many requests are refused or fail; None without one."""
    if not read.feasible or len(read.record.keys) > 1 or read.record.fleets:
        return None
    assert read.chosen is not None, "it is feasible"
    places = [i for i, p in enumerate(read.points) if any(lacks_answers(p, n, t) for n, t in read.terms.items())]
    at = read.points.index(read.chosen)
    return read.points[min(places, key=lambda i: abs(i - at))] if places else None


class Hindrance(Enum):
    """What a plan names as binding."""

    NOTHING_SMALLER = "nothing smaller can be built"
    AT_ANSWER = "what limits the answer, which has no neighbour that misses the SLO"
    LIMIT = "what limits the neighbour, which certainly misses no term"
    UNSERVED = "requests that the neighbour doesn't serve"
    CACHE = "misses: its adapter cache is too small"
    TERM = "a term that the neighbour misses, and what limits it there"


@dataclass(frozen=True)
class Binding:
    """What stands in the way of the next more wanted design, or limits the best one.

    :ivar point: where; ``term``: the term missed there.
    :ivar limit: what limits that point; ``stage``: where no request waits, the largest part of the latency and its
        share.
    """

    hindrance: Hindrance
    point: Point
    limit: Limit
    stage: tuple[str, float] | None
    term: str | None = None


def find_binding(read: PlanReading) -> Binding:
    """Return what stands in the way of the next more wanted design, or what limits the best one."""
    assert read.chosen is not None, "checked by the caller"
    point = read.edge or read.chosen
    limit = limits(point)[0]
    stage = largest_stage(point) if limit.name == "none" else None
    missed = missed_terms(read, point)
    if read.feasible and read.edge is None:
        smaller = Hindrance.NOTHING_SMALLER if read.record.edge_refused else Hindrance.AT_ANSWER
        return Binding(smaller, point, limit, stage)
    if not missed:
        return Binding(Hindrance.LIMIT, point, limit, stage)
    if limit.name in ("refusals", "failures"):
        return Binding(Hindrance.UNSERVED, point, limit, stage, missed[0])
    # Latencies have nothing to say of misses.
    kind = Hindrance.CACHE if split_term(missed[0])[1] == "miss_ratio" else Hindrance.TERM
    return Binding(kind, point, limit, stage, missed[0])


def room_to_target(read: PlanReading) -> tuple[str, float] | None:
    """Return the tightest term of a plan's answer and how far it is from its target, as a share; None without one."""
    assert read.chosen is not None, "checked by the caller"
    name = tightest_term(read)
    value, target = _metric(read.chosen, name).value, read.terms[name]
    return (name, round(1 - value / target, 3)) if value and target else None
