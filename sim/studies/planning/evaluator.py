"""Looks at one design: as many replications as its verdict needs, each simulated once.

All designs meet the same traffic in the same replication, so what differs between them is the design.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sim.errors import InputError, ScenarioError
from sim.results.model import EvaluationRecord
from sim.results.point import Point
from sim.results.records import Recording
from sim.results.run_directory.store import RunStore, point_key
from sim.results.statistics import student
from sim.results.verdict import (
    MET,
    NOT_MET,
    UNCLEAR,
    allowed,
    is_overloaded,
    lacks_answers,
    late_share,
    unserved,
    verdict,
)
from sim.spec.scenario_file import LoadedScenario
from sim.studies.backends.pool import Local, Pool
from sim.studies.evaluate import REPLICATION, Options, Part, Runner, evaluate, on_pool
from sim.studies.evaluate import Design as BuiltDesign
from sim.studies.planning.search import Seen
from sim.studies.sweep import code_version, input_digests
from sim.studies.training.rollout_gate import build
from sim.world.world import World

DOUBLINGS = 3
"""How often the replications of the scenario are doubled where the call is close."""
FIRST = 2
"""Replications of a first look."""
SMALL_LOOK = 30_000
"""Simulated requests below which starting worker processes costs more than they save."""
MOST_BYTES = 1_000_000_000
"""Recordings kept for more replications of the same design; beyond that the oldest are simulated again if needed."""
_CLOSE = 1e-9


def replications_by_effort(world: World) -> list[int]:
    """Return how many replications each effort takes; a trace comes only once."""
    if world.traffic.replayed:
        return [1]
    base = world.scenario.run.replications
    first = [FIRST] if base > FIRST else []
    return [*first, *(base * 2**doubling for doubling in range(DOUBLINGS + 1))]


@dataclass(slots=True)
class Design:
    """One design and what has been simulated of it.

    :ivar set: keys and values that make it.
    :ivar refused: why it can't be built, such as slots that don't fit into memory; None where it can.
    :ivar built: its world; None where it can't be built. ``parts``: what was simulated of it and is still in memory.
    :ivar point: over the replications of the last look; ``key``: the name of its file.
    :ivar counted: requests of it that the search has counted; ``dropped``: replications let go to save memory.
    """

    set: dict[str, Any]
    loaded: LoadedScenario | None
    built: BuiltDesign | None
    refused: InputError | None = None
    parts: dict[Part, Any] = field(default_factory=dict)
    point: Point | None = None
    key: str = ""
    effort: int = -1
    seen: Seen | None = None
    counted: int = 0
    dropped: int = 0

    @property
    def world(self) -> World | None:
        """Its world; None where it can't be built."""
        return None if self.built is None else self.built.world

    @property
    def recordings(self) -> list[Recording]:
        """Replications in memory."""
        return [result for part, result in self.parts.items() if part.kind == REPLICATION]


class Looks:
    """Designs of one scenario, made by setting keys, and looks at them.

    :param store: where points are kept; a look that was kept by an earlier, killed search costs nothing again.
    :param pool: where replications are simulated; None: worker processes here, one for each core.
    :param confidence: how sure the two verdicts at the edge have to be together.
    :param told: called with every look.
    :ivar requests: simulated so far, those of kept looks included: what the search would cost anew.
    """

    def __init__(
        self,
        loaded: LoadedScenario,
        store: RunStore,
        *,
        pool: Pool | None = None,
        confidence: float = 0.95,
        told: Callable[[EvaluationRecord], None] = lambda noted: None,
    ) -> None:
        self._loaded = loaded
        self._store = store
        self._pool = pool or Local()
        self._confidence = confidence
        self._told = told
        self._designs: dict[str, Design] = {}
        self.terms = loaded.scenario.slo.terms()
        self.noted: list[EvaluationRecord] = []
        self.requests = 0
        self._recent: list[Design] = []

    def design(self, set_: Mapping[str, Any], named: Mapping[str, Any] | None = None) -> Design:
        """Return the design of some values.

        :param named: what tables call it, where these are not the values themselves.
        """
        name = repr(sorted(set_.items(), key=lambda item: item[0]))
        if name not in self._designs:
            self._designs[name] = self._made(dict(set_), dict(set_ if named is None else named))
        return self._designs[name]

    def designs(self) -> list[Design]:
        """Return every design that was looked at."""
        return [design for design in self._designs.values() if design.point is not None]

    def all_designs(self) -> list[Design]:
        """Return every design that was made, those that can't be built too."""
        return list(self._designs.values())

    def look(self, design: Design, effort: int) -> Seen:
        """Simulate what an effort asks for, and judge.

        :param effort: place in ``replications_by_effort``; beyond its end, the most there is.
        :raises InputError: if no effort could ever tell, such as an SLO on a metric that the engine lacks.
        """
        if design.refused is not None:
            return Seen(NOT_MET, math.inf, final=True)
        assert design.built is not None, "it was built"
        by_effort = replications_by_effort(design.built.world)
        effort = min(effort, len(by_effort) - 1)
        if design.seen is not None and (design.effort >= effort or design.seen.final):
            return design.seen
        replications = by_effort[effort]
        self._simulate(design, replications, with_draws=replications >= design.built.replications)
        design.effort = effort
        design.seen = self._judged(design, last=effort == len(by_effort) - 1)
        assert design.point is not None, "it was simulated"
        term = self._worst(design.point)
        lost, total = unserved(design.point)
        value, share = design.point.metrics[term].value, None
        if lacks_answers(design.point, term, self.terms[term]):
            share = lost / total
        noted = EvaluationRecord(design.set, by_effort[effort], design.seen.word, design.seen.score, term, value, share)
        self.noted.append(noted)
        self._told(noted)
        return design.seen

    def first_recording(self, design: Design) -> Recording:
        """Return the first replication, simulating it again where only its point was kept."""
        first = Part(REPLICATION, 0)
        if first not in design.parts:
            assert design.built is not None, "it was looked at"
            design.parts.update(self._run(design)(design.built, [first]))
        recording: Recording = design.parts[first]
        return recording

    def _made(self, set_: dict[str, Any], named: dict[str, Any]) -> Design:
        try:
            loaded = self._loaded.with_values(set_) if set_ else self._loaded
        except InputError as error:
            error.hint = "; ".join(filter(None, [error.hint, f"at {set_}"]))
            raise
        try:
            world = build(loaded.scenario)
        except ScenarioError as error:
            return Design(named, loaded, None, refused=error)
        return Design(named, loaded, BuiltDesign(loaded.scenario, world))

    def _simulate(self, design: Design, replications: int, *, with_draws: bool) -> None:
        """Bring the design's point to so many replications, from what an earlier search kept where it did."""
        assert design.built is not None, "it was built"
        assert design.loaded is not None, "it was built"
        built = design.built
        values = {"replications": replications}
        key = point_key(design.loaded.data, values, code_version(), input_digests(design.loaded, built.world))
        draws = len(built.draws) if with_draws else 0
        point = self._store.load_point(key)
        if point is None:
            before = set(design.parts)
            options = Options(design.set, replications, draws=with_draws, counterfactual=False)
            point = evaluate(built, options, self._run(design), design.parts).point
            self._count_again(design, before)
            self._let_go(design)
            point.cost["replications"] = replications
            self._store.save_point(key, point)
        total = round(point.cost["requests"] * (1 + draws / replications))
        self.requests += max(0, total - design.counted)
        design.counted = max(total, design.counted)
        design.point, design.key = point, key

    def _run(self, design: Design) -> Runner:
        """Return what simulates parts of a design: on the pool where that is worth starting worker processes."""
        assert design.world is not None, "it was built"
        traffic = design.world.traffic
        each = traffic.total or int(traffic.rate * (traffic.end_s or 0.0))

        def run(built: BuiltDesign, parts: Sequence[Part]) -> Iterable[tuple[Part, Any]]:
            return on_pool(self._pool.worth(each * len(parts), SMALL_LOOK))(built, parts) if parts else ()

        return run

    def _count_again(self, design: Design, before: set[Part]) -> None:
        """Count the requests of replications that had been let go and were simulated once more."""
        again = [
            result
            for part, result in design.parts.items()
            if part not in before and part.kind == REPLICATION and part.place < design.dropped
        ]
        self.requests += sum(len(recording.section_of) for recording in again)

    def _let_go(self, design: Design) -> None:
        """Drop the replications of designs that were looked at long ago, where all together take much memory."""
        self._recent = [other for other in self._recent if other is not design] + [design]
        while len(self._recent) > 1 and sum(map(_bytes, self._recent)) > MOST_BYTES:
            oldest = self._recent.pop(0)
            oldest.dropped = max(oldest.dropped, len(oldest.recordings))
            oldest.parts = {part: result for part, result in oldest.parts.items() if part.kind != REPLICATION}

    def _judged(self, design: Design, *, last: bool) -> Seen:
        point = design.point
        assert point is not None, "it was simulated"
        score = self._score(point)
        widen = self._widening(point)
        word = verdict(point, self.terms, widen)
        missing = next((name for name in self.terms if point.metrics[name].value is None), None)
        if missing is not None and word != NOT_MET:
            if not last:
                return Seen(UNCLEAR, score)
            note = point.metrics[missing].note or "not enough data"
            raise InputError(
                f"whether {missing} meets its target can't be told: {note}", key="slo",
                hint="simulate more requests (workload.requests), or leave the term out",
            )  # fmt: skip
        if word == UNCLEAR and is_overloaded(point):  # perhaps only because the run is short
            return Seen(UNCLEAR, max(score, 1 + _CLOSE))
        if word == UNCLEAR:
            only_costs = bool(point.calibration) and self._without_draws(point, widen) != UNCLEAR
            return Seen(UNCLEAR, score, final=only_costs)
        return Seen(word, min(score, 1.0) if word == MET else max(score, 1 + _CLOSE))

    def _without_draws(self, point: Point, widen: float) -> str:
        kept = point.calibration, {n: (m.calibration_lo, m.calibration_hi) for n, m in point.metrics.items()}
        for metric in point.metrics.values():
            metric.calibration_lo = metric.calibration_hi = None
        point.calibration = {}
        word = verdict(point, self.terms, widen)
        point.calibration = kept[0]
        for name, bounds in kept[1].items():
            point.metrics[name].calibration_lo, point.metrics[name].calibration_hi = bounds
        return word

    def _worst(self, point: Point) -> str:
        """Return the term that is furthest above its target, or least below it."""
        return max(self.terms, key=lambda name: _strain(point, name, self.terms[name]))

    def _score(self, point: Point) -> float:
        """Return the worst term, value over target; above 1 misses it."""
        return max(_strain(point, name, target) for name, target in self.terms.items())

    def _widening(self, point: Point) -> float:
        """Return the factor on 95 % half-widths at which the answer is as sure as asked.

        It is wrong if one of two verdicts is: that of the answer, and that of its more wanted neighbour. Each is looked
        at up to five times, and each look may err to one side (Bonferroni).
        """
        from scipy.special import stdtrit

        replications = int(point.cost["replications"])
        degrees = replications - 1 if replications >= 5 else 20
        looks = DOUBLINGS + 2
        error = (1 - self._confidence) / (2 * looks)
        return float(stdtrit(degrees, 1 - error)) / student(degrees)


def _strain(point: Point, name: str, target: float) -> float:
    """Return a term's value over its target, or late requests over those that may be, whichever is more.

    Where nothing is refused and nothing fails, the second says nothing that the first doesn't.
    """
    late, value = late_share(point, name, target), _over(point.metrics[name].value, target)
    return value if late is None else max(value, _over(late.value, allowed(name)))


def _over(value: float | None, target: float) -> float:
    if value is None:
        return 1.0
    return value / target if target > 0 else math.inf if value > 0 else 0.0


def check_terms(loaded: LoadedScenario) -> None:
    """Refuse a plan for an SLO that is missing, or that no run of this scenario can measure.

    :raises ScenarioError: with the term.
    """
    terms = loaded.scenario.slo.terms()
    if not terms:
        raise loaded.locate(
            ScenarioError("a plan needs an SLO to meet", key="slo", hint="such as slo: {ttft_p99: 1 s}")
        )
    if loaded.scenario.fleet.engine != "fixed":
        return
    lacking = next((name for name in ("tpot_mean_s", "itl_mean_s", "itl_p99_s") if name in terms), None)
    if lacking is not None:
        raise loaded.locate(ScenarioError(
            "engine fixed has no tokens, so this is never measured", key=f"slo.{lacking.removesuffix('_s')}",
            hint="remove the term, or plan for another engine",
        ))  # fmt: skip


def _bytes(design: Design) -> int:
    kept = 0
    for recording in design.recordings:
        columns = [*recording.requests.values(), *recording.loads.values(), recording.section_of, recording.gap_counts]
        kept += sum(column.nbytes for column in columns)
    return kept
