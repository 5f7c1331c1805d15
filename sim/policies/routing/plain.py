"""Routers that don't look at the adapter."""

from __future__ import annotations

from bisect import bisect_left
from typing import ClassVar

from sim.policies.routing.router_policy import RouterContext
from sim.rng import UniformDraws


class RoundRobin:
    """Replicas in turn; one that is down is skipped."""

    reads: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, context: RouterContext) -> None:
        self._view = context.view
        self._replicas = context.replicas
        self._next = 0

    def choose(self, adapter: int, number: int) -> int:
        chosen, up = self._next, self._view.up
        if len(up) < self._replicas:
            place = bisect_left(up, chosen)
            chosen = up[place] if place < len(up) else up[0]
        self._next = (chosen + 1) % self._replicas
        return chosen


class Random:
    """Any replica, each as likely."""

    reads: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, context: RouterContext) -> None:
        self._view = context.view
        self._draws = UniformDraws(context.key)

    def choose(self, adapter: int, number: int) -> int:
        up = self._view.up
        return up[int(self._draws.of(number) * len(up))]


class LeastLoaded:
    """The replica with the fewest requests in it; of several, the first."""

    reads: ClassVar[frozenset[str]] = frozenset({"loads"})

    def __init__(self, context: RouterContext) -> None:
        self._view = context.view

    def choose(self, adapter: int, number: int) -> int:
        loads, up = self._view.loads, self._view.up
        chosen = up[0]
        least = loads[chosen]
        # Not min(): compiled, loops take a fifth of its time; interpreted, as long for ten replicas.
        if len(up) < len(loads):
            for replica in up:
                if loads[replica] < least:
                    chosen, least = replica, loads[replica]
            return chosen
        for replica, load in enumerate(loads):
            if load < least:
                chosen, least = replica, load
        return chosen


class PowerOfTwo:
    """Of two different random replicas the one with fewer requests; of two equal ones, the one drawn first."""

    reads: ClassVar[frozenset[str]] = frozenset({"loads"})

    def __init__(self, context: RouterContext) -> None:
        self._view = context.view
        self._draws = UniformDraws(context.key)

    def choose(self, adapter: int, number: int) -> int:
        loads, up = self._view.loads, self._view.up
        others = len(up) - 1
        if others == 0:
            return up[0]
        # One number draws an ordered pair: the second of the others, counted without the first.
        first, second = divmod(int(self._draws.of(number) * len(up) * others), others)
        if second >= first:
            second += 1
        one, two = up[first], up[second]
        return two if loads[two] < loads[one] else one
