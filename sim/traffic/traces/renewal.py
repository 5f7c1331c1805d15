"""Stationary renewal processes whose law changes from window to window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sim.traffic.arrivals import weibull_shape

Floats = NDArray[np.float64]
Family = Literal["exponential", "gamma", "weibull"]
DrawUnitGaps = Callable[[int], Floats]

DRAWN = 4096
"""Gaps drawn at once, at most."""


def gaps_of(family: str, shape: float, rng: np.random.Generator) -> DrawUnitGaps:
    """Return a function that draws n gaps of mean 1."""
    if family == "gamma":
        return lambda count: rng.gamma(shape, 1 / shape, count)
    if family == "weibull":
        from scipy.special import gamma

        scale = 1 / float(gamma(1 + 1 / shape))
        return lambda count: rng.weibull(shape, count) * scale
    return rng.standard_exponential


def shape_of_cv(family: NDArray[np.str_], cv: Floats) -> Floats:
    """Return the shapes of Gamma and Weibull laws with these coefficients of variation."""
    return np.where(family == "weibull", weibull_shape(cv), 1 / cv**2)


class CarriedGaps:
    """Carries the gap across the end of each client's window into the next window.

    In a stationary renewal process the gap that covers a fixed moment is drawn with a probability in proportion to its
    length, and the moment lies anywhere in it, independent of that length (Cox, Renewal Theory, 1962, chapter 5). When
    the law changes, the gap is replaced by that of the same rank in the new law; what of it is left keeps its share.
    So the process is stationary under the new law from the first moment, and a regular client stays regular.

    :param clients: how many there are.
    """

    def __init__(self, clients: int) -> None:
        self._rank = np.full(clients, np.nan)
        self._share = np.zeros(clients)
        self._gap = np.zeros(clients)
        self._rest = np.zeros(clients)
        self._family = np.full(clients, "exponential", dtype="<U11")
        self._shape = np.ones(clients)

    def enter(
        self, client: NDArray[np.int32], family: NDArray[np.str_], shape: Floats, rngs: list[np.random.Generator]
    ) -> None:
        """Begin a window of these clients (each at most once) under new laws."""
        rank = _rank(self._gap[client], self._family[client], self._shape[client])
        share = np.where(self._gap[client] > 0, self._rest[client] / np.maximum(self._gap[client], 1e-300), 0.0)
        fresh = np.isnan(self._rank[client])
        for place in np.flatnonzero(fresh).tolist():
            rank[place], share[place] = rngs[place].random(2)
        self._rank[client] = rank
        gap = _gap(np.clip(rank, 1e-300, 1 - 2**-53), family, shape)
        self._gap[client], self._rest[client] = gap, gap * share
        self._family[client], self._shape[client] = family, shape

    def run(self, client: int, work: float, gaps: DrawUnitGaps) -> Floats:
        """Return the moments of a client's requests in a window, in operational time from 0 to ``work``."""
        first = float(self._rest[client])
        if first >= work:
            self._rest[client] = first - work
            return np.zeros(0)
        parts, end = [np.array([first])], first
        last_gap = 0.0
        while end < work:
            drawn = gaps(int(min(DRAWN, (work - end) * 1.1 + 8)))
            moments = end + np.cumsum(drawn)
            inside = int(np.searchsorted(moments, work, side="left"))
            parts.append(moments[:inside])
            if inside < len(drawn):
                last_gap, end = float(drawn[inside]), float(moments[inside])
                break
            end = float(moments[-1])
        self._gap[client], self._rest[client] = last_gap, end - work
        return np.concatenate(parts)


def _rank(gap: Floats, family: NDArray[np.str_], shape: Floats) -> Floats:
    """Return how large a gap is among those that cover a fixed moment (the length-biased law), 0 to 1."""
    from scipy.special import gamma, gammainc

    # Length-biased: Gamma(k) becomes Gamma(k + 1); x^k of a Weibull becomes Gamma(1 + 1/k).
    by_gamma = gammainc(shape + 1, shape * gap)
    with np.errstate(over="ignore"):
        by_weibull = gammainc(1 + 1 / shape, (gap * gamma(1 + 1 / shape)) ** shape)
    return np.where(family == "weibull", by_weibull, by_gamma)


def _gap(rank: Floats, family: NDArray[np.str_], shape: Floats) -> Floats:
    """Return the gap of a rank: the inverse of ``_rank``."""
    from scipy.special import gamma, gammaincinv

    by_gamma = gammaincinv(shape + 1, rank) / shape
    by_weibull = gammaincinv(1 + 1 / shape, rank) ** (1 / shape) / gamma(1 + 1 / shape)
    return np.where(family == "weibull", by_weibull, by_gamma)
