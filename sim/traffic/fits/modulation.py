"""A changing rate fitted to the dispersion of counts: a Poisson process with two states.

Gaps say little about a rate that rises and falls over minutes; counts do. With variance v of the rate and correlation
time c, the index of dispersion of counts in windows of length w is

    I(w) = 1 + 2 v c / rate × (1 − (1 − exp(−w / c)) c / w)

(W. Fischer, K. Meier-Hellstern, "The Markov-modulated Poisson process (MMPP) cookbook", Performance Evaluation 18,
1993, for two states). Two windows give v and c.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.traffic.fits.describe import dispersion

Floats = NDArray[np.float64]

SHORT_S, LONG_S = 1.0, 60.0
"""The windows whose dispersion is matched."""
_LEAST_EXCESS = 1.3
"""A smaller dispersion in the long window gets no second state."""


@dataclass(frozen=True, slots=True)
class Modulation:
    """Two states of a rate.

    :ivar levels: of the two, relative to the mean rate; ``times_s``: mean time in each.
    """

    levels: tuple[float, float]
    times_s: tuple[float, float]


def fit_modulation(times: Floats, rate: float) -> Modulation | None:
    """Return the two states whose dispersion in a second and in a minute is that of these arrivals.

    :returns: None where there are too few minutes, or no more dispersion by the minute than by the second.
    """
    short, long = dispersion(times, SHORT_S), dispersion(times, LONG_S)
    if short is None or long is None or long < _LEAST_EXCESS * max(short, 1.0):
        return None
    windows = (float(times[-1]) - float(times[0])) / LONG_S
    if long < 1 + 4 * math.sqrt(2 / windows):  # four standard errors of a Poisson process
        return None
    slowest = windows * LONG_S / 10
    wanted = (long - 1) / max(short - 1, 1e-9)
    correlation_s = _correlation_time(wanted, slowest)
    spread = (long - 1) / (2 * rate * correlation_s * _share_seen(LONG_S / correlation_s))  # variance over squared rate
    if spread <= 1:
        swing = math.sqrt(spread)
        return Modulation((1 - swing, 1 + swing), (2 * correlation_s, 2 * correlation_s))
    share = 1 / (1 + spread)  # of the time in the high state; the low one is silent
    return Modulation((0.0, 1 / share), (correlation_s / share, correlation_s / (1 - share)))


def _correlation_time(wanted: float, slowest: float) -> float:
    """Return the correlation time at which the windows' dispersions have this ratio, which grows with it."""
    low, high = math.log(SHORT_S / 50), math.log(max(slowest, SHORT_S))
    for _ in range(60):
        middle = (low + high) / 2
        c = math.exp(middle)
        if _share_seen(LONG_S / c) / _share_seen(SHORT_S / c) < wanted:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def _share_seen(x: float) -> float:
    """Return 1 − (1 − exp(−x)) / x, the share of the dispersion that windows of x correlation times see."""
    return 1 + math.expm1(-x) / x if x > 1e-5 else x / 2
