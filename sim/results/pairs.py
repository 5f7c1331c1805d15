"""Differences of two points with intervals: is one design better than another? (docs/statistics.md)

Designs that met the same traffic are compared part by part: a difficult period for one was difficult for the other,
so most of the chance cancels. numpy is imported where it computes: words about differences need none.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sim.results.catalogue import CATALOGUE
from sim.results.model import Difference
from sim.results.point import Metric, Point
from sim.results.slo_terms import metric_of, split_term
from sim.results.verdict import unserved

if TYPE_CHECKING:
    from sim.arrays import Floats

BETTER, WORSE, MORE, LESS = "clearly better", "clearly worse", "clearly more", "clearly less"
UNCLEAR, NOT_COMPARABLE = "no clear difference", "not comparable"
WORDS = (BETTER, WORSE, MORE, LESS, UNCLEAR, NOT_COMPARABLE)

_ALIKE = 1e-6
"""Values that differ by less than this share are equal: parts are kept with seven digits."""


def same_requests(one: Point, other: Point) -> bool:
    """Return whether two points met exactly the same requests at the same times."""
    return _same_id(one, other, "requests")


def same_draws(one: Point, other: Point) -> bool:
    """Return whether as many requests were drawn for both from the same random numbers."""
    return same_requests(one, other) or _same_id(one, other, "draws")


def _same_id(one: Point, other: Point, which: str) -> bool:
    return one.traffic_ids.get(which, "") == other.traffic_ids.get(which) != ""


def difference_of(one: Point, other: Point, name: str) -> Difference | None:
    """Return what changes in a metric, or a term of a tenant.

    None where neither point has it, as lost requests without a crash.

    The change is that of the whole samples. Its 95 % half-width comes from the differences of the parts around it
    (``half_width``), where both points have the same parts; else from the two intervals as if independent. An
    unsettled value doubles it.
    """
    before, after, (_, metric) = metric_of(one, name), metric_of(other, name), split_term(name)
    if before is None or after is None or not (before.applies or after.applies):
        return None
    unit = after.unit if after.value is not None else before.unit
    if before.value is None or after.value is None:
        note = (before if before.value is None else after).note
        return Difference(name, unit, before.value, after.value, word=NOT_COMPARABLE, note=note)
    if metric in ("refused", "failed") and unserved(one)[1] != unserved(other)[1]:
        # Counts of runs of different length say nothing about each other.
        note = "the runs measure different numbers of requests"
        return Difference(name, unit, before.value, after.value, word=NOT_COMPARABLE, note=note)
    change = after.value - before.value
    if abs(change) <= _ALIKE * max(abs(before.value), abs(after.value)):
        change = 0.0
    total = CATALOGUE[metric].is_total
    half = None
    if same_draws(one, other) and len(before.parts) == len(after.parts):
        half = _half_around(change, _array(after.parts) - _array(before.parts), total)
    paired = half is not None
    if half is None:
        known = [each for each in (_own_half(before, total), _own_half(after, total)) if each is not None]
        half = math.hypot(*known) if len(known) == 2 else None
    notes = [] if half is not None else ["too few parts for an interval"]
    if half is not None and half > 0 and not (before.settled and after.settled):
        half *= 2
        notes.append(f"unsettled, interval doubled: {(after if not after.settled else before).note}")
    low, high = (None, None) if half is None else (change - half, change + half)
    relative = change / abs(before.value) if before.value else None
    word = _word(metric, low, high)
    return Difference(
        name, unit, before.value, after.value, change, low, high, relative, word, paired, "; ".join(notes)
    )


def _word(name: str, low: float | None, high: float | None) -> str:
    if low is None or high is None or low <= 0 <= high:
        return UNCLEAR
    direction = CATALOGUE[name].better
    if direction == "neither":
        return MORE if low > 0 else LESS
    return BETTER if (low > 0) == (direction == "higher") else WORSE


def _own_half(metric: Metric, total: bool) -> float | None:
    """Return the half-width of one value: of its printed interval, which ends at 0 and at 1, or from its parts."""
    assert metric.value is not None, "there is nothing to put an interval around"
    if metric.lo is not None and metric.hi is not None:
        return max(metric.value - metric.lo, metric.hi - metric.value)
    return _half_around(metric.value, _array(metric.parts), total)


def _half_around(value: float, parts: Floats, total: bool) -> float | None:
    """Return the half-width around a value, which is the sum of its parts if it is a total."""
    from sim.results.statistics import half_width

    count = len(parts)
    half = half_width(value / count if total and count else value, parts)
    return half * count if total and half is not None else half


def _array(parts: list[float | None]) -> Floats:
    import numpy as np

    return np.array([math.nan if part is None else part for part in parts], dtype=np.float64)
