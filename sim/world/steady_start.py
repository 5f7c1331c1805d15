"""Which adapters each replica used last before the start, for caches that start full (``cache.warm: steady``)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sim.policies.routing import Choosing, View
from sim.policies.routing.placed import Placed
from sim.world.pools.pool_routing import route
from sim.world.replica_draws import ReplicaDraws
from sim.world.world import World


class SteadyStart:
    """The recent past of a fleet: independent requests, drawn by popularity.

    A router that splits adapters is asked where it would send each of them in an idle fleet; one that follows a
    placement, where each is placed.

    :param fleet: the world of the whole fleet, if ``world`` is that of a pool of it.
    """

    def __init__(self, world: World, replication: int, fleet: World | None = None) -> None:
        self._shares = np.where(world.takes[: world.traffic.places], world.shares, 0.0)
        self._shares[list(world.pinned)] = 0.0
        self._sent_to = _adapters_sent(fleet or world, replication)

    def last_used(self, replica: int, draws: ReplicaDraws) -> tuple[int, ...]:
        """Return the adapters of a replica, the last used first; those that are never requested are left out.

        Going back in time, independent requests meet adapters in the order of exponential times at the rates of their
        shares, and so the first of them are what an LRU cache holds.
        """
        used = np.flatnonzero((self._shares > 0) & self._sent_to(replica))
        ages = draws.stream("steady-start").exponential(size=len(self._shares))[used] / self._shares[used]
        return tuple(used[np.argsort(ages, kind="stable")].tolist())


def _adapters_sent(world: World, replication: int) -> Callable[[int], NDArray[np.bool_]]:
    """Return a function from a replica to the mask of adapters whose requests the router may send there."""
    if not world.scenario.router_policy.splits_adapters or world.replicas == 1:
        all_adapters = np.ones(world.traffic.places, dtype=np.bool_)
        return lambda replica: all_adapters
    if world.scenario.router.placing is not None:
        all_homes = _all_homes(world, replication)
        return lambda replica: np.array([replica in homes for homes in all_homes])
    owners = _owners(world, replication)
    return lambda replica: owners == replica


def _owners(world: World, replication: int) -> NDArray[np.int64]:
    """Return to which replica each adapter's requests go as long as the fleet is idle."""
    router = _idle_router(world, replication)
    return np.array([router.choose(adapter, adapter) for adapter in range(world.traffic.places)])


def _all_homes(world: World, replication: int) -> list[tuple[int, ...]]:
    """Return the replicas to which each adapter's requests go."""
    router = _idle_router(world, replication)
    assert isinstance(router, Placed), "it follows a placement"
    return [router.all_homes(adapter) for adapter in range(world.traffic.places)]


def _idle_router(world: World, replication: int) -> Choosing:
    """Return the router of an idle fleet."""
    replicas, adapters = world.replicas, len(world.population)

    def idle(up: list[int]) -> View:
        return View(
            loads=[0] * replicas,
            up=up,
            resident=[0] * adapters,
            running=[0] * adapters,
            inside=[{} for _ in range(replicas)],
        )

    return route(world, replication, idle).router
