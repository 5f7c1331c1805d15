"""Levers of a plan: changes that cost no GPU, on the design that would save one, and which of them makes it enough."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from reports.answers.limits import is_uneven
from sim.results.point import Point
from sim.results.run_directory.study_records import PAIR, WhatIfRow
from sim.results.slo_terms import all_terms, is_gap, split_term, value_of
from sim.results.verdict import MET, NO_DATA, NOT_MET, PROBABLE, strain, strained
from sim.studies.plan.evaluator import DesignEvaluator, PlanDesign
from sim.studies.plan.findings import FOR_ADAPTERS, misses_most
from sim.studies.plan.questions import SearchResult, price_of
from sim.studies.plan.what_if import free_changes

_WAITING = 0.05
"""Share of the latency that is waiting for adapters, from which other routers and caches are tried."""
_CONFIRMED = 2
"""How many changes that seem to make a design enough are evaluated as thoroughly as designs, at most."""
_FOR_GAPS, _FOR_EVEN_LOAD, _FOR_TENANTS, _FOR_PROMPTS = ("steps",), ("router",), ("scheduling",), ("kv offload",)
"""Groups of changes that cost no GPU, besides those for adapters: where gaps between tokens are too long, where one
replica gets more requests than others, where a tenant's SLO is missed, and where first tokens are late."""


def falls_short(
    found: SearchResult, designs: Sequence[PlanDesign], evaluator: DesignEvaluator, planned: Collection[str]
) -> tuple[PlanDesign | None, tuple[str, ...]]:
    """Return the design next to the answer that misses the SLO, if changes that cost no GPU could help it, and which.

    One of them may make it enough. Of two variables, one less of the first saves more.

    Where a plan was found, that is the most wanted design that more likely misses the SLO than meets it, or an edge.

    :param designs: all, the most wanted last: if the best may do, the first of them that probably does not is tried.
    """
    misses = (each for each in (found.best, *designs) if evaluator.grade(each).probability <= 1 - PROBABLE)
    doubtful = (each for each in found.doubtful if evaluator.grade(each).probability < 0.5)
    likely_short: list[PlanDesign | None] = [each for each in doubtful if not _is_dearer(each, found.answer)]
    # Where what nearly does would not be helped, what is farther from it is not either.
    tried = [next(misses, None)] if found.answer is None else likely_short or [found.other_edge, found.edge]
    for design in tried:
        if design is not None and not _is_dearer(design, found.answer) and (levers := _levers(design, planned)):
            return design, levers
    return None, ()


def _is_dearer(design: PlanDesign, answer: PlanDesign | None) -> bool:
    """Return whether a design costs more than the answer: with several fleets, the edge may belong to a dearer one."""
    price, least = price_of(design), None if answer is None else price_of(answer)
    return price is not None and least is not None and price > least


def _levers(design: PlanDesign, planned: Collection[str]) -> tuple[str, ...]:
    point, world = design.point, design.world
    if point is None or world is None:
        return ()
    missed = strained(point, all_terms(world.scenario))
    for_queues = FOR_ADAPTERS if waits_for_adapters(design) else _FOR_EVEN_LOAD if is_uneven(point) else ()
    for_tenants = _FOR_TENANTS if any(split_term(term)[0] for term in missed) else ()
    late = any(split_term(term)[1].startswith(("ttft_", "e2e_")) for term in missed)
    slow = _FOR_GAPS if any(map(is_gap, missed)) else ()
    groups = (*for_queues, *slow, *(_FOR_PROMPTS if late else ()), *for_tenants)
    return tuple(dict.fromkeys(change.group for change in free_changes(world, groups, planned)))


def waits_for_adapters(design: PlanDesign) -> bool:
    """Return whether more slots or copies, a router or an eviction could help."""
    point, world = design.point, design.world
    if point is None or world is None:
        return False
    target = all_terms(world.scenario).get("miss_ratio")
    if target is not None and strain(point, "miss_ratio", target) > 1:
        return True
    waits = sum(point.breakdown.get(stage, 0.0) for stage in ("loader_queue_s", "load_s", "decode_load_s"))
    return waits > _WAITING * sum(point.breakdown.values()) or (point.capacity.slots.blocked_share or 0.0) > _WAITING


def with_grades(rows: list[WhatIfRow], design: PlanDesign, evaluator: DesignEvaluator) -> list[WhatIfRow]:
    """Return rows with the grade of the change that seems to make a design enough; of the next one, too, if more likely
    it doesn't."""
    assert design.point is not None, "it was evaluated"
    for row in _enough_by_short_runs(rows, design.point, evaluator.terms)[:_CONFIRMED]:
        found = evaluator.changed(design, row.set)
        assert found.point is not None, "it was evaluated"
        values = {name: value_of(found.point, name) for name in evaluator.terms}
        graded = replace(row, grade=evaluator.grade(found), graded=values)
        rows = [graded if each is row else each for each in rows]
        if found.judgement is not None and found.judgement.probability >= NO_DATA:
            break
    return rows


def _enough_by_short_runs(rows: Sequence[WhatIfRow], short: Point, terms: Mapping[str, float]) -> list[WhatIfRow]:
    """Return the changes with which short runs of a design that misses the SLO met it, the best first."""
    name = misses_most(short, terms)
    enough = [row for row in rows if row.verdict not in (None, NOT_MET) and _is_within(row, terms)]
    return sorted(enough, key=lambda row: (row.verdict != MET, row.group == PAIR, row.metrics[name].other or 0.0))


def _is_within(row: WhatIfRow, terms: Mapping[str, float]) -> bool:
    found = [(row.metrics.get(name), target) for name, target in terms.items()]
    return all(each is not None and each.other is not None and each.other <= target for each, target in found)
