"""Which wrong adapter a request reaches, where names and adapters get mixed up."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

from sim.rng import uniform_draw


class WrongAdapterChoice(Protocol):
    """Choose another adapter than the one asked for."""

    def choose(self, requested: int, uniform: float) -> int:
        """Return an adapter, but not ``asked``.

        :param asked: may be one that isn't chosen from, such as an adapter that came later.
        :param lot: uniform in [0, 1).
        """
        ...


class UniformChoice:
    """Any of them, each as likely.

    :param count: adapters to choose from, two or more.
    """

    def __init__(self, count: int) -> None:
        assert count > 1, "nobody else to reach"
        self._count = count

    def choose(self, requested: int, uniform: float) -> int:
        among = self._count - (requested < self._count)
        chosen = int(uniform * among)
        return chosen + (chosen >= requested)


class PopularityChoice:
    """By popularity, as if two requests were mixed up; where nobody else is ever asked for, any other.

    :param shares: (adapters,) of each in the traffic; two or more.
    """

    def __init__(self, shares: Sequence[float]) -> None:
        self._shares = shares
        self._below = list(accumulate(shares, initial=0.0))
        self._uniform = UniformChoice(len(shares))

    def choose(self, requested: int, uniform: float) -> int:
        below, own = self._below, self._shares[requested] if requested < len(self._shares) else 0.0
        others = below[-1] - own
        if others <= below[-1] * 1e-12:  # what is left is rounding
            return self._uniform.choose(requested, uniform)
        place = uniform * others
        if own and place >= below[requested]:
            place += own
        chosen = bisect_right(below, place) - 1
        while chosen >= 0 and (chosen >= len(self._shares) or chosen == requested or self._shares[chosen] == 0):
            chosen -= 1  # rounding led to the edge of the one asked for, or beyond the last
        return chosen if chosen >= 0 else self._uniform.choose(requested, uniform)


def exchanged(adapters: int, share: float, key: int) -> dict[int, int]:
    """Return who takes whose place when a share of the adapters change places among each other.

    :param key: of the luck that chooses them.
    :returns: each of them and the adapter that a request for it reaches by the old map; all in one circle, so that
        nobody keeps its own place. Empty where that share is fewer than two.
    """
    chosen = sorted(range(adapters), key=lambda adapter: uniform_draw(key, adapter))[: round(share * adapters)]
    if len(chosen) < 2:
        return {}
    return dict(zip(chosen, [*chosen[1:], chosen[0]], strict=True))
