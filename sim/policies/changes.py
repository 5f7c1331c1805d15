"""Decisions about changes of a fleet: may a stage of a rollout go on, and which wrong adapter does a request reach."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from sim.rng import uniform_draw

# The gate of a rollout: decides whether a new version may proceed to its next stage.

NEVER_S = 1e30
"""Seconds of an answer that never comes: above any limit, even as one sample of a mean."""


class Sample(NamedTuple):
    """One request of the new version: seconds to its first and last token, and whether it started a load.

    A failed request has ``NEVER_S`` for both.
    """

    ttft_s: float
    e2e_s: float
    missed: bool


class FailedTerm(NamedTuple):
    """A limit that does not hold. ``value`` is None where too many requests failed."""

    name: str
    value: float | None
    limit: float


def failed_terms(terms: Mapping[str, float], samples: Sequence[Sample]) -> tuple[FailedTerm, ...]:
    """Return the terms that do not hold.

    :param terms: limits by name: ``ttft_mean``, ``ttft_p99``, ``e2e_mean``, ``e2e_p99`` in seconds, ``miss_ratio``.
    :param samples: one or more.
    """
    columns = {"ttft": [s.ttft_s for s in samples], "e2e": [s.e2e_s for s in samples]}
    failed = []
    for name, limit in terms.items():
        if name == "miss_ratio":
            value = float(np.mean([s.missed for s in samples]))
        else:
            column, statistic = name.split("_")
            value = float(np.mean(columns[column]) if statistic == "mean" else np.quantile(columns[column], 0.99))
        if value > limit:
            failed.append(FailedTerm(name, value if value < 1e-9 * NEVER_S else None, limit))
    return tuple(failed)


def failed_words(failed: Sequence[FailedTerm]) -> str:
    """Return the terms that do not hold, in words."""

    def show(name: str, value: float | None) -> str:
        if value is None:
            return "without end, since requests failed"
        return f"{value:.1%}" if name == "miss_ratio" else f"{value:.3g} s"

    return "; ".join(f"{name} {show(name, value)}, allowed {show(name, limit)}" for name, value, limit in failed)


# Choice of the wrong adapter that a misrouted request reaches.


class UniformChoice:
    """Chooses uniformly among all other adapters.

    :param count: number of adapters, two or more.
    """

    def __init__(self, count: int) -> None:
        assert count > 1, "there must be another adapter to reach"
        self._count = count

    def choose(self, requested: int, uniform: float) -> int:
        among = self._count - (requested < self._count)
        chosen = int(uniform * among)
        return chosen + (chosen >= requested)


class PopularityChoice:
    """Chooses by popularity, as if two requests were exchanged; if no other adapter has requests, uniformly.

    :param shares: (adapters,) share of each in the traffic; two or more.
    """

    def __init__(self, shares: Sequence[float]) -> None:
        self._shares = shares
        self._below = list(accumulate(shares, initial=0.0))
        self._uniform = UniformChoice(len(shares))

    def choose(self, requested: int, uniform: float) -> int:
        below, own = self._below, self._shares[requested] if requested < len(self._shares) else 0.0
        others = below[-1] - own
        if others <= below[-1] * 1e-12:  # the rest is rounding
            return self._uniform.choose(requested, uniform)
        place = uniform * others
        if own and place >= below[requested]:
            place += own
        chosen = bisect_right(below, place) - 1
        while chosen >= 0 and (chosen >= len(self._shares) or chosen == requested or self._shares[chosen] == 0):
            chosen -= 1  # rounding led to the edge of the requested one, or beyond the last
        return chosen if chosen >= 0 else self._uniform.choose(requested, uniform)


def exchanged(adapters: int, share: float, key: int) -> dict[int, int]:
    """Return the adapters reached by an old map after a share of the adapters has swapped places.

    :param key: key of the uniform draws that choose the adapters.
    :returns: by moved adapter, the one that its requests reach by the old map. All form one cycle, so that no adapter
        keeps its place. Empty if fewer than two adapters move.
    """
    chosen = sorted(range(adapters), key=lambda adapter: uniform_draw(key, adapter))[: round(share * adapters)]
    if len(chosen) < 2:
        return {}
    return dict(zip(chosen, [*chosen[1:], chosen[0]], strict=True))
