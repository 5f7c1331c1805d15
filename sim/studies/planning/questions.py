"""What a plan asks, as searches: one variable, two, or the cheapest of several fleets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from sim.results.model import FleetRecord
from sim.results.verdict import MET, UNCLEAR
from sim.spec.sections.plan_question import PRICE, FleetChoice, Plan
from sim.studies.planning.candidates import Variable
from sim.studies.planning.evaluator import DOUBLINGS, Design, Looks
from sim.studies.planning.screen import Screened, screen
from sim.studies.planning.search import STEER, Search, Seen

EFFORTS = DOUBLINGS + 2
_SCREENED = 12
"""Candidates whose formulas are looked at to find where the search begins."""


@dataclass(slots=True)
class Found:
    """What a search found: designs, the most wanted first.

    :ivar edge: the design before the answer, which is more wanted and does not do; None: there is none in the range.
    :ivar other_edge: of two variables, the best design with the first one's next more wanted value, which does not do.
    :ivar beyond: the design after the answer, if it was looked at.
    :ivar doubtful: designs of which it stayed unclear.
    :ivar fleets: of a plan for a price, a row for every fleet.
    """

    answer: Design | None
    best: Design
    edge: Design | None = None
    other_edge: Design | None = None
    beyond: Design | None = None
    doubtful: list[Design] = field(default_factory=list)
    fleets: list[FleetRecord] = field(default_factory=list)


class _Of:
    """What all designs of one search have in common: values that are set, or a fleet and its name."""

    def __init__(self, fixed: Mapping[str, Any] | FleetChoice) -> None:
        self.set: Mapping[str, Any] = fixed.set if isinstance(fixed, FleetChoice) else fixed
        self._name = {"fleet": fixed.name} if isinstance(fixed, FleetChoice) else fixed

    def design(self, looks: Looks, axis: Variable, index: int) -> Design:
        """Return the design with a value of one more key."""
        own = {axis.key: axis.values[index]}
        return looks.design({**self.set, **own}, {**self._name, **own})


def search(plan: Plan, axes: list[Variable], looks: Looks) -> Found:
    """Return what a plan looks for."""
    if plan.keys == (PRICE,):
        return _cheapest(plan, axes[0], looks)
    if len(axes) == 1:
        return _one(axes[0], looks, _Of({}))
    return _two(axes[0], axes[1], looks)


def _searching(axis: Variable, looks: Looks, of: _Of, start: int | None = None) -> Search:
    def look(index: int, effort: int) -> Seen:
        return looks.look(of.design(looks, axis, index), effort)

    count = len(axis.values)
    if start is None:
        start = _start(count, partial(of.design, looks, axis), looks.terms)
    return Search(count, look, EFFORTS, start)


def _one(axis: Variable, looks: Looks, of: _Of, searching: Search | None = None) -> Found:
    edge = (searching or _searching(axis, looks, of)).run()
    at = partial(of.design, looks, axis)
    beyond = None
    if edge.answer is not None and edge.answer + 1 < len(axis.values):
        beyond = at(edge.answer + 1)
        looks.look(beyond, STEER)
    return Found(
        answer=None if edge.answer is None else at(edge.answer), best=at(edge.best),
        edge=at(edge.before) if edge.answer is not None and edge.before >= 0 else None, beyond=beyond,
        doubtful=[at(index) for index in edge.doubtful],
    )  # fmt: skip


def _two(outer: Variable, inner: Variable, looks: Looks) -> Found:
    """Find the first value of ``outer`` with which any value of ``inner`` will do, then the first of these."""
    searches: dict[int, Search] = {}
    last: list[int] = []  # where the inner search last found something

    def of(index: int) -> _Of:
        return _Of({outer.key: outer.values[index]})

    def look(index: int, effort: int) -> Seen:
        if index not in searches:
            searches[index] = _searching(inner, looks, of(index), last[-1] if last else None)
        seen = searches[index].possible(effort)
        if seen.hopeful:
            last.append(min(i for i, each in searches[index].seen.items() if each.hopeful))
        return seen

    found = Search(len(outer.values), look, EFFORTS).run()
    chosen = found.best if found.answer is None else found.answer
    result = _one(inner, looks, of(chosen), searches[chosen])
    if found.answer is not None and found.before >= 0:
        seen = searches[found.before].seen
        result.other_edge = of(found.before).design(looks, inner, min(seen, key=lambda i: seen[i].score))
    for index in found.doubtful:
        unclear = [i for i, each in searches[index].seen.items() if each.word == UNCLEAR]
        result.doubtful += [of(index).design(looks, inner, i) for i in unclear[:1]]
    return result


def _cheapest(plan: Plan, replicas: Variable, looks: Looks) -> Found:
    """Find the smallest fleet of each kind that costs less than the best so far."""
    best: Found | None = None
    least = math.inf
    nearest: Design | None = None
    rows: list[FleetRecord] = []
    doubtful: list[Design] = []
    for fleet in plan.fleets:
        each = fleet.price * fleet.gpus
        rows.append(FleetRecord(fleet.name, fleet.price, fleet.gpus, word="dearer with its first replica"))
        full = full_replicas(_Of(fleet).design(looks, replicas, 0)) if replicas.values else 0
        affordable = Variable(replicas.key, tuple(n for n in replicas.values if (n + full) * each < least))
        if not affordable.values:
            continue
        found = _one(affordable, looks, _Of(fleet))
        doubtful += found.doubtful
        nearest = found.best if nearest is None or _score(found.best) < _score(nearest) else nearest
        if found.answer is None:
            why = "none in the range" if best is None else "none that is cheaper"
            rows[-1] = replace(rows[-1], word=f"{why} meets the SLO")
            continue
        count = found.answer.set[replicas.key]
        full = full_replicas(found.answer)
        best, least = found, (count + full) * each
        rows[-1] = replace(rows[-1], replicas=count, full_replicas=full, total=least, word=MET)
    if best is None:
        assert nearest is not None, "there is a fleet"
        best = Found(None, nearest)
    best.doubtful, best.fleets = doubtful, rows
    return best


def full_replicas(design: Design) -> int:
    """Return the replicas of full models beside those that a design counts; 0 where it can't be built."""
    return 0 if design.world is None else design.world.replicas - design.world.scenario.fleet.replicas


def _score(design: Design) -> float:
    return math.inf if design.seen is None else design.seen.score


def _start(count: int, design: Callable[[int], Design], terms: Mapping[str, float]) -> int:
    """Return the first candidate that formulas don't rule out, of a few, and of those between it and the one before."""
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


def _strain(found: Screened, terms: Mapping[str, float]) -> float:
    """Return the worst load, or miss ratio over its target: above 1 a design is hardly worth a look."""
    strains = [found.loader_load, found.gpu_load]
    if terms.get("miss_ratio"):
        strains.append(found.miss_ratio / terms["miss_ratio"])
    return max(strains)
