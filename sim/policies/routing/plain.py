"""Routers that look at no adapter, and consistent hashing of adapters."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from hashlib import blake2b
from typing import ClassVar

from sim.policies.routing.router_policy import RouterContext, is_up, load_limit
from sim.rng import UniformDraws, uniform_draw

# Routers that don't look at the adapter.


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


# Consistent hashing with bounded loads: an adapter has a replica of its own, until that one is full or down.

POINTS = 128
"""Points of each replica on the ring. Shares of the ring then differ by about ``1 / sqrt(128)``, 9 %."""


class Hash:
    """Go round the ring from the adapter's point to the first replica that is up and not full.

    Karger et al., "Consistent hashing and random trees" (STOC 1997), with the bound on loads of Mirrokni, Thorup and
    Zadimoghaddam (SODA 2018). The ring follows from the key alone: a replica that comes back finds its adapters again,
    and when one leaves, the adapters of the others stay where they are, as far as the bound lets them. A request to the
    base model begins at a point of its own, drawn by its number: a single point would send them all to one replica.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"loads"})

    def __init__(self, context: RouterContext) -> None:
        self._view = context.view
        self._replicas = context.replicas
        self._bound = context.bound
        self._key = context.key.to_bytes(8, "little")
        self._base_model, self._base_key = context.base_model, context.key
        ring = sorted(
            (self._point(f"replica/{replica}/{i}"), replica)
            for replica in range(context.replicas)
            for i in range(POINTS)
        )
        self._points = [point for point, _ in ring]
        self._owners = [owner for _, owner in ring]
        self._starts = array("i")  # by adapter, where on the ring its walk begins; -1: not asked for so far

    def choose(self, adapter: int, number: int) -> int:
        loads, up, owners = self._view.loads, self._view.up, self._owners
        limit = None if self._bound is None else load_limit(self._bound, loads, up)
        all_up = len(up) == self._replicas
        place = self._anywhere(number) if adapter == self._base_model else self._start(adapter)
        while True:
            replica = owners[place]
            if (limit is None or loads[replica] < limit) and (all_up or is_up(replica, up)):
                return replica
            place += 1
            if place == len(owners):
                place = 0

    def _start(self, adapter: int) -> int:
        starts = self._starts
        if adapter >= len(starts):
            starts.extend([-1] * (max(adapter + 1, 2 * len(starts)) - len(starts)))
        start = starts[adapter]
        if start < 0:
            start = starts[adapter] = bisect_left(self._points, self._point(f"adapter/{adapter}")) % len(self._points)
        return start

    def _anywhere(self, number: int) -> int:
        point = int(uniform_draw(self._base_key, number) * 2.0**64)
        return bisect_left(self._points, point) % len(self._points)

    def _point(self, name: str) -> int:
        return int.from_bytes(blake2b(name.encode(), digest_size=8, key=self._key).digest(), "little")
