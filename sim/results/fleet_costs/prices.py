"""Puts a price on a point: its costs follow from its usage, so another price needs no simulation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sim.results.point import ONLY_WITH_PRICE, UNITS, Metric, Point

HOURS_PER_MONTH = 730.0
"""A twelfth of a year of 365 days."""
GROUP_COST = "usd_per_month"
"""The cost of a group, in its row."""


def priced(point: Point, price: float | None) -> Point:
    """Return a point with the costs that follow from a price, or without any.

    A point of an older version, which has no usage, stays as it is.

    :param price: of a GPU, in US dollars per hour; None: no costs are shown.
    """
    usage = point.usage
    if usage is None or usage.price == price:
        return point
    metrics = {name: metric for name, metric in point.metrics.items() if name not in ONLY_WITH_PRICE}
    groups = [{key: value for key, value in row.items() if key != GROUP_COST} for row in point.groups]
    if price is not None:
        metrics |= {name: _times(metric, price) for name, metric in usage.metrics.items()}
        month = metrics["usd_per_month"].value or 0.0
        if len(groups) == len(usage.group_tokens):
            shares = zip(groups, usage.group_tokens, strict=True)
            groups = [{**row, GROUP_COST: share * month} for row, share in shares]
    ordered = {name: metrics[name] for name in UNITS if name in metrics}
    return replace(point, metrics=ordered, groups=groups, usage=replace(usage, price=price))


def is_priced(point: Point) -> bool:
    """Return whether a point has costs."""
    return point.usage is not None and point.usage.price is not None


def _times(metric: Metric, price: float) -> Metric:
    ends: dict[str, Any] = {
        name: None if (value := getattr(metric, name)) is None else value * price
        for name in ("value", "lo", "hi", "calibration_lo", "calibration_hi")
    }
    return replace(metric, **ends, parts=[None if part is None else part * price for part in metric.parts])
