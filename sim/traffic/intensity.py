"""Arrival rates that change with time: turns expected event counts into times.

A process with a changing rate has a constant rate on another clock, the expected number of events so far. An
``Intensity`` reads that clock: it gives the time at which a number of events is expected to have happened.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sim.rng import stream
from sim.spec.sections.arrival_processes import DiurnalArrivals, MmppArrivals, PiecewiseArrivals

Floats = NDArray[np.float64]

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
