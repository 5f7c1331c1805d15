"""Every metric, counted a second time from single requests, loads, steps and gaps (``naive_metrics``).

A scenario that differs is named by family and number; ``metric_scenario`` makes it again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import naive_capacity
import naive_metrics
import pytest
from catalogue_names import ALWAYS_THERE
from counted_runs import Run, run
from examples import PART as TRIED
from metric_scenarios import FAMILIES, FAULTS, STRATEGIES, metric_scenario
from naive_intervals import ASKED, MEANS, MEDIANS, P99S, Counted, SecondCount, is_narrow, skewed
from naive_metrics import e2e_mean_s, slo_attainment
from naive_parts import Part, completed, has_targets, is_late, mean, whole

from sim.errors import LoraplanError
from sim.results.catalogue import measured_of
from sim.results.metric_state import Cause, Kind
from sim.results.point import Metric
from sim.spec.scenario import Scenario
from sim.spec.sections.traffic_laws import PiecewiseArrivals
from sim.world.build import build_world

EACH = round(32 * TRIED)
"""Scenarios of a family: 512 in all at night."""
NEAR = 1e-9
PART = 1e-6
"""Points keep seven digits of parts."""
ZERO = 1e-12
BIN = 1.001
"""Upper edge of a bin of gaps over its lower edge."""
ALIKE = 2.5e-4
"""Steps of a leap that differ by less than twice this are counted as equal: a quarter of a bin."""
CAUTION = 1.3
SIZED = {*MEANS, *MEDIANS, *P99S, *ASKED, "miss_ratio", "hit_ratio", "delayed_hit_ratio"}
"""Metrics that are settled by their effective sample size."""
WIDENED = {*MEANS, *P99S, *ASKED}
"""Those whose interval is also that of the mean's effective sample size where they are unsettled."""
GAPS_IN_BINS = ("itl_p99_s",)
LEAST = {
    "hit": 400,
    "delayed_hit": 250,
    "miss": 400,
    "from host": 250,
    "from storage": 300,
    "refused": 90,
    "unfinished": 70,
    "failed": 30,
    "late": 150,
    "late without an answer": 25,
    "good in the warm-up": 120,
    "several targets": 180,
    "preemptions": 35,
    "warm-up": 300,
    "duration": 120,
    "several replicas": 220,
    "several loaders": 50,
    "loads in steps": 250,
    "host memory fills": 110,
    "whole models load": 10,
    "full loaders": 20,
    "overloaded": 20,
    "times": 60,
    "shares of late requests": 80,
    "five replications": 160,
    "p99 of requests": 50,
    "steps across borders": 300,
    "gaps in the drain": 150,
    "gaps add up": 100,
    **dict.fromkeys(STRATEGIES, 35),
    "p99 during a rollout": 10,
    "mixed": 7,
    "stale": 70,
    "gated": 13,
    "saw both": 70,
    "went back": 20,
    **dict.fromkeys(FAULTS, 10),
    "rerouted": 13,
    "lost": 12,
    "load-failed": 10,
    "pauses of loaders": 6,
    "misrouted": 25,
    "wrong-served": 18,
    "wrong-detected": 14,
    "retried": 8,
    "old-prefix": 11,
}
"""How many of the scenarios must show what they are for."""


def near(a: float | None, b: float | None, tolerance: float = NEAR) -> bool:
    if a is None or b is None:
        return a is None and b is None
    return math.isclose(a, b, rel_tol=tolerance, abs_tol=ZERO)


LACKING = (Cause.NO_TOKENS, Cause.NO_TARGET, Cause.NO_SESSIONS, Cause.NONE_REROUTED, Cause.NO_BASELINE)
"""Why a metric may be absent, beside that the scenario has nothing that it could be about."""


def in_bin(exact: float | None, edge: float | None) -> bool:
    """Whether a value lies in the bin that ends with an edge."""
    if exact is None or edge is None:
        return exact is None and edge is None
    return exact * (1 - ALIKE) <= edge <= exact * BIN * (1 + ALIKE)


def differences(counted: dict[str, Counted], metrics: dict[str, Metric]) -> Iterator[str]:
    """Say where the two counts differ."""
    for name in [*ALWAYS_THERE, *(name for name in ASKED if name in metrics or name in counted)]:
        ours, theirs = metrics[name], counted.get(name)
        if theirs is None:
            if ours.value is not None or not (ours.state.kind is Kind.NOT_APPLICABLE or ours.state.cause in LACKING):
                yield f"{name}: {ours.value} ({ours.note}), not counted"
            continue
        same = in_bin if name in GAPS_IN_BINS else near
        if not same(theirs.value, ours.value):
            yield f"{name}: {ours.value}, counted {theirs.value} ({ours.note})"
            continue
        # A value can be unsettled for another reason after its effective sample size was found to be enough.
        if widened := name in WIDENED and not ours.settled and is_widened(theirs, ours):
            theirs = replace(theirs, low=ours.lo, high=ours.hi)
        sized = name in SIZED and not widened and (ours.settled or not near(theirs.low, ours.lo))
        if sized and not within_caution(name, theirs, ours):
            yield f"{name}: {ours.lo} to {ours.hi}, settled, around {theirs.value} ± {theirs.half_of_sections}"
        if not sized and name not in GAPS_IN_BINS and not (near(theirs.low, ours.lo) and near(theirs.high, ours.hi)):
            yield f"{name}: {ours.lo} to {ours.hi}, counted {theirs.low} to {theirs.high}"
        if ours.value is not None and theirs.settled != ours.settled and not decided_by_size(name, theirs, ours):
            yield f"{name}: settled {ours.settled}, counted {theirs.settled} ({ours.note})"
        if ours.parts and not parts_agree(name, ours.parts, theirs):
            yield f"{name}: parts {ours.parts}, counted {theirs.in_sections} or {theirs.in_replications}"


def is_widened(counted: Counted, metric: Metric) -> bool:
    """Whether an unsettled interval is that of the sections, but for ends that lie further from the value, both by the
    same factor: how large it is follows from the effective sample size, which isn't counted here."""
    if metric.lo is None or metric.hi is None or not metric.value:
        return False
    down, up = metric.value / metric.lo if metric.lo else math.inf, metric.hi / metric.value
    kept = near(counted.low, metric.lo), near(counted.high, metric.hi)
    factors = [factor for factor, same in zip((down, up), kept, strict=True) if not same]
    wide_enough = (kept[0] or metric.lo < counted.low) and (kept[1] or metric.hi > counted.high)
    return wide_enough and all(min(down, up) * (1 - NEAR) <= factor <= min(down, up) * (1 + NEAR) for factor in factors)


def within_caution(name: str, counted: Counted, metric: Metric) -> bool:
    """Whether the interval of a settled metric is that of its sections, or up to 30 % wider: the effective sample size,
    which says how much, isn't counted here."""
    if counted.half_of_sections is None or metric.value is None:
        return near(counted.low, metric.lo) and near(counted.high, metric.hi)
    (low, high), (lowest, highest) = (
        skewed(name, metric.value, factor * counted.half_of_sections) for factor in (1.0, CAUTION)
    )
    slack = 1e-6 * abs(metric.value)
    return lowest - slack <= metric.lo <= low + slack and high - slack <= metric.hi <= highest + slack


def decided_by_size(name: str, counted: Counted, metric: Metric) -> bool:
    """Whether the effective sample size decides that a metric is settled or not: by itself, or by its caution."""
    if counted.half_of_sections is None or name not in SIZED:
        return counted.settled and is_small(metric)
    narrow, narrow_with_caution = (
        is_narrow(name, (high - low) / 2, counted.value)
        for low, high in (skewed(name, counted.value, factor * counted.half_of_sections) for factor in (1.0, CAUTION))
    )
    if counted.settled:
        return is_small(metric) or (metric.state.cause is Cause.WIDE and not narrow_with_caution)
    return narrow  # sections alone are


def is_small(metric: Metric) -> bool:
    """Whether a metric is unsettled for its effective sample size, which isn't counted here."""
    return metric.state.cause is Cause.FEW_EFFECTIVE


def parts_agree(name: str, parts: list[float | None], counted: Counted) -> bool:
    wanted = counted.parts
    if len(parts) != len(wanted):
        return False
    if name in GAPS_IN_BINS:
        return all(in_bin(b, a) for a, b in zip(parts, wanted, strict=True))
    return all(near(a, b, PART) for a, b in zip(parts, wanted, strict=True))


def laws(one: Run, metrics: dict[str, Counted], parts: list[Part]) -> Iterator[str]:
    """Say what doesn't add up."""
    ways = [metrics[name].value for name in ("hit_ratio", "delayed_hit_ratio", "miss_ratio")]
    if None not in ways and not near(sum(ways), 1.0):
        yield f"hits, delayed hits and misses add up to {sum(ways)}"
    ends = sum(one.point.metrics[name].value for name in ("completed", "unfinished", "refused", "failed"))
    if ends != sum(len(part.measured) for part in parts):
        yield f"{ends} requests ended in one of four ways, {sum(len(part.measured) for part in parts)} were measured"
    for replication in one.replications if gaps_are_those_of_requests(one) else ():
        done = [request for request in replication.requests if request.status == "completed"]
        tokens = sum(request.output_tokens - 1 for request in done)
        seconds = math.fsum(request.finished_s - request.first_token_s for request in done)
        gaps = [gap.gap_s for gap in replication.gaps]
        if len(gaps) != tokens or not near(math.fsum(gaps), seconds):
            yield f"{len(gaps)} gaps of {math.fsum(gaps)} s, of requests {tokens} of {seconds} s"


def gaps_are_those_of_requests(one: Run) -> bool:
    """Whether every gap between tokens is one of a completed request: none had to begin anew or was broken off."""
    every = [request for replication in one.replications for request in replication.requests]
    ended = all(request.status in ("completed", "refused") for request in every)
    again = any(mark in request.marks for request in every for mark in ("retried", "rerouted"))
    return ended and not again and not one.facts.fixed_engine


def close_rows(name: str, ours: dict[str, Any], theirs: dict[str, Any]) -> Iterator[str]:
    """Say which fields of two rows differ, of those that the second count has."""
    for field, value in theirs.items():
        if not near(ours[field], value):
            yield f"{name} {field}: {ours[field]}, counted {value}"


def differences_beside(one: Run, counted: SecondCount) -> Iterator[str]:
    """Say where what a point holds beside its metrics differs."""
    point, facts, parts, replications = one.point, one.facts, counted.wholes, one.replications
    yield from differences_of_breakdown(one, parts)
    yield from differences_of_late(one, counted)
    capacity = point.capacity.to_json()
    shares = {
        ("loader", "offered_load"): naive_capacity.offered_to_loaders(replications, parts),
        ("compute", "offered_load"): naive_capacity.overload(replications, parts),
        ("slots", "blocked_share"): naive_capacity.slots_blocked_share(replications, parts),
    }
    if not facts.fixed_engine:
        for reason in ("seats", "kv"):
            share = naive_capacity.blocked_share(parts, reason, facts.all_replicas)
            shares[reason, "blocked_share"] = share
    if facts.all_replicas > facts.base_replicas:
        shares["full_models", "utilization"] = naive_capacity.full_models_utilization(parts)
    for (part, name), share in shares.items():
        if not near(capacity[part][name], share):
            yield f"capacity {part} {name}: {capacity[part][name]}, counted {share}"
    yield from close_rows("faults", capacity.get("faults", {}), naive_capacity.broken_shares(parts))
    if facts.all_replicas > 1:
        for ours, theirs in zip(point.replicas, naive_capacity.replica_rows(replications[0], parts[0]), strict=True):
            yield from close_rows(f"replica {ours.name}", ours.row, theirs)
    yield from differences_of_groups(one, parts)
    yield from differences_of_times(one, parts)
    if facts.rollout_begins or facts.faults:
        yield from close_rows(
            "impact", {} if point.impact is None else point.impact.to_json(), naive_capacity.harm_counts(parts)
        )


def differences_of_late(one: Run, counted: SecondCount) -> Iterator[str]:
    """Shares of late requests: only where some were not served, or had waited too long when the run ended."""
    if not one.point.late:
        return
    for term, theirs in counted.late_shares().items():
        ours = one.point.late[f"{term}_s"].share
        pairs = ((ours.value, theirs.value), (ours.lo, theirs.low), (ours.hi, theirs.high))
        if not all(near(a, b) for a, b in pairs):
            yield f"late {term}: {pairs}"


def differences_of_breakdown(one: Run, parts: list[Part]) -> Iterator[str]:
    """Stages add up to mean E2E, none is negative, and what rows alone tell of them agrees."""
    ours, theirs = dict(one.point.breakdown), naive_capacity.breakdown(parts)
    if not theirs:
        return
    if not near(sum(ours.values()), e2e_mean_s(parts)):
        yield f"breakdown {ours} adds up to {sum(ours.values())}, mean E2E is {e2e_mean_s(parts)}"
    if min(ours.values()) < -ZERO:
        yield f"breakdown {ours} has a negative stage"
    outside_s = mean([float(one.world.front_ends_s[request.replica]) for request in completed(parts)])
    if outside_s:
        theirs["front_end_s"] = outside_s
        theirs["queue_and_prefill_s"] -= outside_s
    before_s = theirs.pop("until_admission_s") - outside_s
    waits_s = theirs["loader_queue_s"] + theirs["load_s"]
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
    groups: list[list[int] | None] = []
    if any(request.adapter is None for part in parts for request in part.measured):
        groups = [None, list(range(len(sizes)))]
    if len(population.kind_names) > 1:
        groups += [
            [a for a, kind in enumerate(kinds) if kind == number] for number in range(len(population.kind_names))
        ]
    if len(sizes) >= 10:
        groups += naive_capacity.popularity_bands(parts, len(sizes))
    for ours, adapters in zip(one.point.groups, groups, strict=True):
        yield from close_rows(ours.name, ours.row, naive_capacity.group_row(parts, adapters, sizes))


def differences_of_times(one: Run, parts: list[Part]) -> Iterator[str]:
    """Requests by the step of the rate in which they came."""
    arrivals = one.world.scenario.workload.arrivals
    if not isinstance(arrivals, PiecewiseArrivals):
        assert not one.point.times
        return
    cycle_s, begins_s, rows = sum(step.time for step in arrivals.steps), 0.0, []
    for step in arrivals.steps:
        ends_s = begins_s + step.time
        came = [[each for each in part.measured if begins_s <= each.arrival_s % cycle_s < ends_s] for part in parts]
        row = naive_capacity.requests_row(parts, [each for some in came for each in some])
        if has_targets(one.facts):
            row["slo_attainment"] = slo_attainment(
                [replace(part, measured=m) for part, m in zip(parts, came, strict=True)]
            )
        rows += [row] if row["requests"] else []
        begins_s = ends_s
    for ours, theirs in zip(one.point.times, rows if len(rows) > 1 else [], strict=True):
        yield from close_rows(ours.name, ours.row, theirs)


def events(one: Run, counted: SecondCount) -> Iterator[str]:
    """Say what a scenario met with, of what the count must have seen."""
    facts, parts, metrics = one.facts, counted.wholes, one.point.metrics
    measured = [request for part in parts for request in part.measured]
    yield from {request.status for request in measured}
    yield from {request.outcome for request in measured if request.admitted_s is not None}
    yield from {f"from {request.tier}" for request in measured}
    yield from {mark for request in measured for mark in request.marks}
    yield from {fault.kind for fault in one.world.scenario.faults}
    yield from {rollout.strategy for rollout in one.world.scenario.rollouts}
    found = {
        "duration": facts.duration_s is not None,
        "warm-up": facts.warmup > 0,
        "preemptions": any(request.preemptions for request in measured),
        "late": any(is_late(request, facts) for request in measured),
        "late without an answer": any(r.status == "unfinished" and is_late(r, facts) for r in measured),
        "good in the warm-up": any(
            request.index not in part.measured_indices and not is_late(request, facts)
            for part in parts
            for request in part.ended
        )
        and has_targets(facts),
        "gaps add up": gaps_are_those_of_requests(one),
        "several targets": len(facts.targets) > 1,
        "several replicas": facts.base_replicas > 1,
        "several loaders": facts.loaders > 1 and metrics["loader_utilization"].value != 0,
        "pauses of loaders": any(replication.pauses for replication in one.replications),
        "p99 of requests": metrics["e2e_p99_s"].value is not None,
        "p99 during a rollout": metrics["rollout_e2e_p99_s"].value is not None,
        "five replications": len(parts) >= 5,
        "saw both": bool(metrics["sessions_saw_both"].value),
        "went back": bool(metrics["sessions_went_back"].value),
        "steps across borders": any(
            step.start_s < part.end_s < step.end_s for part in counted.sections for step in part.steps
        ),
        "gaps in the drain": any(gap.step_start_s > part.end_s for part in parts for gap in part.gaps),
        "whole models load": any(load.whole_model for part in parts for load in part.loads),
        "host memory fills": one.world.scenario.cache.host is not None
        and one.world.scenario.cache.host.fill == "arrival",
        "loads in steps": one.world.scenario.storage.mode == "blocking",
        "full loaders": naive_capacity.loaders_are_full(one.replications, parts),
        "shares of late requests": bool(one.point.late),
        "times": bool(one.point.times),
        "overloaded": one.point.capacity.compute.offered_load is not None,
    }
    yield from (name for name, there in found.items() if there)


@pytest.mark.interpreted
@pytest.mark.slow
def test_every_metric_agrees_with_the_second_count() -> None:
    seen, wrong = Counter[str](), []
    for family in FAMILIES:
        for number in range(EACH):
            scenario = metric_scenario(family, number)
            one = run(scenario)
            counted = SecondCount(one.replications, one.facts)
            metrics = counted.metrics()
            found = [
                *differences(metrics, one.point.metrics),
                *differences_beside(one, counted),
                *laws(one, metrics, counted.wholes),
            ]
            if found:
                yaml = scenario.model_dump_json(by_alias=True, exclude_unset=True)
                wrong.append("\n  ".join([f"metric_scenario({family!r}, {number})", *found, yaml]))
            assert len(wrong) < 3, "\n".join(wrong)
            seen.update(set(events(one, counted)))
    assert not wrong, "\n".join(wrong)
    at_least = LEAST if TRIED == 1 else dict.fromkeys(LEAST, 1)  # in a quarter of them, what is rare comes by chance
    rare = {name: (seen[name], least) for name, least in at_least.items() if seen[name] < least}
    assert not rare, f"too few scenarios show what they are for (seen, least): {rare}"


# Tenants, from the single requests of each


FOR_TENANTS = 3
COUNTS = ("completed", "unfinished", "refused", "failed")
WITHOUT = ("goodput_rps", "slo_attainment")
"""They need an SLO, which these tenants don't have."""


def with_tenants(scenario: Scenario) -> Scenario | None:
    """Return a scenario with two tenants, and one of the base model; None where its traffic can't be divided."""
    count, workload = scenario.adapters.count, scenario.workload
    if count is None or count < 2 or workload.drift or workload.churn or scenario.adapters.base_alone:
        return None
    data = scenario.model_dump(mode="json", by_alias=True, exclude_unset=True)
    first = max(1, count // 3)
    tenants: list[dict[str, Any]] = [{"name": "a", "adapters": first}, {"name": "b", "adapters": count - first}]
    if scenario.adapters.base_share:
        tenants.append({"name": "base", "base_model": True})
    try:
        found = Scenario.model_validate({**data, "tenants": tenants})
        build_world(found)
    except (LoraplanError, ValueError):  # such as a trace that names its adapters
        return None
    return found


def of_tenant(part: Part, tenant: int, tenant_of: list[int]) -> Part:
    """Return what is of the requests of one tenant."""

    def own(adapter: int | None) -> bool:
        return tenant_of[-1 if adapter is None else adapter] == tenant

    measured = [request for request in part.measured if own(request.adapter)]
    indices = {request.index for request in measured}
    return replace(
        part,
        measured=measured,
        measured_indices=indices,
        ended=[request for request in part.ended if own(request.adapter)],
    )


def counted(name: str, parts: list[Part]) -> float | None:
    if name in COUNTS:
        return naive_metrics.count_status(parts, name)
    found: float | None = getattr(naive_metrics, name)(parts)
    return found


@pytest.mark.interpreted
@pytest.mark.parametrize("family", FAMILIES)
def test_every_metric_of_a_tenant_is_that_of_its_requests(family: str) -> None:
    seen = Counter[str]()
    for number in range(FOR_TENANTS):
        scenario = with_tenants(metric_scenario(family, number))
        if scenario is None:
            continue
        one = run(scenario)
        tenant_of = one.world.traffic.tenant_of
        wholes = [whole(replication, one.facts) for replication in one.replications]
        for place, tenant in enumerate(one.point.tenants):
            parts = [of_tenant(part, place, tenant_of.tolist()) for part in wholes]
            for name, metric in tenant.metrics.items():
                if name in WITHOUT or metric.value is None:
                    continue
                expected = counted(name, parts)
                assert expected is not None, f"{family}/{number}, {tenant.name}: {name}"
                assert metric.value == pytest.approx(expected, rel=1e-9, abs=1e-12), f"{family}/{number}: {name}"
                seen[name] += 1
    assert set(seen) <= set(measured_of("tenant"))
    assert {*COUNTS, "throughput_rps", "e2e_mean_s"} <= set(seen), "there are tenants in every family"
