"""Statistics of a stream of requests: burstiness, lengths, sessions."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

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
