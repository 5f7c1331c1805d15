"""Puts a price on a point: its costs follow from its usage, so another price needs no simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sim.results.catalogue import ONLY_WITH_PRICE, UNITS
from sim.results.metric_state import Cause, State
from sim.results.point import Metric, Point, SliceResult, TenantResult

# What tenants pay and what they cost: sales are measured once, and any price is put on them afterwards.


def _money(tenant: TenantResult, price: Mapping[str, float], month: Metric | None) -> dict[str, Metric]:
    """Return what a tenant pays and costs.

    :param price: what it pays, by what it is for; {}: nothing is known.
    :param month: what the fleet costs in a month; None without a price of GPUs.
    """
    money: dict[str, Metric] = {}
    if price:
        sold = [(tenant.sold[name], each) for name, each in price.items() if each and name in tenant.sold]
        unknown = not sold and any(price.values())
        revenue = Metric(None, unit="USD", state=State(Cause.NO_TOKENS)) if unknown else _sum(sold)
        money["revenue_usd_per_month"] = revenue
    if month is not None and month.value is not None and tenant.cost_share is not None:
        money["cost_share"] = tenant.cost_share
        money["usd_per_month"] = cost = _part_of(tenant.cost_share, month)
        if price:
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


HOURS_PER_MONTH = 730.0
"""A twelfth of a year of 365 days."""
SLICE_COST = "usd_per_month"
"""The cost of a group, or of a pool, among its facts."""


def priced(
    point: Point, price: float | None, pools: Sequence[float] = (), tenants: Sequence[Mapping[str, float]] = ()
) -> Point:
    """Return a point with the costs that follow from a price, or without any, and with what tenants pay.

    :param price: of a GPU, in US dollars per hour, in a fleet of pools the mean; None: no costs are shown.
    :param pools: of a GPU of each pool; () without pools or prices.
    :param tenants: what each tenant pays, by what it is for; () where none pays.
    """
    costs: list[float | None] = [None] * len(point.pools)
    if pools:
        costs = [pool.facts["gpus"] * price * HOURS_PER_MONTH for pool, price in zip(point.pools, pools, strict=True)]
    usage, costly = point.usage, [_with_cost(pool, cost) for pool, cost in zip(point.pools, costs, strict=True)]
    pay = [dict(each) for each in tenants] or [{}] * len(point.tenants)
    known = [tenant.price for tenant in point.tenants]
    if usage is None or (usage.price == price and costly == point.pools and known == pay):
        return point
    metrics = {name: metric for name, metric in point.metrics.items() if name not in ONLY_WITH_PRICE}
    groups = [_with_cost(group, None) for group in point.groups]
    if price is not None:
        metrics |= {name: metric.mapped(lambda cost: cost * price) for name, metric in usage.metrics.items()}
        metrics["idle_usd_per_month"] = _idle_of_pools(metrics["idle_usd_per_month"], point.pools, pools)
        month = metrics["usd_per_month"].value or 0.0
        groups = [_with_cost(group, group.facts["token_share"] * month) for group in groups]
    ordered = {name: metrics[name] for name in UNITS if name in metrics}
    month_usd, paying = metrics.get("usd_per_month"), zip(point.tenants, pay, strict=True)
    return replace(
        point,
        metrics=ordered,
        groups=groups,
        usage=replace(usage, price=price),
        pools=costly,
        tenants=[replace(one, price=each, money=_money(one, each, month_usd)) for one, each in paying],
    )


def _with_cost(one: SliceResult, cost: float | None) -> SliceResult:
    facts = {name: value for name, value in one.facts.items() if name != SLICE_COST}
    return replace(one, facts=facts if cost is None else {**facts, SLICE_COST: cost})


def _idle_of_pools(mean: Metric, pools: Sequence[SliceResult], prices: Sequence[float]) -> Metric:
    """Return what idle GPUs cost with each at the price of its pool.

    Its interval is as wide, relative to its value, as at the mean price.

    :param mean: with all GPUs at the mean price.
    """
    busy = [pool.facts["gpu_utilization"] for pool in pools]
    if len(set(prices)) < 2 or not mean.value or None in busy:
        return mean
    parts = zip(pools, busy, prices, strict=True)
    own = sum(max(0.0, 1 - share) * pool.facts["gpus"] * price for pool, share, price in parts) * HOURS_PER_MONTH
    factor = own / mean.value
    return mean.mapped(lambda cost: cost * factor)


def is_priced(point: Point) -> bool:
    """Return whether a point has costs."""
    return point.usage is not None and point.usage.price is not None
