"""Every metric, counted a second time from single requests, loads, steps and gaps (``naive_metrics``)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import pytest
from counted_runs import Run, run
from metric_scenarios import FAMILIES, metric_scenario
from naive_metrics import Counted, SecondCount

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


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_metric_agrees_with_the_second_count(family: str) -> None:
    seen = Counter[str]()
    for number in range(EACH):
        scenario = metric_scenario(family, number)
        one = run(scenario)
        found = list(differences(SecondCount(one.replications, one.facts).metrics(), one.point.metrics))
        assert not found, "\n".join([f"{family}/{number}", *found, scenario.model_dump_json(exclude_unset=True)])
