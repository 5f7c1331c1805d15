"""Evaluates one design of a plan: a short run first, and longer ones where its verdict needs them.

All designs meet the same traffic with the same effort, so they differ in the design alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from reports.formatting import metric_words
from sim.errors import InputError, SeveralErrors
from sim.results.calibration import ReplicationValues, values_of_replication, with_calibration
from sim.results.metric_state import Cause, State
from sim.results.point import Point
from sim.results.records import Recording
from sim.results.run_directory.result_files import point_key
from sim.results.run_directory.store import RunStore
from sim.results.run_directory.study_records import EvaluationRecord, GradeRecord
from sim.results.slo_terms import all_terms, judged, metric_of, split_term, value_of
from sim.results.verdict import (
    MET,
    NOT_MET,
    UNCLEAR,
    by_need,
    grade,
    is_overloaded,
    lacks_answers,
    open_by_costs,
    planning_probability,
    strain,
    sure_in_plan,
    unserved,
    verdict,
    verdict_word,
)
from sim.spec.files.tree import Origin
from sim.spec.profile_choice import prices_of
from sim.spec.scenario import Scenario
from sim.spec.scenario_file import LoadedScenario
from sim.spec.sections.traffic_laws import DiurnalArrivals, PiecewiseArrivals
from sim.spec.units import round_up
from sim.studies.backends.pool import PACE, Pool
from sim.studies.design import Design, build
from sim.studies.evaluate import REPLICATION, EvaluationOptions, Part, evaluate, facts_of, on_pool, values_of_draws
from sim.studies.plan.findings import LONGER
from sim.studies.plan.search import STEER, Judgement
from sim.studies.study_identity import code_version, input_digests
from sim.world.world import World

TIMES = (1, 4, 16)
"""By effort, how many times longer the runs are than the scenario's; as many as ``sim.results.verdict.LOOKS``."""
REPLICATIONS = 2
"""Replications of each evaluation, at most: two cores simulate them at the same time."""
SMALL_EVALUATION = 30_000 * PACE
"""Simulated requests below which starting worker processes costs more than they save."""
MOST_BYTES = 1_000_000_000
"""Recordings kept for the requests of the answer; beyond that the oldest are simulated again if needed."""
_CLOSE = 1e-9
_MARGIN = 1.08
"""How much longer than needed a run is that an error suggests: the requests of a tenant are random."""


def efforts_of(world: World) -> tuple[int, ...]:
    """Return how many times as much as at first is simulated with each effort; a trace comes only once."""
    return TIMES[:1] if world.traffic.replayed else TIMES


def grows(scenario: Scenario) -> bool:
    """Return whether a longer run shows more of the same: nothing happens at times that the scenario sets."""
    by_the_clock = isinstance(scenario.workload.arrivals, (DiurnalArrivals, PiecewiseArrivals))
    return not (scenario.rollouts or scenario.faults or by_the_clock)


def longer(loaded: LoadedScenario, times: int) -> LoadedScenario:
    """Return a scenario as an effort simulates it: longer, or repeated where a longer run would be another question.

    What is recorded stays as it is.
    """
    scenario, workload = loaded.scenario, loaded.scenario.workload
    if workload.recorded:
        return loaded
    replications = min(REPLICATIONS, scenario.run.replications)
    values: dict[str, Any] = {"run.replications": replications}
    if not grows(scenario):
        values["run.replications"] = replications * times
    elif workload.requests is not None:
        values["workload.requests"] = workload.requests * times
    elif workload.duration is not None:
        values["workload.duration"] = f"{workload.duration * times!r} s"
    if scenario.run.half_width is not None:
        values["run.half_width"] = None  # the plan says how long the runs are
    return loaded.with_values(values)


@dataclass(slots=True, eq=False)
class PlanDesign:
    """One design and what has been simulated of it.

    :ivar set: keys and values that make it.
    :ivar refused: why it can't be built, such as slots that exceed GPU memory or host memory; None where it can.
    :ivar loaded: its scenario; where its values make none, that of the plan.
    :ivar built: as the first effort simulates it; None where it can't be built.
    :ivar simulated: its scenario as the last evaluation simulated it.
    :ivar short: what each replication of the first effort says; draws meet the same traffic.
    :ivar drawn: what draws of the profile say, once they were simulated.
    :ivar point: of the last evaluation; ``key``: the name of its file.
    """

    set: dict[str, Any]
    loaded: LoadedScenario
    built: Design | None
    refused: InputError | None = None
    simulated: LoadedScenario | None = None
    short: tuple[ReplicationValues, ...] = ()
    drawn: tuple[ReplicationValues, ...] = ()
    point: Point | None = None
    key: str = ""
    effort: int = -1
    judgement: Judgement | None = None

    @property
    def world(self) -> World | None:
        """Its world; None where it can't be built."""
        return None if self.built is None else self.built.world


class DesignEvaluator:
    """Makes designs of one scenario by setting keys, and evaluates them.

    :param store: keeps points; a point kept by an interrupted search is not simulated again.
    :param pool: simulates replications.
    :param confidence: of the two verdicts at the edge together.
    :param on_evaluation: called with every evaluation.
    :ivar loaded: the scenario.
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
        self.loaded = loaded
        self._store = store
        self._pool = pool
        self._confidence = confidence
        self._on_evaluation = on_evaluation
        self._designs: dict[str, PlanDesign] = {}
        self.terms = all_terms(loaded.scenario)
        self.log: list[EvaluationRecord] = []
        self.requests = 0
        self._first: dict[str, Recording] = {}  # first replications by name of the point, the oldest first

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

        :param effort: place in ``efforts_of``; beyond its end, the last.
        :raises InputError: if no effort could decide, such as for an SLO on a metric that the engine lacks.
        """
        if design.refused is not None:
            return Judgement(NOT_MET, math.inf, final=True, probability=0.0)
        assert design.built is not None, "it was built"
        efforts = efforts_of(design.built.world)
        effort = min(effort, len(efforts) - 1)
        if design.judgement is not None and (design.effort >= effort or design.judgement.final):
            return design.judgement
        last = effort == len(efforts) - 1
        self._simulate(design, efforts[effort], last=last)
        design.effort = effort
        design.judgement = judgement = self._judge(design, last=last)
        if design in self.all_designs():  # others are no candidates of the plan
            self._note(design, judgement)
        return judgement

    def changed(self, design: PlanDesign, values: Mapping[str, Any]) -> PlanDesign:
        """Return a design with other values, evaluated until its verdict is certain or no effort can make it so."""
        loaded = design.loaded.with_values(values)
        found = PlanDesign({**design.set, **values}, loaded, _built(longer(loaded, TIMES[0])))
        for effort in range(STEER, len(TIMES)):
            judgement = self.evaluate(found, effort)
            if judgement.word != UNCLEAR or judgement.final:
                break
        return found

    def _note(self, design: PlanDesign, judgement: Judgement) -> None:
        point = design.point
        assert point is not None, "it was simulated"
        term, *_ = by_need(point, self.terms)
        lost, total = unserved(judged(point, term)[0])
        entry = EvaluationRecord(
            design.set,
            int(point.cost["replications"]),
            judgement.word,
            strain(point, term, self.terms[term]),
            term,
            value_of(point, term),
            lost / total if lacks_answers(point, term, self.terms[term]) else None,
            judgement.probability,
            round(point.cost["requests"] / point.cost["replications"]),
        )
        self.log.append(entry)
        self._on_evaluation(entry)

    def grade(self, design: PlanDesign) -> GradeRecord:
        """Return how likely a design that was evaluated meets the SLO."""
        assert design.judgement is not None, "it was evaluated"
        probability = design.judgement.probability
        return GradeRecord(design.set, grade(probability, self._sure()), round(probability, 3))

    def first_recording(self, design: PlanDesign) -> Recording:
        """Return the first replication, simulating it again where only its point was kept."""
        if design.key not in self._first:
            assert design.simulated is not None, "it was evaluated"
            built = _built(design.simulated)
            self._first[design.key] = dict(self._run(built, [Part(REPLICATION, 0)]))[Part(REPLICATION, 0)]
        return self._first[design.key]

    def _make(self, set_: dict[str, Any], named: dict[str, Any]) -> PlanDesign:
        loaded = self.loaded
        try:
            loaded = loaded.with_values(set_, Origin("plan")) if set_ else loaded
            built = _built(longer(loaded, TIMES[0]))
        except InputError as error:
            return PlanDesign(
                named, loaded, None, refused=error.errors[0] if isinstance(error, SeveralErrors) else error
            )
        return PlanDesign(named, loaded, built)

    def _simulate(self, design: PlanDesign, times: int, *, last: bool) -> None:
        """Give the design a point of an effort, from an earlier search if one kept it."""
        assert design.built is not None, "it was built"
        loaded = longer(design.loaded, times)
        inputs = input_digests(loaded, design.built.world.profile_sha256)
        key = point_key(loaded.data, {"plan": True}, code_version(), inputs)
        point = self._store.load_priced(key, *prices_of(loaded.scenario))
        if point is None:
            built = design.built if times == TIMES[0] else _built(loaded)
            point = self._simulated(design, built, key)
            # Draws make a verdict less certain, never more. Where a longer run will be asked for, they can wait.
            word = verdict_word(planning_probability(point, self.terms), self._sure())
            if last or (times != TIMES[0] and word != UNCLEAR):
                point = self._with_draws(design, point)
            self._store.save_point(key, point)
        self.requests += round(point.cost["searched"])
        design.simulated, design.point, design.key = loaded, point, key

    def _simulated(self, design: PlanDesign, built: Design, key: str) -> Point:
        replications, parts = built.replications, dict[Part, Any]()
        options = EvaluationOptions(design.set, replications, draws=False, counterfactual=False)
        point = evaluate(built, options, self._run, parts).point
        if built is design.built:
            recordings = [parts[Part(REPLICATION, place)] for place in range(replications)]
            design.short = tuple(values_of_replication(each, facts_of(built.world)) for each in recordings)
        self._first[key] = parts[Part(REPLICATION, 0)]
        while len(self._first) > 1 and sum(map(_bytes, self._first.values())) > MOST_BYTES:
            del self._first[next(iter(self._first))]  # made longest ago
        cost = {**point.cost, "replications": replications, "searched": point.cost["requests"]}
        return replace(point, cost=cost)

    def _with_draws(self, design: PlanDesign, point: Point) -> Point:
        """Return a point with calibration intervals, from draws in runs as short as those of the first effort."""
        built = design.built
        assert built is not None, "it was built"
        if not built.draws:
            return point
        cost = 0.0
        if not design.drawn:
            if not design.short:  # the first effort was skipped, or an interrupted search kept its point
                short = self._simulated(design, built, design.key)
                cost += short.cost["searched"] if design.effort < 0 else 0.0
            design.drawn = values_of_draws(built, self._run)
            cost += len(design.drawn) * (built.world.traffic.expected_requests() or 0.0)
        assert built.world.draws, "draws belong to a profile"
        point = with_calibration(point, design.short, design.drawn, built.world.draws)
        return replace(point, cost={**point.cost, "searched": point.cost["searched"] + cost})

    def _run(self, built: Design, parts: Sequence[Part]) -> Iterable[tuple[Part, Any]]:
        """Simulate parts of a design: on the pool if the work is long enough to start worker processes."""
        if not parts:
            return ()
        requests = len(parts) * (built.world.traffic.expected_requests() or 0)
        return on_pool(self._pool.for_workload(requests, SMALL_EVALUATION, len(parts)))(built, parts)

    def _judge(self, design: PlanDesign, *, last: bool) -> Judgement:
        point = design.point
        assert point is not None, "it was simulated"
        score, sure = max(strain(point, name, target) for name, target in self.terms.items()), self._sure()
        probability = planning_probability(point, self.terms)
        word = verdict_word(probability, sure)
        missing = next((name for name in self.terms if value_of(point, name) is None), None)
        if missing is not None and word != NOT_MET:
            if not last:
                return Judgement(UNCLEAR, score, probability=probability)
            metric = metric_of(point, missing)
            state = State(Cause.NO_REQUESTS) if metric is None else metric.state
            raise too_short(missing, state, design.loaded, state.note or "not enough data")
        if word == UNCLEAR and is_overloaded(point):  # perhaps only because the run is short
            return Judgement(UNCLEAR, max(score, 1 + _CLOSE), probability=probability)
        if word == UNCLEAR:
            by_run = verdict(point.without_calibration(), self.terms, sure) == UNCLEAR
            only_costs = not by_run and open_by_costs(point, self.terms, sure)
            return Judgement(UNCLEAR, score, final=only_costs, probability=probability)
        score = min(score, 1.0) if word == MET else max(score, 1 + _CLOSE)
        return Judgement(word, score, probability=probability)

    def _sure(self) -> float:
        return sure_in_plan(self._confidence)


def too_short(term: str, state: State, loaded: LoadedScenario, why: str) -> InputError:
    """Return the error of a search whose longest runs have too few requests for a term.

    :param state: of the term's metric in such runs; ``why``: the same in words.
    """
    tenant, workload = split_term(term)[0], loaded.scenario.workload
    times = _MARGIN * state.needed / state.found if state.found else None
    hint = LONGER.get(workload.recorded, "simulate more requests (workload.requests)")
    if times is not None and not workload.recorded and workload.requests is not None:
        requests = round_up(workload.requests * times)
        hint = f"simulate about {requests:,} requests (--set workload.requests={requests})"
    elif times is not None and workload.duration is not None:
        hint = f"simulate about {times:.2g} times as long (workload.duration)"
    return InputError(
        f"can't decide whether {metric_words(term)} meets its target: {why}",
        key="tenants" if tenant else "slo",
        hint=f"{hint}, or leave the term out",
    )


def _built(loaded: LoadedScenario) -> Design:
    return Design(loaded.scenario, build(loaded.scenario))


def _bytes(recording: Recording) -> int:
    columns = [*recording.requests.values(), *recording.loads.values(), recording.section_of, recording.gap_counts]
    return sum(column.nbytes for column in columns)
