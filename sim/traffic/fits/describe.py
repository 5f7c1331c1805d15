"""Statistics of a stream of requests: burstiness, lengths, sessions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.arrays import Floats, Ints

LEAST_WINDOWS = 20
"""Windows of time, at least, for a dispersion."""


def gap_cv(times: Floats) -> float | None:
    """Return the coefficient of variation of the gaps; None for fewer than three requests or no time at all.

    :param times: (n,) arrival times in seconds, never falling.
    """
    gaps = np.diff(times)
    if len(gaps) < 2 or not gaps.mean() > 0:
        return None
    return float(gaps.std() / gaps.mean())


def dispersion(times: Floats, window_s: float) -> float | None:
    """Return the index of dispersion of counts: variance over mean of the requests in windows of this length.

    1 for Poisson arrivals; above 1 requests come in bursts of that length or longer. None for fewer than
    ``LEAST_WINDOWS`` whole windows.
    """
    begin = float(times[0]) if len(times) else 0.0
    windows = math.floor((float(times[-1]) - begin) / window_s) if len(times) else 0
    if windows < LEAST_WINDOWS:
        return None
    # Only windows with requests are counted: a trace of years has more empty ones than fit into memory.
    inside = times[: int(np.searchsorted(times, begin + windows * window_s, side="left"))]
    counts = np.unique(np.floor((inside - begin) / window_s), return_counts=True)[1].astype(np.float64)
    mean = float(counts.sum()) / windows
    return (float((counts**2).sum()) / windows - mean**2) / mean if mean > 0 else None


def counts_in(times: Floats, begin: float, window_s: float, windows: int) -> Ints:
    """Return the requests in each of so many windows from ``begin`` on, shape (windows,)."""
    edges = begin + window_s * np.arange(windows + 1)
    return np.diff(np.searchsorted(times, edges, side="left")).astype(np.int64)


BURST, SHORT, MOST_BURSTS = 2.0, 0.2, 10
"""A burst has at least so many times the usual rate. Where bursts take more than this share of the time, or are more
than so many, the rate changes all the time, and none of it is a burst."""
_BEYOND_CHANCE = 40
"""Requests of a burst beyond ``BURST`` times the usual, at least, in units of the usual index of dispersion. For
Poisson arrivals, chance makes such an excess about once in exp(1.26 * 40) requests: 1.26 solves exp(x) = 1 + 2 x."""

_FLOOD = 5
"""A stretch shorter than a window is a burst if it has the requests of so many windows."""
_SHORTEST_S = 1.0
"""A burst is taken to last at least this long: many logs have whole seconds."""


@dataclass(frozen=True, slots=True)
class Burst:
    """A stretch of time with far more requests than usual, or with none.

    :ivar begin_s, end_s: its first and last request, or within a silence. ``times``: its rate over the usual one; 0:
        a silence.
    """

    begin_s: float
    end_s: float
    times: float


def find_silences(times: Floats, longer_than_s: float) -> tuple[Burst, ...]:
    """Return the gaps longer than this, less half a usual gap on either side, in order; none where usual ones are 0."""
    gaps = np.diff(times)
    found = np.flatnonzero(gaps > longer_than_s)
    half_s = float(np.delete(gaps, found).sum()) / max(len(gaps) - len(found), 1) / 2
    if not half_s > 0:
        return ()
    return tuple(Burst(float(times[i]) + half_s, float(times[i + 1]) - half_s, 0.0) for i in found.tolist())


def find_bursts(times: Floats, silences: Sequence[Burst] = ()) -> tuple[Burst, ...]:
    """Return the stretches in which requests come at least ``BURST`` times as fast as usual, in order.

    None lasts over one of the ``silences``, and these don't count as usual. Each has the largest excess of requests
    over that rate. The usual rate is the median over windows with 20 requests on average, or more. A stretch shorter
    than a window counts if it has the requests of ``_FLOOD`` windows.
    """
    began, cuts = times, np.searchsorted(times, [silence.end_s for silence in silences]).tolist()
    times = without_bursts(times, silences)
    span = float(times[-1] - times[0]) if len(times) else 0.0
    windows = min(len(times) // 20, max(240, int(span / 60)))
    if windows < LEAST_WINDOWS:
        return ()
    width = span / windows
    counts = counts_in(times, float(times[0]), width, windows)
    usual = float(np.median(counts))
    if not usual > 0:
        return ()
    least = _BEYOND_CHANCE * max(1.0, (1.4826 * float(np.median(np.abs(counts - usual)))) ** 2 / usual)
    excess = np.arange(len(times)) - BURST * usual / width * (times - times[0])
    found: list[tuple[int, int, float]] = []
    parts = list(zip([0, *cuts], [*cuts, len(times)], strict=True))
    while parts and len(found) <= MOST_BURSTS:
        low, high = parts.pop()
        gain = excess[low:high] - np.minimum.accumulate(excess[low:high])
        if not len(gain) or gain.max() < least:
            continue
        last = low + int(np.argmax(gain))
        first = low + int(np.argmin(excess[low : last + 1]))
        parts += [(low, first), (last + 1, high)]
        length = float(times[last] - times[first])
        if length >= width or last - first >= _FLOOD * usual:
            found.append((first, last, max(length, _SHORTEST_S)))
    inside_s = sum(length for _, _, length in found)
    if len(found) > MOST_BURSTS or inside_s > SHORT * span:
        return ()
    calm = (len(times) - sum(last - first for first, last, _ in found)) / (span - inside_s)
    return tuple(
        Burst(float(began[first]), float(began[first]) + length, (last - first) / length / calm)
        for first, last, length in sorted(found)
    )


def without_bursts(times: Floats, bursts: Sequence[Burst]) -> Floats:
    """Return arrival times as if the bursts had never been: later requests come earlier by their length."""
    for burst in reversed(bursts):
        after = times[times > burst.end_s] - (burst.end_s - burst.begin_s)
        times = np.concatenate((times[times < burst.begin_s], after))
    return times


def quantiles(values: NDArray[np.integer]) -> dict[str, float]:
    """Return mean, median, 90 % and 99 % quantile and maximum."""
    cut = np.quantile(values, (0.5, 0.9, 0.99))
    return {
        "mean": float(values.mean()),
        "p50": float(cut[0]),
        "p90": float(cut[1]),
        "p99": float(cut[2]),
        "max": float(values.max()),
    }


def sessions_by_gap(times: Floats, adapter: NDArray[np.integer], longest_s: float) -> Ints:
    """Number the sessions of a trace that names none: requests of one adapter no more than ``longest_s`` apart.

    Two users of one adapter at the same time count as one session: the trace can't tell them apart.

    :returns: (n,) session of each request, by adapter and then by time.
    """
    order = np.lexsort((times, adapter))
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = (np.diff(adapter[order]) != 0) | (np.diff(times[order]) > longest_s)
    sessions = np.empty(len(order), dtype=np.int64)
    sessions[order] = np.cumsum(begins) - 1
    return sessions


class SessionTable:
    """The sessions of a stream.

    :param session: (n,) session of each request, any numbers.
    :ivar begin_s, end_s: (sessions,) times of the first and the last request, in order of the begin.
    :ivar requests: (sessions,) requests of each; ``adapter``: the adapter of its first.
    :ivar gaps_s: all times between two requests of one session.
    """

    def __init__(self, times: Floats, adapter: NDArray[np.integer], session: NDArray[np.integer]) -> None:
        order = np.lexsort((times, session))
        sorted_times, sorted_sessions = times[order], session[order]
        begins = np.ones(len(order), dtype=bool)
        begins[1:] = np.diff(sorted_sessions) != 0
        firsts = np.flatnonzero(begins)
        lasts = np.append(firsts[1:], len(order)) - 1
        by_begin = np.argsort(sorted_times[firsts], kind="stable")
        self.begin_s = sorted_times[firsts][by_begin]
        self.end_s = sorted_times[lasts][by_begin]
        self.requests = (lasts - firsts + 1)[by_begin]
        self.adapter = adapter[order][firsts][by_begin]
        self.gaps_s = np.diff(sorted_times)[~begins[1:]]

    def __len__(self) -> int:
        return len(self.begin_s)

    def at_a_time(self, span_s: float) -> float:
        """Return how many sessions are under way on average, from first to last request of each."""
        return float((self.end_s - self.begin_s).sum() / span_s) if span_s > 0 else float(len(self))


# Correlations of lengths: prompt with output, and requests of one adapter with each other.


def normal_scores(values: NDArray[np.integer]) -> Floats:
    """Return each value's place in the standard normal law: of rank r among n, its quantile at (r − 1/2) / n."""
    from scipy.special import ndtri
    from scipy.stats import rankdata

    return np.asarray(ndtri((rankdata(values) - 0.5) / len(values)))


def correlation(prompt: NDArray[np.integer], output: NDArray[np.integer]) -> float:
    """Return the correlation of the normal scores of prompt and output tokens; 0 where one never changes."""
    if len(prompt) < 3 or prompt.min() == prompt.max() or output.min() == output.max():
        return 0.0
    found = float(np.corrcoef(normal_scores(prompt), normal_scores(output))[0, 1])
    return min(max(found, -0.99), 0.99)


def by_adapter(prompt: NDArray[np.integer], output: NDArray[np.integer], adapter: NDArray[np.integer]) -> float:
    """Return the share of the variance of normal scores that lies between adapters, mean of prompt and output.

    The intraclass correlation by one-way analysis of variance, adapters of different numbers of requests.
    """
    counts = np.bincount(adapter)
    counts = counts[counts > 0]
    groups, total = len(counts), int(counts.sum())
    if groups < 2 or total <= groups:
        return 0.0
    typical = (total - float((counts.astype(np.float64) ** 2).sum()) / total) / (groups - 1)
    shares = []
    for values in (prompt, output):
        if values.min() == values.max():
            continue
        scores = normal_scores(values)
        sums, sizes = np.bincount(adapter, weights=scores), np.bincount(adapter)
        means = sums / np.maximum(sizes, 1)
        within = float(((scores - means[adapter]) ** 2).sum()) / (total - groups)
        between = float((sizes * (means - scores.mean()) ** 2).sum()) / (groups - 1)
        shares.append((between - within) / (between + (typical - 1) * within) if between > 0 else 0.0)
    found = max(0.0, sum(shares) / len(shares)) if shares else 0.0
    return 0.0 if math.isnan(found) else min(found, 0.99)
