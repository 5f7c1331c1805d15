"""What tenants pay and what they cost: sales are measured once, and any price is put on them afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sim.results.metric_state import Cause, State
from sim.results.point import Metric, TenantResult


def with_money(
    tenants: Sequence[TenantResult], prices: Sequence[Mapping[str, float]], month: Metric | None
) -> list[TenantResult]:
    """Return tenants with what they pay and cost.

    :param prices: what each pays, by what it is for; {}: nothing is known.
    :param month: what the fleet costs in a month; None without a price of GPUs.
    """
    return [
        replace(tenant, price=dict(price), money=_money(tenant, price, month))
        for tenant, price in zip(tenants, prices, strict=True)
    ]


def _money(tenant: TenantResult, price: Mapping[str, float], month: Metric | None) -> dict[str, Metric]:
    money: dict[str, Metric] = {}
    revenue = _revenue(tenant, price) if price else None
    if revenue is not None:
        money["revenue_usd_per_month"] = revenue
    if month is not None and month.value is not None and tenant.cost_share is not None:
        money["cost_share"] = tenant.cost_share
        money["usd_per_month"] = cost = _part_of(tenant.cost_share, month)
        if revenue is not None:
            money["margin_usd_per_month"] = _sum([(revenue, 1.0), (cost, -1.0)])
    return money


def _part_of(share: Metric, month: Metric) -> Metric:
    """Return a share of a cost. Both ends of its interval are those of share and cost together."""

    def product(a: float | None, b: float | None) -> float | None:
        return None if a is None or b is None else a * b

    parts = [product(a, b) for a, b in zip(share.parts, month.parts, strict=False)]
    state = share.state if month.settled or not share.settled else month.state
    value, lo, hi = (product(getattr(share, end), getattr(month, end)) for end in ("value", "lo", "hi"))
    return Metric(value, lo, hi, "USD", state, parts=parts)


def _revenue(tenant: TenantResult, price: Mapping[str, float]) -> Metric:
    """Return what a tenant pays in a month."""
    parts = [(tenant.sold[name], each) for name, each in price.items() if each and name in tenant.sold]
    if not parts and any(price.values()):
        return Metric(None, unit="USD", state=State(Cause.NO_TOKENS))
    return _sum(parts)


def _sum(parts: Sequence[tuple[Metric, float]]) -> Metric:
    """Return a sum of metrics times factors, in US dollars.

    The ends of intervals add up, as if all errors were one: the interval is too wide rather than too narrow.
    """
    if any(metric.value is None for metric, _ in parts):
        return Metric(None, unit="USD", state=next(metric.state for metric, _ in parts if metric.value is None))

    def total(lower: str, upper: str) -> float | None:
        ends = [(getattr(metric, lower if factor >= 0 else upper), factor) for metric, factor in parts]
        return None if any(end is None for end, _ in ends) else sum(end * factor for end, factor in ends)

    rows = zip(*(metric.parts for metric, _ in parts), strict=False)
    factors = [factor for _, factor in parts]
    kept = [None if None in row else sum(a * b for a, b in zip(row, factors, strict=True)) for row in rows]
    doubtful = next((metric.state for metric, _ in parts if not metric.settled), None)
    state = doubtful or (parts[0][0].state if parts else State())
    return Metric(total("value", "value"), total("lo", "hi"), total("hi", "lo"), "USD", state, parts=kept)
