"""Arrival processes: the gaps between requests, and the rate that changes with time.

A process is a model and a row in ``PROCESSES``. Gaps make one stream over all adapters, or one for each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from sim.arrays import Floats, Ints
from sim.rng import stream
from sim.spec.sections.traffic_laws import (
    DiurnalArrivals,
    GammaArrivals,
    MmppArrivals,
    OnOffArrivals,
    OpenArrivals,
    PiecewiseArrivals,
    PoissonArrivals,
    WeibullArrivals,
)

# Arrival rates that change with time: turns expected event counts into times.
#
# A process with a changing rate has a constant rate on another clock, the expected number of events so far. An
# ``Intensity`` reads that clock: it gives the time at which a number of events is expected to have happened.

_KNOTS = 4096
"""Linear pieces of one sine period: the rate is exact to a millionth of its amplitude."""
_STATES = 1024
"""States of a random environment generated at a time."""


class Intensity(Protocol):
    """The expected number of events as a clock."""

    def time_at(self, expected: Floats) -> Floats:
        """Return the times by which these numbers of events are expected since time 0; both never fall."""
        ...


class Periodic:
    """A rate that repeats itself, linear pieces of the expected count over one period.

    :param times: knots from 0 to the period; ``expected``: expected events by then, since the period began.
    """

    def __init__(self, times: Floats, expected: Floats) -> None:
        self._times = times
        self._expected = expected

    def time_at(self, expected: Floats) -> Floats:
        per_round = self._expected[-1]
        rounds = np.floor(expected / per_round)
        inside = np.interp(expected - rounds * per_round, self._expected, self._times)
        return np.asarray(rounds * self._times[-1] + inside)


class Environment:
    """A rate that jumps between states at random; one realisation, extended as needed."""

    def __init__(self, law: MmppArrivals, seed: int, replication: int) -> None:
        self._law = law
        self._key = seed, replication
        weight = sum(state.level * state.time for state in law.states) / sum(state.time for state in law.states)
        self._rates = np.array([state.level for state in law.states]) * (law.rate / weight)
        self._holding = np.array([state.time for state in law.states])
        self._block = 0
        self._state = -1
        self._times = np.zeros(1)
        self._expected = np.zeros(1)

    def time_at(self, expected: Floats) -> Floats:
        while self._expected[-1] <= expected[-1]:
            self._extend(float(expected[0]))
        return np.asarray(np.interp(expected, self._expected, self._times))

    def _extend(self, needed_from: float) -> None:
        """Generate further states, and drop those before ``needed_from``."""
        rng = stream(*self._key, "environment", self._block)
        self._block += 1
        count = len(self._rates)
        if self._state < 0:  # in equilibrium, a state is seen in proportion to the time spent in it
            self._state = int(rng.choice(count, p=self._holding / self._holding.sum()))
        hops = rng.integers(1, count, size=_STATES)
        states = (self._state + np.concatenate(([0], np.cumsum(hops)))) % count
        now, self._state = states[:-1], int(states[-1])
        lasting = rng.standard_exponential(_STATES) * self._holding[now]
        keep = max(int(np.searchsorted(self._expected, needed_from, side="left")) - 1, 0)
        times = self._times[-1] + np.cumsum(lasting)
        counted = self._expected[-1] + np.cumsum(lasting * self._rates[now])
        self._times = np.concatenate((self._times[keep:], times))
        self._expected = np.concatenate((self._expected[keep:], counted))


def piecewise(law: PiecewiseArrivals) -> Periodic:
    """Return the rate that goes through the law's steps."""
    lengths = np.array([step.time for step in law.steps])
    levels = np.array([step.level for step in law.steps])
    counts = lengths * levels
    scale = law.rate * lengths.sum() / counts.sum()
    return Periodic(np.concatenate(([0.0], np.cumsum(lengths))), np.concatenate(([0.0], np.cumsum(counts * scale))))


def diurnal(law: DiurnalArrivals) -> Periodic:
    """Return the rate ``rate × (1 + swing × cos(2π (t − peak_at) / period))``."""
    times = np.linspace(0.0, law.period, _KNOTS + 1)
    angle = 2 * np.pi / law.period
    swing = law.swing * (np.sin(angle * (times - law.peak_at)) - np.sin(-angle * law.peak_at)) / angle
    return Periodic(times, np.maximum.accumulate(law.rate * (times + swing)))


@dataclass(frozen=True, slots=True)
class Gaps:
    """The gaps of several independent renewal processes, by their number.

    :ivar draw: from a generator and the numbers of processes, shape (n,): a gap in seconds of each, shape (n,).
    :ivar residual: the same for the time to the first event of a process that has been running for ever. With bursty
        gaps that is far longer than a gap: most of the time lies in long ones.
    """

    draw: Callable[[np.random.Generator, Ints], Floats]
    residual: Callable[[np.random.Generator, Ints], Floats]


@dataclass(frozen=True, slots=True)
class Process:
    """What a process does with the fields of its model.

    :ivar one: gaps of one stream: from a law, a generator, a count and a mean rate.
    :ivar many: the gaps of a process for each rate: from a law, rates and coefficients of variation.
    :ivar intensity: the rate that changes with time: from a law, a seed and a replication; None: it is constant. Gaps
        then are counted in expected arrivals.
    """

    one: Callable[[Any, np.random.Generator, int, float], Floats]
    many: Callable[[Any, Floats, Floats], Gaps]
    intensity: Callable[[Any, int, int], Intensity] | None = None


def gaps(law: OpenArrivals, rng: np.random.Generator, count: int, rate: float) -> Floats:
    """Return ``count`` gaps in seconds of one stream with this mean rate."""
    make = _exponential if is_memoryless(law) else PROCESSES[type(law)].one
    return make(law, rng, count, rate)


def is_memoryless(law: OpenArrivals) -> bool:
    """Return whether gaps are exponential (on the clock of expected arrivals, where the rate changes)."""
    return PROCESSES[type(law)].one is _exponential or getattr(law, "cv", 0) == 1


def renewal(law: OpenArrivals, rates: Floats, cvs: Floats | None) -> Gaps:
    """Return the gaps of one process for each of ``rates`` (in 1/s).

    :param cvs: coefficients of variation in place of the law's, nan: the law's; gamma and Weibull only.
    """
    own = getattr(law, "cv", 1.0)
    cv = np.full(len(rates), own) if cvs is None else np.where(np.isnan(cvs), own, cvs)
    return PROCESSES[type(law)].many(law, rates, cv)


def intensity(law: OpenArrivals, seed: int, replication: int) -> Intensity | None:
    """Return the rate that changes with time; None where it is constant."""
    make = PROCESSES[type(law)].intensity
    return None if make is None else make(law, seed, replication)


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


def _exponential(law: OpenArrivals, rng: np.random.Generator, count: int, rate: float) -> Floats:
    return rng.standard_exponential(count) / rate


def _gamma_gaps(law: Any, rng: np.random.Generator, count: int, rate: float) -> Floats:
    shape = 1 / law.cv**2  # a gamma law of this shape has the coefficient of variation cv
    return np.asarray(rng.standard_gamma(shape, count) / (shape * rate))


def _gamma_streams(law: OpenArrivals, rates: Floats, cv: Floats) -> Gaps:
    shape = 1 / cv**2
    return Gaps(
        draw=lambda rng, i: rng.standard_gamma(shape[i]) / (shape[i] * rates[i]),
        residual=lambda rng, i: rng.random(len(i)) * rng.standard_gamma(shape[i] + 1) / (shape[i] * rates[i]),
    )


def _weibull_gaps(law: WeibullArrivals, rng: np.random.Generator, count: int, rate: float) -> Floats:
    shape = float(weibull_shape(np.array([law.cv]))[0])
    return np.asarray(rng.standard_exponential(count) ** (1 / shape) / (rate * math.gamma(1 + 1 / shape)))


def _weibull_streams(law: WeibullArrivals, rates: Floats, cv: Floats) -> Gaps:
    from scipy.special import gamma

    shape = weibull_shape(cv)
    scale = np.asarray(1 / (rates * gamma(1 + 1 / shape)))
    return Gaps(
        draw=lambda rng, i: scale[i] * rng.standard_exponential(len(i)) ** (1 / shape[i]),
        # Gaps seen from a moment in time are drawn in proportion to their length: x**shape is then gamma.
        residual=lambda rng, i: rng.random(len(i)) * scale[i] * rng.standard_gamma(1 + 1 / shape[i]) ** (1 / shape[i]),
    )


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


def _on_off_streams(law: OnOffArrivals, rates: Floats, cv: Floats) -> Gaps:
    def residual(rng: np.random.Generator, which: Ints) -> Floats:
        off = rng.random(len(which)) < law.off / (law.on + law.off)
        silence = np.where(off, rng.standard_exponential(len(which)) * law.off, 0.0)
        return silence + _on_off(law, rng, rates[which])

    return Gaps(lambda rng, which: _on_off(law, rng, rates[which]), residual)


PROCESSES: Mapping[type, Process] = {
    PoissonArrivals: Process(_exponential, _gamma_streams),
    GammaArrivals: Process(_gamma_gaps, _gamma_streams),
    WeibullArrivals: Process(_weibull_gaps, _weibull_streams),
    OnOffArrivals: Process(lambda law, rng, count, rate: _on_off(law, rng, np.full(count, rate)), _on_off_streams),
    PiecewiseArrivals: Process(_gamma_gaps, _gamma_streams, lambda law, seed, replication: piecewise(law)),
    DiurnalArrivals: Process(_gamma_gaps, _gamma_streams, lambda law, seed, replication: diurnal(law)),
    MmppArrivals: Process(_exponential, _gamma_streams, Environment),
}
"""What every member of the union ``OpenArrivals`` does."""
