"""Every metric, counted a second time from single requests, loads, steps and gaps (``naive_metrics``)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import naive_metrics
import pytest
from counted_runs import Run, run
from metric_scenarios import FAMILIES, metric_scenario
from naive_metrics import Counted, Part, SecondCount

from sim.results.point import NOT_THERE, UNITS, Metric
from sim.spec.scenario import Scenario

EACH = 34
"""Scenarios of a family: 510 in all."""
NEAR = 1e-9
PART = 1e-6
"""Points keep seven digits of parts."""
BIN = 1.001 * (1 + 1e-12)
"""Upper edge of a bin of gaps over its lower edge."""
GAPS_IN_BINS = ("itl_p99_s",)
ALWAYS_BY_REPLICATION = ("evictions",)


def near(a: float | None, b: float | None, tolerance: float = NEAR) -> bool:
    if a is None or b is None:
        return a is None and b is None
    return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)


def in_bin(exact: float | None, edge: float | None) -> bool:
    """Whether a value lies in the bin that ends with an edge."""
    if exact is None or edge is None:
        return exact is None and edge is None
    return exact * (1 - 1e-6) <= edge <= exact * BIN * (1 + 1e-6)


def differences(counted: dict[str, Counted], metrics: dict[str, Metric]) -> Iterator[str]:
    """Say where the two counts differ."""
    for name in UNITS:
        ours, theirs = metrics[name], counted.get(name)
        if theirs is None:
            if ours.value is not None or not (ours.note in NOT_THERE or " no " in f" {ours.note}"):
                yield f"{name}: {ours.value} ({ours.note}), not counted"
            continue
        same = in_bin(theirs.value, ours.value) if name in GAPS_IN_BINS else near(theirs.value, ours.value)
        if not same:
            yield f"{name}: {ours.value}, counted {theirs.value} ({ours.note})"
            continue
        if name not in GAPS_IN_BINS and not (near(theirs.low, ours.lo) and near(theirs.high, ours.hi)):
            yield f"{name}: {ours.lo} to {ours.hi}, counted {theirs.low} to {theirs.high}"
        if ours.parts and not parts_agree(name, ours.parts, theirs):
            yield f"{name}: parts {ours.parts}, counted {theirs.in_sections} or {theirs.in_replications}"


def parts_agree(name: str, parts: list[float | None], counted: Counted) -> bool:
    wanted = counted.parts
    if len(parts) != len(wanted):
        return False
    if name in GAPS_IN_BINS:
        return all(in_bin(b, a) for a, b in zip(parts, wanted, strict=True))
    return all(near(a, b, PART) for a, b in zip(parts, wanted, strict=True))


def close_rows(name: str, ours: dict[str, Any], theirs: dict[str, Any]) -> Iterator[str]:
    """Say which fields of two rows differ, of those that the second count has."""
    for field, value in theirs.items():
        if not near(ours[field], value):
            yield f"{name} {field}: {ours[field]}, counted {value}"


def differences_beside(one: Run, counted: SecondCount) -> Iterator[str]:
    """Say where what a point holds beside its metrics differs."""
    point, facts, parts, replications = one.point, one.facts, counted.wholes, one.replications
    yield from differences_of_breakdown(one, parts)
    capacity = point.capacity
    shares = {
        ("loader", "offered_load"): naive_metrics.offered_to_loaders(replications, parts),
        ("compute", "offered_load"): naive_metrics.overload(replications, parts),
        ("slots", "blocked_share"): naive_metrics.slots_blocked_share(replications, parts),
    }
    if not facts.fixed_engine:
        for reason in ("seats", "kv"):
            share = naive_metrics.blocked_share(parts, reason, facts.all_replicas)
            shares[reason, "blocked_share"] = share
    if facts.all_replicas > facts.base_replicas:
        shares["full_models", "utilization"] = naive_metrics.full_models_utilization(parts)
    for (part, name), share in shares.items():
        if not near(capacity[part][name], share):
            yield f"capacity {part} {name}: {capacity[part][name]}, counted {share}"
    if facts.all_replicas > 1:
        for ours, theirs in zip(point.replicas, naive_metrics.replica_rows(replications[0], parts[0]), strict=True):
            yield from close_rows(f"replica {theirs['replica']}", ours, theirs)
    yield from differences_of_groups(one, parts)
    if facts.rollout_begins or facts.faults:
        yield from close_rows("harm", point.harm, naive_metrics.harm_counts(parts))


def differences_of_breakdown(one: Run, parts: list[Part]) -> Iterator[str]:
    """Stages add up to mean E2E, none is negative, and what rows alone tell of them agrees."""
    ours, theirs = dict(one.point.breakdown), naive_metrics.breakdown(parts)
    if not theirs:
        return
    if not near(sum(ours.values()), naive_metrics.e2e_mean_s(parts)):
        yield f"breakdown {ours} adds up to {sum(ours.values())}, mean E2E is {naive_metrics.e2e_mean_s(parts)}"
    if min(ours.values()) < -NEAR:
        yield f"breakdown {ours} has a negative stage"
    before_s, waits_s = theirs.pop("until_admission_s"), theirs["loader_queue_s"] + theirs["load_s"]
    scenario, host = one.world.scenario, one.world.scenario.cache.host
    if scenario.fleet.full_models is None and (host is None or host.fill != "arrival"):
        inside_step_s = waits_s if scenario.storage.mode == "blocking" else 0.0
        if not near(ours["queue_s"], before_s - (waits_s - inside_step_s)):
            yield f"breakdown queue_s: {ours['queue_s']}, counted {before_s - (waits_s - inside_step_s)}"
    ours["queue_and_prefill_s"] = ours.pop("queue_s") + ours.pop("prefill_s")
    yield from close_rows("breakdown", ours, theirs)


def differences_of_groups(one: Run, parts: list[Part]) -> Iterator[str]:
    population = one.world.traffic.population
    sizes, kinds = [float(size) for size in population.size_bytes], population.kind.tolist()
    groups = []
    if len(population.kind_names) > 1:
        groups = [[a for a, kind in enumerate(kinds) if kind == number] for number in range(len(population.kind_names))]
    if len(sizes) >= 10:
        groups += naive_metrics.popularity_bands(parts, len(sizes))
    for ours, adapters in zip(one.point.groups, groups, strict=True):
        yield from close_rows(ours["group"], ours, naive_metrics.group_row(parts, adapters, sizes))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_metric_agrees_with_the_second_count(family: str) -> None:
    seen = Counter[str]()
    for number in range(EACH):
        scenario = metric_scenario(family, number)
        one = run(scenario)
        counted = SecondCount(one.replications, one.facts)
        found = [*differences(counted.metrics(), one.point.metrics), *differences_beside(one, counted)]
        assert not found, "\n".join([f"{family}/{number}", *found, scenario.model_dump_json(exclude_unset=True)])
