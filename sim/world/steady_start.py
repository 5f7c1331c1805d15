"""Which adapters each replica used last before the start, for caches that start full (``cache.warm: steady``)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sim.policies.routing import View
from sim.world.pools.pool_routing import route
from sim.world.replica_draws import ReplicaDraws
from sim.world.world import World


class SteadyStart:
    """The recent past of a fleet: independent requests, drawn by popularity.

    A router that splits adapters is asked where it would send each of them in an idle fleet.

    :param fleet: the world of the whole fleet, if ``world`` is that of a pool of it.
    """

    def __init__(self, world: World, replication: int, fleet: World | None = None) -> None:
        assert world.shares is not None, "caches start full"
        fleet = fleet or world
        taken = ~world.traffic.population.full if world.takes is None else world.takes
        self._shares = np.where(taken[: world.traffic.places], world.shares, 0.0)
        self._shares[list(world.pinned)] = 0.0
        self._owner: NDArray[np.int64] | None = None
        if world.scenario.router_policy.splits_adapters and fleet.replicas > 1:
            self._owner = _owners(fleet, replication)

    def last_used(self, replica: int, draws: ReplicaDraws) -> tuple[int, ...]:
        """Return the adapters of a replica, the last used first; those that are never requested are left out.

        Going back in time, independent requests meet adapters in the order of exponential times at the rates of their
        shares, and so the first of them are what an LRU cache holds.
        """
        asked = self._shares > 0 if self._owner is None else (self._shares > 0) & (self._owner == replica)
        used = np.flatnonzero(asked)
        ages = draws.stream("steady-start").exponential(size=len(self._shares))[used] / self._shares[used]
        return tuple(used[np.argsort(ages, kind="stable")].tolist())


def _owners(world: World, replication: int) -> NDArray[np.int64]:
    """Return to which replica each adapter's requests go as long as the fleet is idle."""
    replicas, adapters = world.replicas, len(world.population)

    def idle(up: list[int]) -> View:
        return View(
            loads=[0] * replicas,
            up=up,
            resident=[0] * adapters,
            running=[0] * adapters,
            inside=[{} for _ in range(replicas)],
        )

    router = route(world, replication, idle).router
    return np.array([router.choose(adapter, adapter) for adapter in range(world.traffic.places)])
