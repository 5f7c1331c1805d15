"""Laws of gaps fitted by maximum likelihood, for one stream or one for each adapter; and a rate that changes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sim.arrays import Floats
from sim.traffic.fits.describe import dispersion

LEAST_GAPS = 20
"""With fewer gaps, an adapter gets the burstiness of all such adapters together."""
MOST_TIES = 0.1
"""Share of gaps of 0 above which times count as too coarse."""
MOST_ADAPTERS = 5_000
"""Adapters fitted on their own, the busiest first."""
_CVS = 0.05, 50.0


@dataclass(frozen=True, slots=True)
class GapFit:
    """A law of gaps.

    :ivar cv: coefficient of variation of the fitted law; for heavy tails, far from that of the sample.
    :ivar log_likelihood: natural logarithm, of the gaps in units of their mean.
    """

    process: Literal["poisson", "gamma", "weibull"]
    cv: float
    log_likelihood: float


def fit_gaps(gaps: Floats) -> GapFit:
    """Return the likeliest law of gaps; exponential where another gains next to nothing.

    :param gaps: (n,) gaps in seconds, at least one above zero. Gaps of 0 count as half the smallest other: times are
        rounded. Where more than a tenth are 0, times lie on a coarse grid that likelihood can't use: then
        gamma with the variation of the gaps themselves.
    """
    scaled = _scaled(gaps)
    if (gaps == 0).mean() > MOST_TIES:
        return GapFit("gamma", _within(float(gaps.std() / gaps.mean())), -math.inf)
    exponential = GapFit("poisson", 1.0, -float(scaled.sum()))
    best = max((_weibull(scaled), _gamma(scaled)), key=lambda fit: fit.log_likelihood)
    return best if best.log_likelihood > exponential.log_likelihood + 4 else exponential


def _scaled(gaps: Floats) -> Floats:
    """Return gaps in units of their mean, none of them 0."""
    positive = gaps[gaps > 0]
    floor = float(positive.min()) / 2
    return np.maximum(gaps, floor) / max(float(gaps.mean()), floor)


def _weibull(scaled: Floats) -> GapFit:
    """Solve Σ x^k ln x / Σ x^k − 1/k = mean ln x for k by bisection: the left side grows with k."""
    logs = np.log(scaled)
    mean_log = float(logs.mean())
    top = float(logs.max())

    def is_beyond(log_shape: float) -> bool:
        powers = np.exp(math.exp(log_shape) * (logs - top))  # scaled, so that nothing overflows
        return float(powers @ logs / powers.sum()) - math.exp(-log_shape) > mean_log

    shape = _bisect(is_beyond, 0.05, 50.0)
    log_mean_power = float(np.log(np.mean(np.exp(shape * (logs - top))))) + shape * top
    scale_log = log_mean_power / shape
    likelihood = len(logs) * (math.log(shape) - shape * scale_log - 1) + (shape - 1) * float(logs.sum())
    squared = math.exp(math.lgamma(1 + 2 / shape) - 2 * math.lgamma(1 + 1 / shape)) - 1
    return GapFit("weibull", _within(math.sqrt(max(squared, 0.0))), likelihood)


def _gamma(scaled: Floats) -> GapFit:
    """Solve ln k − digamma(k) = ln mean − mean ln for k by bisection: the left side falls with k."""
    from scipy.special import digamma

    mean, mean_log = float(scaled.mean()), float(np.log(scaled).mean())
    wanted = max(math.log(mean) - mean_log, 1e-12)
    shape = _bisect(lambda log: log - float(digamma(math.exp(log))) <= wanted, 1e-4, 1e5, 80)
    each = shape * math.log(shape / mean) - math.lgamma(shape) + (shape - 1) * mean_log - shape
    return GapFit("gamma", _within(1 / math.sqrt(shape)), len(scaled) * each)


def _bisect(is_beyond: Callable[[float], bool], least: float, most: float, steps: int = 60) -> float:
    """Return the number from which on a condition on its logarithm holds."""
    low, high = math.log(least), math.log(most)
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (low, middle) if is_beyond(middle) else (middle, high)
    return math.exp((low + high) / 2)


def _within(cv: float) -> float:
    return min(max(cv, _CVS[0]), _CVS[1])


def cvs_by_adapter(times: Floats, adapter: NDArray[np.integer], count: int, process: str) -> Floats:
    """Return the coefficient of variation of each adapter's own gaps under a Weibull or gamma law, shape (count,).

    Adapters with few requests get that of all such adapters together, gaps in units of each adapter's mean.
    """
    fit = _weibull if process == "weibull" else _gamma
    order = np.lexsort((times, adapter))
    asked = np.bincount(adapter, minlength=count)
    edges = np.concatenate(([0], np.cumsum(asked)))
    found = np.full(count, np.nan)
    pooled: list[Floats] = []
    busiest = np.argsort(-asked, kind="stable")
    for place, which in enumerate(busiest.tolist()):
        gaps = np.diff(times[order[edges[which] : edges[which + 1]]])
        if place >= MOST_ADAPTERS or len(gaps) == 0:
            break
        if not gaps.max() > 0:
            continue
        if len(gaps) >= LEAST_GAPS:
            found[which] = fit(_scaled(gaps)).cv
        else:
            pooled.append(gaps / gaps.mean())
    rest = np.concatenate(pooled) if pooled else np.empty(0)
    common = float(np.nanmedian(found)) if np.isfinite(found).any() else 1.0
    if len(rest) >= LEAST_GAPS:
        common = fit(_scaled(rest)).cv
    return np.where(np.isnan(found), common, found)


# A changing rate fitted to the dispersion of counts: a Poisson process with two states.
#
# Gaps say little about a rate that rises and falls over minutes; counts do. With variance v of the rate and correlation
# time c, the index of dispersion of counts in windows of length w is
#
# I(w) = 1 + 2 v c / rate × (1 − (1 − exp(−w / c)) c / w)
#
# (W. Fischer, K. Meier-Hellstern, "The Markov-modulated Poisson process (MMPP) cookbook", Performance Evaluation 18,
# 1993, for two states). Two windows give v and c.

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
    wanted = (long - 1) / max(short - 1, 1e-9)

    def is_slower(log_s: float) -> bool:  # the ratio of the windows' dispersions grows with the correlation time
        return _share_seen(LONG_S / math.exp(log_s)) / _share_seen(SHORT_S / math.exp(log_s)) >= wanted

    correlation_s = _bisect(is_slower, SHORT_S / 50, max(windows * LONG_S / 10, SHORT_S))
    spread = (long - 1) / (2 * rate * correlation_s * _share_seen(LONG_S / correlation_s))  # variance over squared rate
    if spread <= 1:
        swing = math.sqrt(spread)
        return Modulation((1 - swing, 1 + swing), (2 * correlation_s, 2 * correlation_s))
    share = 1 / (1 + spread)  # of the time in the high state; the low one is silent
    return Modulation((0.0, 1 / share), (correlation_s / share, correlation_s / (1 - share)))


def _share_seen(x: float) -> float:
    """Return 1 − (1 − exp(−x)) / x, the share of the dispersion that windows of x correlation times see."""
    return 1 + math.expm1(-x) / x if x > 1e-5 else x / 2
