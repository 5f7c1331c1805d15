"""Terms of the fleet's SLO and of its tenants', in one mapping.

A term of a tenant is called ``tenants.NAME.METRIC``, one of the fleet by its metric alone. What judges a term finds out
here whose requests it is about, so that plans and headroom go by both alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sim.results.point import Metric, Point

if TYPE_CHECKING:
    from sim.spec.scenario import Scenario


_TENANTS = "tenants."


def tenant_term(tenant: str, metric: str) -> str:
    """Return what a term of a tenant is called."""
    return f"{_TENANTS}{tenant}.{metric}"


def split_term(name: str) -> tuple[str, str]:
    """Return the tenant and the metric of a term; of the fleet's, an empty name."""
    if not name.startswith(_TENANTS):
        return "", name
    tenant, _, metric = name.removeprefix(_TENANTS).rpartition(".")
    return tenant, metric


def quantile_of(name: str) -> float | None:
    """Return the quantile of a metric, such as 0.95 of ``ttft_p95_s``; None of a mean or a ratio."""
    _, _, percent = name.removesuffix("_s").rpartition("_p")
    return int(percent) / 100 if percent.isdigit() else None


def is_tail(name: str) -> bool:
    """Return whether a term is about a quantile above the median, which few slow requests decide."""
    return (quantile_of(name) or 0.0) > 0.5


def is_gap(name: str) -> bool:
    """Return whether a term is about the time between tokens."""
    return split_term(name)[1].startswith(("itl", "tpot"))


def all_terms(scenario: Scenario) -> dict[str, float]:
    """Return the targets of a scenario, those of its tenants included."""
    own = scenario.slo.terms()
    return own | {
        tenant_term(tenant.name, name): target
        for tenant in scenario.tenants
        for name, target in tenant.slo.terms().items()
    }


def with_tenants(slo_terms: Mapping[str, float], point: Point) -> dict[str, float]:
    """Return the targets of the fleet and of the tenants that a point has."""
    return {
        **slo_terms,
        **{tenant_term(each.name, name): target for each in point.tenants for name, target in each.slo.items()},
    }


def judged(point: Point, name: str) -> tuple[Point, str]:
    """Return the point that a term is about, and its metric: of a tenant, its requests alone."""
    tenant, metric = split_term(name)
    if not tenant:
        return point, name
    found = next((each for each in point.tenants if each.name == tenant), None)
    return (Point(point.set, {}) if found is None else point.of_tenant(found)), metric


def metric_of(point: Point, name: str) -> Metric | None:
    """Return the metric that a term is about; None where a point lacks it."""
    point, metric = judged(point, name)
    return point.metrics.get(metric)


def value_of(point: Point, name: str) -> float | None:
    """Return the value of what a term is about; None where a point lacks it."""
    found = metric_of(point, name)
    return None if found is None else found.value
