"""Estimates with intervals that cover the true value as often as they say (docs/statistics.md).

Requests of one run depend on each other: a p99 treated as if they didn't has an interval far too narrow. Here a
run is cut into sections (consecutive parts), the statistic is taken in each, and Student's t over the sections
gives the half-width around the whole-sample value. That is right where sections are long enough to be independent of
each other, as the effective sample size shows. Where it is too small or not known, the spread between replications
is taken as well from five of them on, and wherever they differ by more than their sections; the wider of the two
intervals is printed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sim.arrays import Floats, Ints
from sim.results.effective_size import autocorrelation, effective_size
from sim.results.intervals import NORMAL, student, wilson
from sim.results.metric_state import SETTLED, Cause, State
from sim.results.point import Metric

MIN_SECTIONS = 20
MIN_FOR_P99 = 1000
MIN_FOR_RATIO = 100
MIN_FOR_REST = 20
MIN_SECTION_P99 = 100
"""Measured requests a section needs, or its own p99 is little more than its maximum."""
_LEAST_F = 4.0
"""Below the 99.9 % quantile of F, however many replications are cut into sections."""
WIDE = 0.10
"""A half-width above this share of the value leaves a metric unsettled."""
ENOUGH_REPLICATIONS = 5
"""Replications from which on the spread between them counts too."""
ENOUGH, ENOUGH_FOR_P99, ENOUGH_FOR_SHARE = 2000, 6000, 400
"""Effective sample sizes from which half-widths are believed: of means and medians, of p99, and of shares.

With fewer, those that pass for narrow are from runs without their share of long queues, and their values are too low as
well. At these sizes half-widths are usually about 5 % of the value (docs/statistics.md).
"""
WINDOWS = 100
"""Stretches that hardly depend on each other from which an effective sample size is believed: its own relative standard
error is then 20 %. A queue may be in the run for a few long spells only, hidden in a value that varies much more from
request to request."""
CAUTION, CAUTIOUS_UNTIL = 1.3, 1.5
"""How much wider an interval is whose effective sample size is just enough, and at how many times that no more."""
NARROW = 0.04
"""Half-widths below this share of the value need a smaller effective sample size, in proportion: they vary little."""
_WHOLE_CYCLES = 0.02
"""By which share cycles may miss a whole number: what is missing is night or noon, so that it biases values."""
_DIGITS = 7
"""Significant digits of parts."""
MOST_SKEWED = 0.25
"""Half-width, as a share of the value, from which on a skewed interval has no upper end; far above ``WIDE``."""
TIMES_MEAN = 2.0
"""How many times as wide as that of the mean, as shares of their values, the interval of an unsettled p99 is at least.
Queues near saturation exceed their p99 in a few spells, which sections hold one of or none; the mean sees them all."""
NARROW_SHARE = 0.005
"""A share's half-width up to this much is settled, however small the share."""


def sections_per_replication(replications: int) -> int:
    """Return into how many sections each replication is cut, so that there are at least 20 in all."""
    return max(1, math.ceil(MIN_SECTIONS / replications))


def is_whole(cycles: float) -> bool:
    """Return whether so many cycles of the traffic are whole ones, or nearly."""
    return round(cycles) > 0 and abs(cycles / round(cycles) - 1) < _WHOLE_CYCLES


def sections_of_cycles(replications: int, cycles: float) -> int:
    """Return into how many sections each replication is cut where the rate repeats a cycle.

    Night and noon differ by design, which says nothing of chance. So a section has whole cycles, if a replication has,
    and there are enough of them.

    :param cycles: how many of them a replication measures.
    """
    most, whole = sections_per_replication(replications), round(cycles)
    if replications < ENOUGH_REPLICATIONS or not is_whole(cycles):
        return most
    return max(count for count in range(1, most + 1) if whole % count == 0)


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
    width = _width(value, half, is_share=highest == 1)
    state = _wide(width**2) if width > 1 else SETTLED
    return Metric(value, max(0.0, value - half), min(highest, value + half), unit, state, parts=parts)


def mean_count(each: Floats, unit: str, least: float = 0.0) -> Metric:
    """Return the mean of one count a replication, with an interval from their spread, which ends at ``least``."""
    mean = float(each.mean())
    half = half_width(mean, each)
    if half is None:
        state = State(Cause.ONE_REPLICATION) if mean else SETTLED
        return Metric(mean, unit=unit, state=state, parts=kept(each))
    return Metric(mean, max(least, mean - half), mean + half, unit, parts=kept(each))


def spread_over(value: float, each: Floats, unit: str, *, highest: float = math.inf) -> Metric:
    """Return a value with an interval from the same statistic in each replication (nan: it has none there)."""
    if not math.isfinite(value):
        return Metric(None, unit=unit, state=State(Cause.NO_REQUESTS))
    half = half_width(value, each)
    if half is None:
        return Metric(value, unit=unit, state=State(Cause.ONE_REPLICATION))
    state = State(Cause.WIDE_OVER_REPLICATIONS) if half > WIDE * abs(value) else SETTLED
    return Metric(value, max(0.0, value - half), min(highest, value + half), unit, state, parts=kept(each))


def _wider_half(value: float, by_section: Floats, by_replication: Floats) -> float | None:
    """Return the wider half-width of sections and, where there are enough or they differ, of replications."""
    half, count = half_width(value, by_section), len(by_replication)
    if half is not None and (count >= ENOUGH_REPLICATIONS or _differ(by_section, count)):
        half = max(half, half_width(value, by_replication) or 0.0)
    return half


def _differ(by_section: Floats, replications: int) -> bool:
    """Return whether replications differ by more than their sections explain (analysis of variance, at 0.1 %).

    They do where something that is decided early stays for the whole run, such as which replica has which adapter.
    """
    sections = len(by_section) // max(replications, 1)
    if replications < 2 or sections < 2 or not np.isfinite(by_section).all():
        return False
    groups = by_section.reshape(replications, sections)
    means = np.add.reduce(groups, axis=1) / sections
    within = float(np.sum((groups - means[:, None]) ** 2)) / (replications * (sections - 1))
    between = float(np.sum((means - means.mean()) ** 2)) * sections / (replications - 1)
    if between <= _LEAST_F * within:
        return False
    from scipy.special import fdtri  # takes long to import

    return between > within * float(fdtri(replications - 1, replications * (sections - 1), 0.999))


def _width(value: float, half: float, *, is_share: bool) -> float:
    """Return a half-width as a multiple of what a settled value may have."""
    most = max(WIDE * abs(value), NARROW_SHARE if is_share else 0.0)
    return 0.0 if not half else half / most if most else math.inf


def _wide(times: float) -> State:
    """Return that an interval is too wide, unless the run is as many times as long."""
    return State(Cause.WIDE, times=times if math.isfinite(times) else None)


def by_size(
    metric: Metric,
    by_section: Floats,
    by_replication: Floats,
    replications: Sequence[Floats],
    enough: float,
    *,
    is_share: bool = False,
    cyclic: bool = False,
) -> Metric:
    """Return a metric, unsettled unless its effective sample size is large enough.

    If it is settled, sections are independent of each other, so its interval is theirs alone, if replications agree.

    :param by_section, by_replication: the statistic in each section of all replications, and in each replication.
    :param replications: values of which it is the mean; of a quantile, which values exceed it.
    :param enough: effective sample size for a half-width of ``NARROW`` or more.
    :param cyclic: whether sections are whole cycles of the traffic: these are independent of each other, whatever
        values within one have in common. They are few, so a narrow interval may be so by chance.
    """
    if metric.value is None or metric.lo is None or metric.hi is None:
        return metric
    missing, size = 1.0, 0.0
    if not cyclic:
        found = autocorrelation(replications)
        missing, size = max(enough / found.size, WINDOWS / found.windows), found.size
    half = (half_width(metric.value, by_section) or 0.0) * _caution(missing)
    if differ := _differ(by_section, len(by_replication)):
        half = max(half, half_width(metric.value, by_replication) or 0.0)
    if is_share:
        low, high = max(0.0, metric.value - half), min(1.0, metric.value + half)
    elif half < MOST_SKEWED * metric.value:
        low, high = skewed(metric.value, half)
    else:  # too wide to be settled, so these ends are not printed
        low, high = max(0.0, metric.value - half), metric.value + half
    width = _width(metric.value, (high - low) / 2, is_share=is_share)
    # In a longer run the half-width is smaller too, and with it what is needed.
    times = min(missing, math.sqrt(missing) * width * WIDE / NARROW)
    if width > 1:
        times = max(times, width**2) if not differ else max(width**2, ENOUGH_REPLICATIONS / len(by_replication))
        return replace(metric, state=replace(_wide(times), once=differ))
    if times > 1:
        return replace(metric, state=State(Cause.FEW_EFFECTIVE, round(size), math.ceil(size * times)))
    assert half == 0 or is_share or half < MOST_SKEWED * metric.value, "a settled interval has both of its skewed ends"
    return replace(metric, lo=low, hi=high, state=SETTLED)


def _caution(missing: float) -> float:
    """Return how much wider the interval is of a value that may be settled by chance.

    Where most runs are too short, those that aren't are the ones that missed the long queues. Rules that stop at such
    a moment cover the truth less often than they say, and are mended by a wider interval (Singham and Schruben,
    Finite-sample performance of absolute precision stopping rules, INFORMS Journal on Computing 24, 2012).

    :param missing: what the effective sample size should be, over what it is.
    """
    left = (CAUTIOUS_UNTIL - 1 / missing) / (CAUTIOUS_UNTIL - 1)
    return 1 + (CAUTION - 1) * min(1.0, max(0.0, left))


def skewed(value: float, half: float) -> tuple[float, float]:
    """Return the interval of a time whose standard error grows with the square of the time.

    It does for queues near saturation: mean and quantiles grow with 1 / (1 - load), their standard error with its
    square (Whitt, Planning queueing simulations, Management Science 35, 1989). A true value θ is inside where it is
    no further than half · (θ / value)² from the value, so the interval reaches further up than down.

    :param half: less than ``MOST_SKEWED`` of the value.
    """
    if half == 0:
        return value, value
    share = half / value
    assert 0 < share < MOST_SKEWED, "there is no upper end for a half-width as large as this"
    # Both roots in the form that loses no digits where the share is tiny.
    return 2 * value / (1 + math.sqrt(1 + 4 * share)), 2 * value / (1 + math.sqrt(1 - 4 * share))


def quantile_of(values: Floats, q: float) -> float:
    """Return ``float(np.quantile(values, q))``, to the last bit.

    NumPy's own takes 40 µs for a few hundred values, this 6 µs, and a plan takes thousands of quantiles.

    :param values: (n,) at least one, none of them NaN. ``q``: below 1.
    """
    below = int((len(values) - 1) * q)
    ordered = values.copy()
    ordered.partition((below, min(below + 1, len(values) - 1)))
    return quantile_of_sorted(ordered, q)


def quantile_of_sorted(ordered: Floats, q: float) -> float:
    """Return what ``quantile_of`` does, of values in ascending order, or with those next to the quantile in place.

    :param q: up to 1.
    """
    place = (len(ordered) - 1) * q
    below = int(place)
    low, high = float(ordered[below]), float(ordered[min(below + 1, len(ordered) - 1)])
    share = place - below
    # NumPy's form of the interpolation: from the nearer end.
    return high - (high - low) * (1 - share) if share >= 0.5 else low + (high - low) * share


def quantiles_of_windows(values: Floats, first: Ints, last: Ints, q: float) -> Floats:
    """Return ``quantile_of(values[a:b], q)`` of windows that overlap, to the last bit, for a quantile near the top.

    Pieces between the ends of windows are sorted once each. Of these, only the highest values can be a window's
    quantile.

    :param first, last: (n,) where each window begins and ends, with at least one value.
    """
    count = last - first
    place = (count - 1) * q
    below = place.astype(np.int64)
    ranks = count - below  # of the value below the quantile, from the top
    edges, _ = np.unique(np.concatenate((first, last)), return_index=True)  # without places it imports numpy.ma
    ordered = values.copy()
    for a, b in pairwise(edges.tolist()):
        ordered[a:b].sort()
    at = edges[1:, None] - 1 - np.arange(ranks.max())
    highest = np.where(at >= edges[:-1, None], ordered[at], -math.inf)  # of each piece
    begin, end = np.searchsorted(edges, first), np.searchsorted(edges, last)
    piece = begin[:, None] + np.arange((end - begin).max())
    of_window = np.where((piece < end[:, None])[:, :, None], highest[np.minimum(piece, len(highest) - 1)], -math.inf)
    of_window = np.sort(of_window.reshape(len(count), -1), axis=1)
    row = np.arange(len(count))
    low, high = of_window[row, -ranks], of_window[row, np.minimum(1 - ranks, -1)]
    share = place - below
    return np.asarray(np.where(share >= 0.5, high - (high - low) * (1 - share), low + (high - low) * share))


def mean_of(values: Floats) -> float:
    """Return ``float(np.mean(values))``, to the last bit, in a third of the time that this takes for few values.

    :param values: (n,) at least one.
    """
    return float(np.add.reduce(values)) / len(values)


@dataclass(frozen=True, slots=True)
class _Parts:
    """The values of each section, of each replication, and all."""

    sections: list[Floats]
    replications: list[Floats]
    all: Floats


def enough_for(q: float, for_p99: int, least: int) -> int:
    """Return how many values a quantile needs for as many to lie beyond it as with a p99.

    :param for_p99: how many a p99 needs; ``least``: how many the median needs, and every quantile at least.
    """
    return least if q <= 0.5 else max(least, round(for_p99 * 0.01 / (1 - q)))


def _merged(parts: list[Floats]) -> Floats:
    """Return sorted arrays as one. NumPy's vectorised sort is faster than merging them."""
    return parts[0] if len(parts) == 1 else np.sort(np.concatenate(parts))


class Sampled:
    """Values of measured requests, each in a section: means, ratios and quantiles of them.

    :param values: (n,) values; ``section``: (n,) section of each, replications after one another.
    :param sections: sections in each replication; ``replications``: how many there are.
    :param least_for_p99: values below which there is no p99; ``cyclic``: as of ``by_size``.
    :param steady: whether all that values have in common is chance; noon and night differ by design.
    """

    def __init__(
        self,
        values: Floats,
        section: NDArray[np.integer],
        sections: int,
        replications: int,
        least_for_p99: int = MIN_FOR_P99,
        *,
        cyclic: bool = False,
        steady: bool = True,
    ) -> None:
        if len(section) and np.any(section[1:] < section[:-1]):
            order = np.argsort(section, kind="stable")
            values, section = values[order], section[order]
        self._values = values
        self._edges = np.searchsorted(section, np.arange(sections * replications + 1))
        self._sections = sections
        self._least_for_p99 = least_for_p99
        self._cyclic, self._steady = cyclic, steady

    def __len__(self) -> int:
        return len(self._values)

    def mean(self, unit: str) -> Metric:
        """Return the mean, with its interval."""
        parts = _Parts(self._by_section(), self.by_replication(), self._values)
        metric, by_part = self._estimate(parts, mean_of, unit, MIN_FOR_REST)
        if not metric.value:
            return metric
        # The error of a mean is in proportion to the standard deviation, which a few values make up in a heavy tail.
        scv = float(np.var(self._values)) / metric.value**2
        metric = by_size(metric, *by_part, self.by_replication(), ENOUGH * max(1.0, scv), cyclic=self._cyclic)
        return self._widened(metric, 1.0)

    def quantile(self, q: float, unit: str) -> Metric:
        """Return a quantile, with its interval; none where too few requests were measured."""
        least = enough_for(q, self._least_for_p99, MIN_FOR_REST)
        metric, by_part = self._estimate(self._sorted, lambda part: quantile_of_sorted(part, q), unit, least)
        if metric.value is None:
            return metric
        beyond = [(values > metric.value).astype(np.float64) for values in self.by_replication()]
        metric = by_size(metric, *by_part, beyond, enough_for(q, ENOUGH_FOR_P99, ENOUGH), cyclic=self._cyclic)
        if not metric.settled and q > 0.5:
            return self._widened(metric, TIMES_MEAN)
        of_section = enough_for(q, MIN_SECTION_P99, 0)
        if metric.settled and np.diff(self._edges).min() < of_section:
            return replace(metric, state=State(Cause.SMALL_SECTIONS, needed=of_section))
        return metric

    def _widened(self, metric: Metric, times: float) -> Metric:
        """Return a metric; unsettled, its interval is so many times as wide as that of the mean, at least."""
        if metric.settled or not self._steady or metric.value is None or metric.lo is None or metric.hi is None:
            return metric
        factor = math.exp(times * self._width_of_mean)
        return replace(metric, lo=min(metric.lo, metric.value / factor), hi=max(metric.hi, metric.value * factor))

    @cached_property
    def _width_of_mean(self) -> float:
        """The half-width of the mean in the logarithm, by its effective sample size."""
        mean = mean_of(self._values)
        if not mean:
            return 0.0
        return NORMAL * float(np.std(self._values)) / mean / math.sqrt(effective_size(self.by_replication()))

    def by_replication(self) -> list[Floats]:
        """Return the values of each replication."""
        edges = self._edges[:: self._sections]
        return [self._values[a:b] for a, b in pairwise(edges)]

    def quantiles(self, q: list[float]) -> list[float]:
        """Return quantiles over everything, for drawing."""
        return [quantile_of_sorted(self._sorted.all, each) for each in q] if len(self) else []

    def _by_section(self) -> list[Floats]:
        return [self._values[a:b] for a, b in pairwise(self._edges)]

    @cached_property
    def _sorted(self) -> _Parts:
        """The values in ascending order: sorted once, for all quantiles."""
        sections = [np.sort(part) for part in self._by_section()]
        replications = [_merged(sections[i : i + self._sections]) for i in range(0, len(sections), self._sections)]
        return _Parts(sections, replications, _merged(replications))

    def _estimate(
        self, parts: _Parts, statistic: Callable[[Floats], float], unit: str, least: int
    ) -> tuple[Metric, tuple[Floats, Floats]]:
        if len(self) < least:
            none = np.empty(0)
            return Metric(None, unit=unit, state=State(Cause.FEW_REQUESTS, len(self), least)), (none, none)
        by_part = _each(statistic, parts.sections), _each(statistic, parts.replications)
        return estimate(statistic(parts.all), *by_part, unit), by_part


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


def share_by_size(
    over: Floats, under: Floats, sections: int, replications: Sequence[Floats], enough: float, *, cyclic: bool = False
) -> Metric:
    """Return a share of requests, unsettled unless its effective sample size is large enough.

    :param over, under: (replications x sections,) counts.
    :param replications: 1 for each request that is part of it, else 0.
    """
    share = ratio(over, under, sections, "1", highest=1)
    return by_size(share, *_ratios(over, under, sections), replications, enough, is_share=True, cyclic=cyclic)


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
    width = _width(metric.value, max(metric.value - low, high - metric.value), is_share=True)
    if width > 1 and state.cause in (Cause.NONE, Cause.WIDE):
        state = _wide(width**2)
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
