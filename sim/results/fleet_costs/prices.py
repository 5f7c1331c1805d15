"""Puts a price on a point: its costs follow from its usage, so another price needs no simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sim.results.catalogue import ONLY_WITH_PRICE, UNITS
from sim.results.fleet_costs.tenant_money import with_money
from sim.results.point import Metric, Point

HOURS_PER_MONTH = 730.0
"""A twelfth of a year of 365 days."""
GROUP_COST = "usd_per_month"
"""The cost of a group, or of a pool, in its row."""


def priced(
    point: Point, price: float | None, pools: Sequence[float] = (), tenants: Sequence[Mapping[str, float]] = ()
) -> Point:
    """Return a point with the costs that follow from a price, or without any, and with what tenants pay.

    :param price: of a GPU, in US dollars per hour, in a fleet of pools the mean; None: no costs are shown.
    :param pools: of a GPU of each pool; () without pools or prices.
    :param tenants: what each tenant pays, by what it is for; () where none pays.
    """
    usage, rows = point.usage, _priced_pools(point.pools, pools)
    pay = [dict(each) for each in tenants] or [{}] * len(point.tenants)
    known = [tenant.price for tenant in point.tenants]
    if usage is None or (usage.price == price and rows == point.pools and known == pay):
        return point
    metrics = {name: metric for name, metric in point.metrics.items() if name not in ONLY_WITH_PRICE}
    groups = [{key: value for key, value in row.items() if key != GROUP_COST} for row in point.groups]
    if price is not None:
        metrics |= {name: metric.mapped(lambda cost: cost * price) for name, metric in usage.metrics.items()}
        metrics["idle_usd_per_month"] = _idle_of_pools(metrics["idle_usd_per_month"], point.pools, pools)
        month = metrics["usd_per_month"].value or 0.0
        if len(groups) == len(usage.group_tokens):
            shares = zip(groups, usage.group_tokens, strict=True)
            groups = [{**row, GROUP_COST: share * month} for row, share in shares]
    ordered = {name: metrics[name] for name in UNITS if name in metrics}
    return replace(
        point,
        metrics=ordered,
        groups=groups,
        usage=replace(usage, price=price),
        pools=rows,
        tenants=with_money(point.tenants, pay, metrics.get("usd_per_month")),
    )


def _priced_pools(rows: list[dict[str, Any]], prices: Sequence[float]) -> list[dict[str, Any]]:
    """Return the rows of pools with what the GPUs of each cost."""
    plain = [{key: value for key, value in row.items() if key != GROUP_COST} for row in rows]
    if not prices:
        return plain
    return [
        {**row, GROUP_COST: row["gpus"] * price * HOURS_PER_MONTH} for row, price in zip(plain, prices, strict=True)
    ]


def _idle_of_pools(mean: Metric, rows: Sequence[Mapping[str, Any]], prices: Sequence[float]) -> Metric:
    """Return what idle GPUs cost with each at the price of its pool.

    Its interval is as wide, relative to its value, as at the mean price.

    :param mean: with all GPUs at the mean price.
    """
    busy = [row["gpu_utilization"] for row in rows]
    if len(set(prices)) < 2 or not mean.value or None in busy:
        return mean
    parts = zip(rows, busy, prices, strict=True)
    own = sum(max(0.0, 1 - share) * row["gpus"] * price for row, share, price in parts) * HOURS_PER_MONTH
    factor = own / mean.value
    return mean.mapped(lambda cost: cost * factor)


def is_priced(point: Point) -> bool:
    """Return whether a point has costs."""
    return point.usage is not None and point.usage.price is not None
