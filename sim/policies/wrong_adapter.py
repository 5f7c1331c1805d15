"""Choice of the wrong adapter that a misrouted request reaches."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

from sim.rng import uniform_draw


class WrongAdapterChoice(Protocol):
    """Chooses another adapter than the requested one."""

    def choose(self, requested: int, uniform: float) -> int:
        """Return an adapter other than ``requested``.

        :param requested: may be outside the choice, such as an adapter that was added later.
        :param uniform: uniform in [0, 1).
        """
        ...


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
