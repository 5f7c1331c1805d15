"""Routers of a fleet with pools: which pool a request goes to, and the router that chooses among its replicas.

Among replicas that swap full models, it looks for one that holds the model.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from sim.policies.routing.router_policy import Choosing, View
from sim.rng import UniformDraws


class ByRequest:
    """A router of its own for each kind of request.

    :param of: by adapter, and last of the base model.
    """

    def __init__(self, of: Sequence[Choosing]) -> None:
        self._choose = [router.choose for router in of]

    def choose(self, adapter: int, number: int) -> int:
        return self._choose[adapter](adapter, number)


@dataclass(frozen=True, slots=True)
class RoutedPool:
    """A pool as ``ByWeight`` sees it.

    :ivar router: chooses among its replicas.
    :ivar view: in which its replicas are up.
    :ivar weight: its share of the requests, relative to the other pools.
    :ivar full: requests in a replica from which it is full; None: it never is.
    """

    router: Choosing
    view: View
    weight: float
    full: int | None = None

    def has_room(self) -> bool:
        """Return whether any of its replicas is not full."""
        full, loads = self.full, self.view.loads
        return full is None or any(loads[replica] < full for replica in self.view.up)


class ByWeight:
    """A pool drawn by weight, then a replica of it; from a pool that is full, the next one that has room.

    :param pools: those that take the requests, in the order in which they pass requests on; at least one has a weight.
    :param key: of the draws. A request draws the same number in every design.
    """

    def __init__(self, pools: Sequence[RoutedPool], key: int) -> None:
        self._pools = tuple(pools)
        self._draws = UniformDraws(key)
        total = sum(pool.weight for pool in pools)
        self._edges = list(accumulate(pool.weight / total for pool in pools))
        self._last = max(place for place, pool in enumerate(pools) if pool.weight > 0)  # rounding draws none behind it

    def choose(self, adapter: int, number: int) -> int:
        pools, count = self._pools, len(self._pools)
        drawn = min(bisect_right(self._edges, self._draws.of(number)), self._last)
        for place in range(drawn, drawn + count):
            pool = pools[place % count]
            if pool.has_room():
                return pool.router.choose(adapter, number)
        return pools[drawn].router.choose(adapter, number)


class ToHolders:
    """A replica that holds the model; else one where requests already wait for it; else the one with the most room.

    Of several that hold or await it, the one with the fewest requests, the first of equal ones. Without the second
    rule, requests that come before the load begins would have the model loaded on all replicas. Room has the replica
    with the fewest requests, and of those the one that holds the fewest models; equal ones are drawn by the request's
    number: always taking the first would swap models there while other replicas are idle.

    :param view: of the replicas that swap full models; ``models``: all full models.
    """

    def __init__(self, view: View, models: Sequence[int], key: int) -> None:
        self._view = view
        self._models = models
        self._draws = UniformDraws(key)

    def choose(self, model: int, number: int) -> int:
        view, pool = self._view, self._view.up
        if len(pool) == 1:
            return pool[0]
        mask, inside, loads = view.resident[model], view.inside, view.loads
        there = [r for r in pool if mask >> r & 1] or [r for r in pool if model in inside[r]]
        if there:
            return min(there, key=loads.__getitem__)
        room = [(loads[r], sum(view.resident[other] >> r & 1 for other in self._models)) for r in pool]
        most = min(room)
        candidates = [r for r, each in zip(pool, room, strict=True) if each == most]
        return candidates[int(self._draws.of(number) * len(candidates))]
