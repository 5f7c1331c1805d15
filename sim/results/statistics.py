"""Estimates with intervals that cover the true value as often as they say (docs/statistics.md).

Requests of one run depend on each other: a p99 treated as if they didn't has an interval far too narrow. Here a
run is cut into sections (consecutive parts), the statistic is taken in each, and Student's t over the sections
gives the half-width around the whole-sample value. From five replications on, the spread between
replications is taken as well, and the wider of the two intervals is printed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sim.results.intervals.student_t import student
from sim.results.intervals.wilson import NORMAL, wilson
from sim.results.metric_state import SETTLED, Cause, State
from sim.results.point import Metric

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MIN_SECTIONS = 20
MIN_FOR_P99 = 1000
MIN_FOR_REST = 20
MIN_SECTION_P99 = 100
"""Measured requests a section needs, or its own p99 is little more than its maximum."""
WIDE = 0.10
"""A half-width above this share of the value leaves a metric unsettled."""
ENOUGH_REPLICATIONS = 5
"""Replications from which on the spread between them counts too."""
CYCLES = 1000
CYCLES_P99 = 3500
"""Cycles that a mean or median, and a p99, need before a half-width is believed (docs/statistics.md).

Of exponential times, half-widths are 5 to 9 % of the value there; with far fewer cycles one is below ``WIDE`` only by
chance.
"""
NARROW = 0.04
"""Half-widths below this share of the value need fewer cycles, by the square: such values vary little."""
INDEPENDENT = 1.125
"""Up to this many times as many cycles in independent values (a little more by chance), no cycles are required."""
STRIDES = {1: (1.0, 1.5), 16: (0.5, 2.25)}
"""Cycles are counted of requests and of means of 16, because each hit that passes a queue of misses counts as a cycle.

The first value is the share of the cycles that is needed: such means cycle half as often in a busy queue. The second is
how many times as many cycles independent values would have where all of that share is needed: such means depend on each
other a little wherever requests do."""
MIN_STRIDES = 500
"""Values below which their cycles mean nothing: independent values have about 60."""
_DIGITS = 7
"""Significant digits of parts."""
NARROW_SHARE = 0.005
"""A share's half-width up to this much is settled, however small the share."""


def sections_per_replication(replications: int) -> int:
    """Return into how many sections each replication is cut, so that there are at least 20 in all."""
    return max(1, math.ceil(MIN_SECTIONS / replications))


def half_width(center: float, parts: Floats) -> float | None:
    """Return the 95 % half-width around ``center`` from the same statistic in each part; None below two parts."""
    parts = parts[np.isfinite(parts)]
    count = len(parts)
    if count < 2:
        return None
    spread = float(np.sum((parts - center) ** 2)) / (count * (count - 1))
    return student(count - 1) * math.sqrt(spread)


def kept(parts: Floats) -> list[float | None]:
    """Return parts as a point keeps them: with seven digits, which is far below their spread, and None for nan."""
    return [float(f"{part:.{_DIGITS}g}") if math.isfinite(part) else None for part in parts.tolist()]


def estimate(
    value: float, by_section: Floats, by_replication: Floats, unit: str, *, highest: float = math.inf
) -> Metric:
    """Return ``value`` with its interval.

    :param by_section: the statistic in each section of all replications.
    :param by_replication: the statistic in each replication.
    :param highest: 1 for a share of something; the interval reaches neither above it nor below 0.
    """
    if not math.isfinite(value):
        return Metric(None, unit=unit, state=State(Cause.NO_REQUESTS))
    half = _wider_half(value, by_section, by_replication)
    if half is None:
        return Metric(value, unit=unit, state=State(Cause.FEW_SECTIONS))
    parts = kept(by_replication if len(by_replication) >= ENOUGH_REPLICATIONS else by_section)
    state = _state_of(value, half, is_share=highest == 1)
    return Metric(value, max(0.0, value - half), min(highest, value + half), unit, state, parts=parts)


def _wider_half(value: float, by_section: Floats, by_replication: Floats) -> float | None:
    """Return the wider half-width of sections and, where there are enough, of replications."""
    half = half_width(value, by_section)
    if half is not None and len(by_replication) >= ENOUGH_REPLICATIONS:
        half = max(half, half_width(value, by_replication) or 0.0)
    return half


def _state_of(value: float, half: float, *, is_share: bool) -> State:
    """Return whether a half-width is narrow enough for a settled value."""
    wide = half > WIDE * abs(value) and not (is_share and half <= NARROW_SHARE)
    return State(Cause.WIDE) if wide else SETTLED


class Sampled:
    """Values of measured requests, each in a section: means, ratios and quantiles of them.

    :param values: (n,) values; ``section``: (n,) section of each, replications after one another.
    :param sections: sections in each replication; ``replications``: how many there are.
    :param least_for_p99: values below which there is no p99.
    """

    def __init__(
        self,
        values: Floats,
        section: NDArray[np.integer],
        sections: int,
        replications: int,
        least_for_p99: int = MIN_FOR_P99,
    ) -> None:
        if len(section) and np.any(section[1:] < section[:-1]):
            order = np.argsort(section, kind="stable")
            values, section = values[order], section[order]
        self._values = values
        self._edges = np.searchsorted(section, np.arange(sections * replications + 1))
        self._sections = sections
        self._replications = replications
        self._least_for_p99 = least_for_p99
        self._cycles: list[QueueCycles] | None = None

    def __len__(self) -> int:
        return len(self._values)

    def mean(self, unit: str) -> Metric:
        """Return the mean, with its interval."""
        return self._estimate(lambda part: float(np.mean(part)), unit, MIN_FOR_REST, 1)

    def quantile(self, q: float, unit: str) -> Metric:
        """Return a quantile, with its interval; none where too few requests were measured."""
        tail = q >= 0.99
        return self._estimate(
            lambda part: float(np.quantile(part, q)),
            unit,
            self._least_for_p99 if tail else MIN_FOR_REST,
            MIN_SECTION_P99 if tail else 1,
            tail=tail,
        )

    def quantiles(self, q: list[float]) -> list[float]:
        """Return quantiles over everything, for drawing."""
        return [float(x) for x in np.quantile(self._values, q)] if len(self) else []

    @property
    def cycles(self) -> list[QueueCycles]:
        """The cycles of requests, and of means of 16 (``STRIDES``)."""
        if self._cycles is None:
            means = (self._values[: len(self) // n * n].reshape(-1, n).mean(axis=1) for n in STRIDES if len(self) >= n)
            self._cycles = [cycles_of(each) for each in means]
        return self._cycles

    def _estimate(
        self, statistic: Callable[[Floats], float], unit: str, least: int, least_each: int, *, tail: bool = False
    ) -> Metric:
        if len(self) < least:
            return Metric(None, unit=unit, state=State(Cause.FEW_REQUESTS, len(self), least))
        parts = [self._values[a:b] for a, b in zip(self._edges[:-1], self._edges[1:], strict=True)]
        steps = range(0, len(self._edges) - 1, self._sections)
        whole = [self._values[self._edges[i] : self._edges[i + self._sections]] for i in steps]
        metric = estimate(statistic(self._values), _each(statistic, parts), _each(statistic, whole), unit)
        if not metric.settled:
            return metric
        if min(map(len, parts)) < least_each:
            return replace(metric, state=State(Cause.SMALL_SECTIONS, needed=least_each))
        return replace(metric, state=self._state_by_cycles(metric, tail=tail))

    def _state_by_cycles(self, metric: Metric, *, tail: bool) -> State:
        """Return the state of a settled metric, unsettled if requests depend on each other and the run has few cycles.

        Where half-widths are usually wide, those that pass for narrow come from runs without their share of long
        queues, and their values are too low as well. The half-width doesn't show that, but the number of cycles does,
        because it varies little.

        :param tail: whether it is a p99.
        """
        assert metric.value is not None
        assert metric.hi is not None
        half = (metric.hi - metric.value) / metric.value if metric.value else 0.0
        needed = (CYCLES_P99 if tail else CYCLES) * min(1.0, half / NARROW) ** 2
        for found, (share, dependent) in zip(self.cycles, STRIDES.values(), strict=False):
            depend = (found.independent / max(1, found.count) - INDEPENDENT) / (dependent - INDEPENDENT)
            least = round(share * needed * min(1.0, depend))
            if found.values >= MIN_STRIDES and found.count < least:
                cause = Cause.FEW_CYCLES if found is self.cycles[0] else Cause.FEW_CYCLES_OF_MEANS
                return State(cause, found.count, least)
        return metric.state


@dataclass(frozen=True, slots=True)
class QueueCycles:
    """How often values go from their lowest quarter to their highest: a queue has emptied and filled again.

    :ivar independent: how often they would if they didn't depend on each other; one in eight, unless many are equal:
        half of the waits may be 0.
    :ivar values: how many there are.
    """

    count: int
    independent: float
    values: int


def needs_longer_run(metric: Metric) -> bool:
    """Return whether a metric is unsettled because the run has too few cycles; a longer run has more."""
    return metric.state.cause in (Cause.FEW_CYCLES, Cause.FEW_CYCLES_OF_MEANS)


def cycles_of(values: Floats) -> QueueCycles:
    """Count the cycles of values in their order."""
    low, high = np.quantile(values, [0.25, 0.75])
    # A quarter may be equal to the highest of all; where all are equal, all are low.
    side = (values >= high if high > low else values > high).astype(np.int8) - (values <= low)
    side = side[side != 0]
    highs = int(np.count_nonzero(side > 0))
    independent = highs * (len(side) - highs) / len(side)
    return QueueCycles(int(np.count_nonzero((side[1:] > 0) & (side[:-1] < 0))), independent, len(values))


def _each(statistic: Callable[[Floats], float], parts: list[Floats]) -> Floats:
    return np.array([statistic(part) if len(part) else math.nan for part in parts])


def ratio(over: Floats, under: Floats, sections: int, unit: str, *, highest: float = math.inf) -> Metric:
    """Return the ratio of two sums over sections (such as completed requests and seconds), with its interval.

    :param over, under: (replications x sections,) sums.
    :param highest: 1 where ``over`` is a part of ``under``.
    """

    total = float(under.sum())
    if total <= 0:
        return Metric(None, unit=unit, state=State(Cause.NO_REQUESTS))
    return estimate(float(over.sum()) / total, *_ratios(over, under, sections), unit, highest=highest)


def _ratios(over: Floats, under: Floats, sections: int) -> tuple[Floats, Floats]:
    """Return the ratio of two sums in each section and in each replication; nan where there is nothing."""

    def divide(a: Floats, b: Floats) -> Floats:
        return np.asarray(np.divide(a, b, out=np.full(len(a), math.nan), where=b > 0))

    whole = divide(over.reshape(-1, sections).sum(axis=1), under.reshape(-1, sections).sum(axis=1))
    return divide(over, under), whole


def share_of_requests(over: Floats, under: Floats, tail: Floats, sections: int) -> Metric:
    """Return a share of requests with an interval that holds near 0 and 1 too.

    Sections show no spread where (nearly) every request is alike. So the interval is the wider of theirs and of
    Wilson's, of as many independent requests as say no more of the tail than these do: requests that are late come
    together, and are late together.

    :param over, under: (replications x sections,) counts.
    :param tail: as ``over``, of a tail that is not too rare to show how much requests depend on each other.
    """
    metric = ratio(over, under, sections, "1", highest=1)
    if metric.value is None:
        return metric
    low, high = wilson(metric.value, _independent(tail, under, sections))
    if metric.lo is None or metric.hi is None:  # a single part has no spread
        state = SETTLED
    else:
        low, high, state = min(metric.lo, low), max(metric.hi, high), metric.state
    if state == SETTLED:
        state = _state_of(metric.value, max(metric.value - low, high - metric.value), is_share=True)
    return replace(metric, lo=low, hi=high, state=state)


def _independent(tail: Floats, under: Floats, sections: int) -> float:
    """Return how many independent requests would give the share of a tail as closely as these do."""
    total = float(under.sum())
    value = float(tail.sum()) / total
    half = _wider_half(value, *_ratios(tail, under, sections))
    return total if not half else min(total, NORMAL**2 * value * (1 - value) / half**2)


def histogram_quantile(counts: NDArray[np.int64], edges: Floats, q: float) -> float:
    """Return a quantile of binned values: the upper edge of the bin it falls into; NaN without values."""
    total = int(counts.sum())
    if total == 0:
        return math.nan
    return float(edges[int(np.searchsorted(np.cumsum(counts), q * total, side="left"))])
