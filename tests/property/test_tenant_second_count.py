"""Metrics of tenants, counted a second time from the single requests of each (``naive_metrics``)."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import naive_metrics
import pytest
from counted_runs import run
from metric_scenarios import FAMILIES, metric_scenario
from naive_parts import Part, whole

from sim.errors import LoraplanError
from sim.results.catalogue import measured_of
from sim.spec.scenario import Scenario
from sim.world.build import build_world

EACH = 3
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
    for number in range(EACH):
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
