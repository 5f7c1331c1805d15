"""Evaluates one design of a plan: as many replications as its verdict needs, each simulated once.

All designs meet the same traffic in the same replication, so they differ in the design alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sim.errors import InputError, ScenarioError, SeveralErrors
from sim.results.calibration import without_calibration
from sim.results.intervals.student_t import student
from sim.results.point import Point
from sim.results.records import Recording
from sim.results.run_directory.store import RunStore, point_key
from sim.results.run_directory.study_records import EvaluationRecord
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
from sim.studies.backends.pool import Pool
from sim.studies.evaluate import REPLICATION, Design, EvaluationOptions, Part, Runner, evaluate, on_pool
from sim.studies.planning.search import Judgement
from sim.studies.study_identity import code_version, input_digests
from sim.studies.training.vetting_gate import build
from sim.world.world import World

DOUBLINGS = 3
"""How often the replications of the scenario are doubled where the call is close."""
FIRST_REPLICATIONS = 2
"""Replications of a first, cheap evaluation."""
SMALL_EVALUATION = 30_000
"""Simulated requests below which starting worker processes costs more than they save."""
MOST_BYTES = 1_000_000_000
"""Recordings kept for more replications of the same design; beyond that the oldest are simulated again if needed."""
_CLOSE = 1e-9


def replications_by_effort(world: World) -> list[int]:
    """Return how many replications each effort takes; a trace comes only once."""
    if world.traffic.replayed:
        return [1]
    base = world.scenario.run.replications
    first = [FIRST_REPLICATIONS] if base > FIRST_REPLICATIONS else []
    return [*first, *(base * 2**doubling for doubling in range(DOUBLINGS + 1))]


@dataclass(slots=True)
class PlanDesign:
    """One design and what has been simulated of it.

    :ivar set: keys and values that make it.
    :ivar refused: why it can't be built, such as slots that exceed GPU memory or host memory; None where it can.
    :ivar loaded: its scenario; where its values make none, that of the plan.
    :ivar built: with its world; None where it can't be built.
    :ivar parts: simulated replications and draws that are still in memory.
    :ivar point: over the replications of the last evaluation; ``key``: the name of its file.
    :ivar counted: its requests that the search has counted; ``dropped``: replications removed to save memory.
    """

    set: dict[str, Any]
    loaded: LoadedScenario
    built: Design | None
    refused: InputError | None = None
    parts: dict[Part, Any] = field(default_factory=dict)
    point: Point | None = None
    key: str = ""
    effort: int = -1
    judgement: Judgement | None = None
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


class DesignEvaluator:
    """Makes designs of one scenario by setting keys, and evaluates them.

    :param store: keeps points; a point kept by an interrupted search is not simulated again.
    :param pool: simulates replications.
    :param confidence: of the two verdicts at the edge together.
    :param on_evaluation: called with every evaluation.
    :ivar log: all evaluations so far.
    :ivar requests: simulated so far, including those of kept points: the cost of the search from scratch.
    """

    def __init__(
        self,
        loaded: LoadedScenario,
        store: RunStore,
        *,
        pool: Pool,
        confidence: float,
        on_evaluation: Callable[[EvaluationRecord], None],
    ) -> None:
        self._loaded = loaded
        self._store = store
        self._pool = pool
        self._confidence = confidence
        self._on_evaluation = on_evaluation
        self._designs: dict[str, PlanDesign] = {}
        self.terms = loaded.scenario.slo.terms()
        self.log: list[EvaluationRecord] = []
        self.requests = 0
        self._recent: list[PlanDesign] = []

    def design(self, set_: Mapping[str, Any], named: Mapping[str, Any] | None = None) -> PlanDesign:
        """Return the design with these values.

        :param named: the values that tables show instead, if others.
        """
        name = repr(sorted(set_.items(), key=lambda item: item[0]))
        if name not in self._designs:
            self._designs[name] = self._make(dict(set_), dict(set_ if named is None else named))
        return self._designs[name]

    def designs(self) -> list[PlanDesign]:
        """Return every design that was evaluated."""
        return [design for design in self._designs.values() if design.point is not None]

    def all_designs(self) -> list[PlanDesign]:
        """Return every design that was made, including those that can't be built."""
        return list(self._designs.values())

    def evaluate(self, design: PlanDesign, effort: int) -> Judgement:
        """Simulate the replications of an effort, and judge.

        :param effort: place in ``replications_by_effort``; beyond its end, the last.
        :raises InputError: if no effort could decide, such as for an SLO on a metric that the engine lacks.
        """
        if design.refused is not None:
            return Judgement(NOT_MET, math.inf, final=True)
        assert design.built is not None, "it was built"
        by_effort = replications_by_effort(design.built.world)
        effort = min(effort, len(by_effort) - 1)
        if design.judgement is not None and (design.effort >= effort or design.judgement.final):
            return design.judgement
        replications = by_effort[effort]
        self._simulate(design, replications, with_draws=replications >= design.built.replications)
        design.effort = effort
        design.judgement = judgement = self._judge(design, last=effort == len(by_effort) - 1)
        assert design.point is not None, "it was simulated"
        term = self._worst(design.point)
        lost, total = unserved(design.point)
        value, share = design.point.metrics[term].value, None
        if lacks_answers(design.point, term, self.terms[term]):
            share = lost / total
        entry = EvaluationRecord(design.set, replications, judgement.word, judgement.score, term, value, share)
        self.log.append(entry)
        self._on_evaluation(entry)
        return judgement

    def first_recording(self, design: PlanDesign) -> Recording:
        """Return the first replication, simulating it again where only its point was kept."""
        first = Part(REPLICATION, 0)
        if first not in design.parts:
            assert design.built is not None, "it was evaluated"
            design.parts.update(self._run(design)(design.built, [first]))
        recording: Recording = design.parts[first]
        return recording

    def _make(self, set_: dict[str, Any], named: dict[str, Any]) -> PlanDesign:
        loaded = self._loaded
        try:
            loaded = loaded.with_values(set_) if set_ else loaded
            world = build(loaded.scenario)
        except InputError as error:
            return PlanDesign(
                named, loaded, None, refused=error.errors[0] if isinstance(error, SeveralErrors) else error
            )
        return PlanDesign(named, loaded, Design(loaded.scenario, world))

    def _simulate(self, design: PlanDesign, replications: int, *, with_draws: bool) -> None:
        """Give the design a point of so many replications, from an earlier search if one kept it."""
        assert design.built is not None, "it was built"
        built = design.built
        values = {"replications": replications}
        inputs = input_digests(design.loaded, built.world.profile_sha256)
        key = point_key(design.loaded.data, values, code_version(), inputs)
        draws = len(built.draws) if with_draws else 0
        point = self._store.load_point(key)
        if point is None:
            before = set(design.parts)
            options = EvaluationOptions(design.set, replications, draws=with_draws, counterfactual=False)
            point = evaluate(built, options, self._run(design), design.parts).point
            self._count_again(design, before)
            self._drop_oldest(design)
            point = replace(point, cost={**point.cost, "replications": replications})
            self._store.save_point(key, point)
        total = round(point.cost["requests"] * (1 + draws / replications))
        self.requests += max(0, total - design.counted)
        design.counted = max(total, design.counted)
        design.point, design.key = point, key

    def _run(self, design: PlanDesign) -> Runner:
        """Return a runner for parts of a design: on the pool if the work is long enough to start worker processes."""
        assert design.world is not None, "it was built"
        traffic = design.world.traffic
        each = traffic.expected_requests() or 0

        def run(built: Design, parts: Sequence[Part]) -> Iterable[tuple[Part, Any]]:
            if not parts:
                return ()
            pool = self._pool.for_workload(each * len(parts), SMALL_EVALUATION, len(parts))
            return on_pool(pool)(built, parts)

        return run

    def _count_again(self, design: PlanDesign, before: set[Part]) -> None:
        """Count the requests of replications that were dropped and simulated once more."""
        again = [
            result
            for part, result in design.parts.items()
            if part not in before and part.kind == REPLICATION and part.place < design.dropped
        ]
        self.requests += sum(len(recording.section_of) for recording in again)

    def _drop_oldest(self, design: PlanDesign) -> None:
        """Drop the replications of the designs evaluated longest ago, once all together take too much memory."""
        self._recent = [other for other in self._recent if other is not design] + [design]
        while len(self._recent) > 1 and sum(map(_bytes, self._recent)) > MOST_BYTES:
            oldest = self._recent.pop(0)
            oldest.dropped = max(oldest.dropped, len(oldest.recordings))
            oldest.parts = {part: result for part, result in oldest.parts.items() if part.kind != REPLICATION}

    def _judge(self, design: PlanDesign, *, last: bool) -> Judgement:
        point = design.point
        assert point is not None, "it was simulated"
        score = self._score(point)
        widen = self._widening(point)
        word = verdict(point, self.terms, widen)
        missing = next((name for name in self.terms if point.metrics[name].value is None), None)
        if missing is not None and word != NOT_MET:
            if not last:
                return Judgement(UNCLEAR, score)
            note = point.metrics[missing].note or "not enough data"
            raise InputError(
                f"can't decide whether {missing} meets its target: {note}",
                key="slo",
                hint="simulate more requests (workload.requests), or leave the term out",
            )
        if word == UNCLEAR and is_overloaded(point):  # perhaps only because the run is short
            return Judgement(UNCLEAR, max(score, 1 + _CLOSE))
        if word == UNCLEAR:
            only_costs = bool(point.calibration) and verdict(without_calibration(point), self.terms, widen) != UNCLEAR
            return Judgement(UNCLEAR, score, final=only_costs)
        return Judgement(word, min(score, 1.0) if word == MET else max(score, 1 + _CLOSE))

    def _worst(self, point: Point) -> str:
        """Return the term that is furthest above its target, or least below it."""
        return max(self.terms, key=lambda name: _strain(point, name, self.terms[name]))

    def _score(self, point: Point) -> float:
        """Return the worst term, value over target; above 1 misses it."""
        return max(_strain(point, name, target) for name, target in self.terms.items())

    def _widening(self, point: Point) -> float:
        """Return the factor on 95 % half-widths at which the answer has the confidence of the plan.

        The answer is wrong if the verdict on it or on its more wanted neighbour is wrong. Each is evaluated up to five
        times, and each evaluation may err to one side (Bonferroni).
        """
        from scipy.special import stdtrit

        replications = int(point.cost["replications"])
        degrees = replications - 1 if replications >= 5 else 20
        evaluations = DOUBLINGS + 2
        error = (1 - self._confidence) / (2 * evaluations)
        return float(stdtrit(degrees, 1 - error)) / student(degrees)


def _strain(point: Point, name: str, target: float) -> float:
    """Return a term's value over its target, or late requests over those allowed to be late, whichever is more.

    Without refused or failed requests, both say the same.
    """
    late, value = late_share(point, name, target), _over(point.metrics[name].value, target)
    return value if late is None else max(value, _over(late.value, allowed(name)))


def _over(value: float | None, target: float) -> float:
    if value is None:
        return 1.0
    return value / target if target > 0 else math.inf if value > 0 else 0.0


def check_terms(loaded: LoadedScenario) -> None:
    """Refuse a plan whose SLO is missing or can't be measured in this scenario.

    :raises ScenarioError: with the term.
    """
    terms = loaded.scenario.slo.terms()
    if not terms:
        raise loaded.locate(
            ScenarioError("a plan needs an SLO to meet", key="slo", hint="add one, such as slo: {ttft_p99: 1 s}")
        )
    if loaded.scenario.fleet.engine != "fixed":
        return
    lacking = next((name for name in ("tpot_mean_s", "itl_mean_s", "itl_p99_s") if name in terms), None)
    if lacking is not None:
        raise loaded.locate(
            ScenarioError(
                "engine fixed has no tokens, so this is never measured",
                key=f"slo.{lacking.removesuffix('_s')}",
                hint="remove the term, or plan for another engine",
            )
        )


def _bytes(design: PlanDesign) -> int:
    kept = 0
    for recording in design.recordings:
        columns = [*recording.requests.values(), *recording.loads.values(), recording.section_of, recording.gap_counts]
        kept += sum(column.nbytes for column in columns)
    return kept
