"""The question of a plan as searches: over one variable, over two, or for the cheapest of several fleets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sim.results.fleet_costs import HOURS_PER_MONTH
from sim.results.run_directory.study_records import FleetRecord, FormulaRecord
from sim.results.verdict import MET, PROBABLE, UNCLEAR
from sim.spec.profile_choice import gpus_per_replica, prices_of, profile_of, replica_prices
from sim.spec.scenario import PRICE, FleetChoice, Plan
from sim.spec.scenario_file import LoadedScenario
from sim.studies.plan.candidates import Variable
from sim.studies.plan.evaluator import TIMES, DesignEvaluator, PlanDesign
from sim.studies.plan.screen import screen
from sim.studies.plan.search import STEER, Judgement, Search

EFFORTS = len(TIMES)
MOST_FURTHER = 4
"""Values of the first of two variables, after that of the answer, for which the smallest second value is found."""
_SCREENED = 12
"""Candidates screened by formulas to find where the search begins."""


@dataclass(slots=True)
class SearchResult:
    """What a search found.

    :ivar answer: the most wanted design that meets the SLO; None: no design does.
    :ivar best: the design closest to meeting the SLO; ``likely``: the most wanted one that probably meets it.
    :ivar edge: the design before the answer, more wanted, which misses the SLO; None: there is none in the range.
    :ivar other_edge: with two variables, the best design at the next more wanted value of the first, which misses it.
    :ivar beyond: the design after the answer, if it was evaluated.
    :ivar doubtful: designs whose verdict stayed unclear.
    :ivar fleets: in a plan for a price, one row for each fleet.
    :ivar frontier: with two variables, by value of the first that may be enough, the design with the smallest second.
    """

    answer: PlanDesign | None
    best: PlanDesign
    likely: PlanDesign | None = None
    edge: PlanDesign | None = None
    other_edge: PlanDesign | None = None
    beyond: PlanDesign | None = None
    doubtful: list[PlanDesign] = field(default_factory=list)
    fleets: list[FleetRecord] = field(default_factory=list)
    frontier: list[PlanDesign] = field(default_factory=list)

    @property
    def chosen(self) -> PlanDesign:
        """The design that the plan is about."""
        return self.answer or self.likely or self.best


Along = Callable[[int], PlanDesign]
"""The designs along a variable, by the place of its value."""


def _along(
    axis: Variable, evaluator: DesignEvaluator, fixed: Mapping[str, Any], named: Mapping[str, Any] | None = None
) -> Along:
    """Return the designs along a variable that share some values.

    :param named: the values that tables show instead, if others.
    """

    def design(index: int) -> PlanDesign:
        own = {axis.key: axis.values[index]}
        return evaluator.design({**fixed, **own}, {**(fixed if named is None else named), **own})

    return design


def search(plan: Plan, axes: list[Variable], evaluator: DesignEvaluator) -> SearchResult:
    """Search for the answer of a plan."""
    if plan.keys == (PRICE,):
        return _cheapest(plan, axes[0], evaluator)
    if len(axes) == 1:
        return _one(axes[0], evaluator, _along(axes[0], evaluator, {}))
    largest = evaluator.design({axis.key: axis.values[-1] for axis in axes})
    prices = replica_prices(largest.loaded.scenario)
    if all(axis.key in prices for axis in axes):  # replicas of two pools
        return _cheapest_mix(axes[0], axes[1], tuple(prices[axis.key] for axis in axes), evaluator)
    return _two(axes[0], axes[1], evaluator)


def _searching(axis: Variable, evaluator: DesignEvaluator, at: Along, start: int | None = None) -> Search:
    count = len(axis.values)
    if start is None:
        start = _start(count, at, evaluator.terms)
    return Search(count, lambda index, effort: evaluator.evaluate(at(index), effort), EFFORTS, start)


def _one(axis: Variable, evaluator: DesignEvaluator, at: Along, searching: Search | None = None) -> SearchResult:
    edge = (searching or _searching(axis, evaluator, at)).run()
    beyond = None
    if edge.answer is not None and edge.answer + 1 < len(axis.values):
        beyond = at(edge.answer + 1)
        evaluator.evaluate(beyond, STEER)
    return SearchResult(
        answer=None if edge.answer is None else at(edge.answer),
        best=at(edge.best),
        edge=at(edge.before) if edge.answer is not None and edge.before >= 0 else None,
        beyond=beyond,
        doubtful=[at(index) for index in edge.doubtful],
    )


def _two(outer: Variable, inner: Variable, evaluator: DesignEvaluator) -> SearchResult:
    """Find the first value of ``outer`` for which any value of ``inner`` meets the SLO, then the first such value."""
    searches: dict[int, Search] = {}
    last: list[int] = []  # where inner searches last found a hopeful value

    def fixing(index: int) -> Along:
        return _along(inner, evaluator, {outer.key: outer.values[index]})

    def evaluate(index: int, effort: int) -> Judgement:
        if index not in searches:
            searches[index] = _searching(inner, evaluator, fixing(index), last[-1] if last else None)
        judgement = searches[index].possible(effort)
        if judgement.hopeful:
            last.append(min(i for i, each in searches[index].judgements.items() if each.hopeful))
        return judgement

    found = Search(len(outer.values), evaluate, EFFORTS, sure=STEER + 1).run()
    chosen = found.best if found.answer is None else found.answer
    result = _one(inner, evaluator, fixing(chosen), searches[chosen])
    if found.answer is not None and found.before >= 0:
        judgements = searches[found.before].judgements
        result.other_edge = fixing(found.before)(min(judgements, key=lambda i: judgements[i].score))
    for index in sorted({*found.doubtful, chosen}):
        judged = searches[index].judgements
        unclear = [i for i, each in judged.items() if each.word == UNCLEAR]
        # The smallest that probably does, as the headline has it; else the likeliest.
        unclear.sort(key=lambda i: (-min(judged[i].probability, PROBABLE), i))
        likeliest = [fixing(index)(i) for i in unclear[:1]]
        result.frontier += likeliest
        result.doubtful += likeliest if index != chosen else []  # which has all of its own already
    result.frontier += [] if result.answer is None else [result.answer]
    if result.answer is not None:
        enough = inner.values.index(result.answer.set[inner.key])
        for value in outer.values[chosen + 1 : chosen + 1 + MOST_FURTHER]:
            if enough == 0:
                break
            more = _smallest(Variable(inner.key, inner.values[: enough + 1]), evaluator, {outer.key: value}, enough)
            if more is not None:
                result.frontier.append(more)
                enough = inner.values.index(more.set[inner.key])
    return result


def _smallest(axis: Variable, evaluator: DesignEvaluator, fixed: dict[str, Any], start: int) -> PlanDesign | None:
    """Return the design with the first value that meets the SLO, or seems to, as far as little effort shows."""
    at = _along(axis, evaluator, fixed)
    edge = Search(len(axis.values), lambda index, effort: evaluator.evaluate(at(index), effort), STEER + 1, start).run()
    likely = [i for i in (*edge.doubtful, edge.answer) if i is not None and edge.judgements[i].hopeful]
    return at(min(likely)) if likely else None


def _cheapest(plan: Plan, replicas: Variable, evaluator: DesignEvaluator) -> SearchResult:
    """Find the smallest fleet of each kind that costs less than the best so far."""
    best: SearchResult | None = None
    nearest: SearchResult | None = None
    least = math.inf
    rows: list[FleetRecord] = []
    doubtful: list[PlanDesign] = []
    for fleet in plan.fleets:
        given = {} if fleet.gpus is None else {"fleet.gpus_per_replica": fleet.gpus}
        fixed = {**fleet.set, **given, "fleet.price": fleet.price}
        named = {"fleet": fleet.name}
        first = _along(replicas, evaluator, fixed, named)(0)
        gpus = gpus_of_replica(fleet, first.loaded)
        each = fleet.price * gpus
        rows.append(FleetRecord(fleet.name, fleet.price, gpus, word="dearer with its first replica"))
        full = full_replicas(first)
        affordable = Variable(replicas.key, tuple(n for n in replicas.values if (n + full) * each < least))
        if not affordable.values:
            continue
        found = _one(affordable, evaluator, _along(affordable, evaluator, fixed, named))
        doubtful += found.doubtful
        nearest = found if nearest is None or _score(found.best) < _score(nearest.best) else nearest
        if found.answer is None:
            why = "none in the range" if best is None else "none that is cheaper"
            meets = "certainly meets" if found.doubtful else "meets"
            rows[-1] = replace(rows[-1], word=f"{why} {meets} the SLO")
            continue
        count = found.answer.set[replicas.key]
        full = full_replicas(found.answer)
        best, least = found, (count + full) * each
        rows[-1] = replace(rows[-1], replicas=count, full_replicas=full, total=least, word=MET)
    result = best or nearest
    assert result is not None, "there is a fleet"
    result.doubtful, result.fleets = doubtful, rows
    return result


def _cheapest_mix(
    outer: Variable, inner: Variable, prices: tuple[float, ...], evaluator: DesignEvaluator
) -> SearchResult:
    """Find the cheapest replicas of two pools: for each number of the first, the smallest number of the second that
    meets the SLO and costs less than the best so far.

    :param prices: of a replica of each.
    """
    best: SearchResult | None = None
    nearest: SearchResult | None = None
    least = math.inf
    frontier: list[PlanDesign] = []
    doubtful: list[PlanDesign] = []
    for value in outer.values:
        affordable = tuple(n for n in inner.values if value * prices[0] + n * prices[1] < least)
        if not affordable:
            continue
        axis = Variable(inner.key, affordable)
        found = _one(axis, evaluator, _along(axis, evaluator, {outer.key: value}))
        doubtful += found.doubtful
        nearest = found if nearest is None or _score(found.best) < _score(nearest.best) else nearest
        if found.answer is not None:
            best = found
            least = value * prices[0] + found.answer.set[inner.key] * prices[1]
            frontier.append(found.answer)
    result = best or nearest
    assert result is not None, "the first mix costs something"
    result.doubtful, result.frontier = doubtful, [*doubtful, *frontier]
    return result


def gpus_of_replica(fleet: FleetChoice, loaded: LoadedScenario) -> int:
    """Return the GPUs of one replica of a kind of fleet: those given, else those of its profile.

    :param loaded: a scenario with the values of this fleet.
    """
    profile, _ = profile_of(loaded.scenario)
    return fleet.gpus or gpus_per_replica(loaded.scenario, profile)


def full_replicas(design: PlanDesign) -> int:
    """Return the replicas of full models, which ``fleet.replicas`` doesn't count; 0 where it can't be built."""
    return 0 if design.world is None else design.world.replicas - design.world.own_replicas


def _score(design: PlanDesign) -> float:
    return math.inf if design.judgement is None else design.judgement.score


def _start(count: int, design: Along, terms: Mapping[str, float]) -> int:
    """Return the first candidate that formulas allow: among a few, then by bisection towards the one before."""
    screened: dict[int, float] = {}

    def strain(index: int) -> float:
        if index not in screened:
            made = design(index)
            screened[index] = math.inf if made.world is None else _strain(screen(made.world), terms)
        return screened[index]

    few = sorted({round(i * (count - 1) / max(1, _SCREENED - 1)) for i in range(_SCREENED)})
    right = next((index for index in few if strain(index) <= 1), None)
    if right is None:
        return min(few, key=strain)
    left = max((index for index in few if index < right), default=-1)
    while right - left > 1:
        middle = (left + right) // 2
        left, right = (left, middle) if strain(middle) <= 1 else (middle, right)
    return right


def _strain(found: FormulaRecord, terms: Mapping[str, float]) -> float:
    """Return the worst load, or the miss ratio over its target: above 1 a design hardly ever meets the SLO."""
    strains = [load or 0.0 for load in (found.loader_load, found.gpu_load)]
    if terms.get("miss_ratio"):
        strains.append(found.miss_ratio / terms["miss_ratio"])
    return max(strains)


def price_of(design: PlanDesign) -> float | None:
    """Return what all GPUs of a design cost per hour; None where the scenario has no price.

    With an autoscaler it is the mean over the simulation.
    """
    scenario, world = design.loaded.scenario, design.world
    price, pools, _ = prices_of(scenario)
    if price is None or world is None:
        return None
    if scenario.fleet.autoscale is not None:
        month = None if design.point is None else design.point.value("usd_per_month")
        return None if month is None else month / HOURS_PER_MONTH
    if pools:
        return sum(each * pool.replicas * pool.gpus for each, pool in zip(pools, world.pools, strict=True))
    return price * world.gpus
