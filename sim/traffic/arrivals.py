"""Gaps of renewal processes: one stream over all adapters, or one for each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.spec.sections.arrival_processes import Arrivals, OnOffArrivals

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Gaps:
    """The gaps of several independent renewal processes, by their number.

    :ivar draw: from a generator and the numbers of processes, shape (n,): a gap in seconds of each, shape (n,).
    :ivar residual: the same for the time to the first event of a process that has been running for ever. With bursty
        gaps that is far longer than a gap: most of the time lies in long ones.
    """

    draw: Callable[[np.random.Generator, Ints], Floats]
    residual: Callable[[np.random.Generator, Ints], Floats]


def gaps(law: Arrivals, rng: np.random.Generator, count: int, rate: float) -> Floats:
    """Return ``count`` gaps in seconds of one stream with this mean rate."""
    if law.process == "poisson" or is_poisson(law):
        return rng.standard_exponential(count) / rate
    if law.process == "weibull":
        return _weibull(rng, np.full(count, law.cv), np.full(count, rate))
    if law.process == "on-off":
        return _on_off(law, rng, np.full(count, rate))
    assert law.process != "mmpp", "no renewal process"
    shape = 1 / law.cv**2  # a gamma law of this shape has the coefficient of variation cv
    return rng.standard_gamma(shape, count) / (shape * rate)


def is_poisson(law: Arrivals) -> bool:
    """Return whether gaps are exponential (on the clock of expected arrivals, where the rate changes)."""
    return law.process == "poisson" or getattr(law, "cv", 0) == 1


def renewal(law: Arrivals, rates: Floats, cvs: Floats | None) -> Gaps:
    """Return the gaps of one process for each of ``rates`` (in 1/s).

    :param cvs: coefficients of variation in place of the law's, nan: the law's; gamma and Weibull only.
    """
    if isinstance(law, OnOffArrivals):
        return _on_off_gaps(law, rates)
    own = getattr(law, "cv", 1.0)
    cv = np.full(len(rates), own) if cvs is None else np.where(np.isnan(cvs), own, cvs)
    if law.process == "weibull":
        shape = weibull_shape(cv)
        scale = 1 / (rates * _gamma(1 + 1 / shape))
        return Gaps(
            draw=lambda rng, i: scale[i] * rng.standard_exponential(len(i)) ** (1 / shape[i]),
            # Gaps seen from a moment in time are drawn in proportion to their length: x**shape is then gamma.
            residual=lambda rng, i: (
                rng.random(len(i)) * scale[i] * rng.standard_gamma(1 + 1 / shape[i]) ** (1 / shape[i])
            ),
        )
    shape = 1 / cv**2
    return Gaps(
        draw=lambda rng, i: rng.standard_gamma(shape[i]) / (shape[i] * rates[i]),
        residual=lambda rng, i: rng.random(len(i)) * rng.standard_gamma(shape[i] + 1) / (shape[i] * rates[i]),
    )


def weibull_shape(cv: Floats) -> Floats:
    """Return the shape of the Weibull law with these coefficients of variation.

    cv² = Γ(1 + 2/k) / Γ(1 + 1/k)² − 1 falls with k; found by bisection, to 1e-12 relative.
    """
    from scipy.special import gammaln

    wanted = np.log1p(np.asarray(cv, dtype=np.float64) ** 2)
    low, high = np.full(wanted.shape, math.log(0.02)), np.full(wanted.shape, math.log(1000.0))
    for _ in range(60):
        middle = (low + high) / 2
        inverse = np.exp(-middle)
        too_wide = gammaln(1 + 2 * inverse) - 2 * gammaln(1 + inverse) > wanted
        low, high = np.where(too_wide, middle, low), np.where(too_wide, high, middle)
    return np.asarray(np.exp((low + high) / 2))


def _gamma(x: Floats) -> Floats:
    from scipy.special import gamma

    return np.asarray(gamma(x))


def _weibull(rng: np.random.Generator, cv: Floats, rate: Floats) -> Floats:
    shape = float(weibull_shape(cv[:1])[0])
    return np.asarray(rng.standard_exponential(len(cv)) ** (1 / shape) / (rate * math.gamma(1 + 1 / shape)))


def _on_off(law: OnOffArrivals, rng: np.random.Generator, rate: Floats) -> Floats:
    """Return gaps that begin with an arrival, which is while on.

    From there, the next arrival comes before the end of the time on with probability busy / (busy + 1 / on); until
    one does, so many times off pass. Both kinds of waiting are exponential, so their sums are gamma.
    """
    busy = rate * (law.on + law.off) / law.on
    leave = 1 / law.on
    # A stream for each kind, so that the first of many gaps are those of few.
    counts, while_on, while_off = rng.spawn(3)
    silences = counts.geometric(busy / (busy + leave)) - 1
    off = np.where(silences > 0, while_off.standard_gamma(np.maximum(silences, 1)) * law.off, 0.0)
    return np.asarray(while_on.standard_gamma(silences + 1) / (busy + leave) + off)


def _on_off_gaps(law: OnOffArrivals, rates: Floats) -> Gaps:
    def residual(rng: np.random.Generator, which: Ints) -> Floats:
        off = rng.random(len(which)) < law.off / (law.on + law.off)
        silence = np.where(off, rng.standard_exponential(len(which)) * law.off, 0.0)
        return silence + _on_off(law, rng, rates[which])

    return Gaps(lambda rng, which: _on_off(law, rng, rates[which]), residual)
