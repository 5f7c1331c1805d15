"""Looks at one design: as many replications as its verdict needs, each simulated once.

All designs meet the same traffic in the same replication, so what differs between them is the design.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sim.errors import InputError, ScenarioError
from sim.results.calibration import Alone
from sim.results.point import Point
from sim.results.records import Recording
from sim.results.stats import sections_per_replication, student
from sim.results.store import RunStore, point_key
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
from sim.studies.planning.search import Seen
from sim.studies.point import calibrate, conclude, draws_of, replications_of, simulate_draw
from sim.studies.sweep import code_version, input_digests
from sim.studies.vetting import build
from sim.world.build import simulate
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
    :ivar recordings: one a replication, from 0 on.
    :ivar point: over the replications of the last look; ``key``: the name of its file.
    :ivar counted: requests of it that the search has counted; ``dropped``: recordings it had once, let go for memory.
    """

    set: dict[str, Any]
    loaded: LoadedScenario | None
    world: World | None
    refused: InputError | None = None
    recordings: list[Recording] = field(default_factory=list)
    drawn: list[Alone] | None = None
    point: Point | None = None
    key: str = ""
    effort: int = -1
    seen: Seen | None = None
    counted: int = 0
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class Noted:
    """One look, for the record of a search.

    :ivar term: the SLO's term that is worst, and its ``value``.
    :ivar unserved: share of the requests that were refused or failed, where that makes it the worst.
    """

    set: dict[str, Any]
    replications: int
    word: str
    score: float
    term: str
    value: float | None
    unserved: float | None = None


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
        told: Callable[[Noted], None] = lambda noted: None,
    ) -> None:
        self._loaded = loaded
        self._store = store
        self._pool = pool or Local()
        self._confidence = confidence
        self._told = told
        self._designs: dict[str, Design] = {}
        self.terms = loaded.scenario.slo.terms()
        self.noted: list[Noted] = []
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
        assert design.world is not None, "it was built"
        by_effort = replications_by_effort(design.world)
        effort = min(effort, len(by_effort) - 1)
        if design.seen is not None and (design.effort >= effort or design.seen.final):
            return design.seen
        replications = by_effort[effort]
        self._simulate(design, replications, with_draws=replications >= replications_of(design.world))
        design.effort = effort
        design.seen = self._judged(design, last=effort == len(by_effort) - 1)
        assert design.point is not None, "it was simulated"
        term = self._worst(design.point)
        lost, total = unserved(design.point)
        value, share = design.point.metrics[term].value, None
        if lacks_answers(design.point, term, self.terms[term]):
            share = lost / total
        noted = Noted(design.set, by_effort[effort], design.seen.word, design.seen.score, term, value, share)
        self.noted.append(noted)
        self._told(noted)
        return design.seen

    def first_recording(self, design: Design) -> Recording:
        """Return the first replication, simulating it again where only its point was kept."""
        assert design.world is not None, "it was looked at"
        self._record(design, 1)
        return design.recordings[0]

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
        return Design(named, loaded, world)

    def _simulate(self, design: Design, replications: int, *, with_draws: bool) -> None:
        """Bring the design's point to so many replications, from what an earlier search kept where it did."""
        assert design.world is not None, "it was built"
        assert design.loaded is not None, "it was built"
        world = design.world
        values = {"replications": replications}
        key = point_key(design.loaded.data, values, code_version(), input_digests(design.loaded, world))
        draws = len(draws_of(world)) if with_draws else 0
        point = self._store.load_point(key)
        if point is None:
            self._record(design, replications)
            recordings = design.recordings[:replications]
            point = conclude(world, recordings, design.set, with_requests=False).point
            if draws:
                if design.drawn is None:
                    design.drawn = self._parallel(simulate_draw, world, range(draws))
                # Draws met the traffic of the scenario's own replications, however many there are by now.
                calibrate(point, world, recordings[: replications_of(world)], design.drawn)
            point.cost["replications"] = replications
            self._store.save_point(key, point)
        total = round(point.cost["requests"] * (1 + draws / replications))
        self.requests += max(0, total - design.counted)
        design.counted = max(total, design.counted)
        design.point, design.key = point, key

    def _record(self, design: Design, replications: int) -> None:
        """Simulate the replications that are missing, and let go of those of other designs where they take much."""
        assert design.world is not None, "it was built"
        missing = range(len(design.recordings), replications)
        made = self._parallel(_replication, design.world, missing)
        lost = [recording for place, recording in zip(missing, made, strict=True) if place < design.dropped]
        self.requests += sum(len(recording.section_of) for recording in lost)
        design.recordings += made
        self._recent = [other for other in self._recent if other is not design] + [design]
        while len(self._recent) > 1 and sum(map(_bytes, self._recent)) > MOST_BYTES:
            oldest = self._recent.pop(0)
            oldest.dropped = max(oldest.dropped, len(oldest.recordings))
            oldest.recordings = []

    def _parallel(self, task: Callable[[World, int], Any], world: World, places: range) -> list[Any]:
        """Return what a task gives for every place, in order."""
        total = world.traffic.total or int(world.traffic.rate * (world.traffic.end_s or 0.0))
        pool = self._pool.worth(total * len(places), SMALL_LOOK)
        found = dict(pool.unordered(_placed, [(place, task, world) for place in places]))
        return [found[place] for place in places]

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


def _replication(world: World, place: int) -> Recording:
    """Simulate a replication cut into as many sections as the scenario's own number of replications needs."""
    base = 1 if world.traffic.replayed else world.scenario.run.replications
    return simulate(world, place, sections_per_replication(base))


def _bytes(design: Design) -> int:
    kept = 0
    for recording in design.recordings:
        columns = [*recording.requests.values(), *recording.loads.values(), recording.section_of, recording.gap_counts]
        kept += sum(column.nbytes for column in columns)
    return kept


def _placed(place: int, task: Callable[[World, int], Any], world: World) -> tuple[int, Any]:
    return place, task(world, place)
