"""The routers of one replication: one for a fleet of one kind, or one for each set of replicas that take a request."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from sim.policies.routing import Choosing, RouterContext, View
from sim.policies.routing.plain import LeastLoaded
from sim.policies.routing.pool_router import ByRequest, ByWeight, RoutedPool, ToHolders
from sim.policies.routing.router_policy import Following
from sim.rng import stream_key
from sim.spec.scenario import Scenario
from sim.spec.sections.serving import FullModels
from sim.world.routing.router_state import make_router
from sim.world.world import Pool, World


class Routing:
    """The routers of a fleet and the views behind them; a set of replicas has one router, whatever requests it takes.

    Replicas of all pools that take a request are candidates of the scenario's router. If pools have weights, it
    chooses among the replicas of the pool that was drawn.

    :param new_view: makes the view of a router that chooses among some replicas.
    :ivar router: of all requests.
    :ivar hand_over: chooses who answers, where prompts are computed by other replicas.
    :ivar views: read as often as ``router.staleness`` says; ``reads``: the fields that are read.
    :ivar current: views that are always current; ``current_reads``: the fields that are read.
    :ivar of_request: where there are several views, that of each request: by adapter, and last of the base model.
    :ivar following: routers that keep count of the requests inside replicas.
    """

    def __init__(self, world: World, replication: int, new_view: Callable[[list[int]], View]) -> None:
        self._world, self._replication, self._new_view = world, replication, new_view
        self._made: dict[tuple[int, ...], tuple[Choosing, View]] = {}
        self.views: list[View] = []
        self.reads: frozenset[str] = frozenset()
        self.current: list[View] = []
        self.current_reads: frozenset[str] = frozenset()
        self.of_request: list[View] = []
        self.following: list[Following] = []
        self.hand_over: Choosing | None = None
        pools = [pool for pool in world.pools if pool.role != "decode"]
        kinds, of_kind = _kinds_of_requests(pools, world.base_model)
        routers = [self._router([pool for pool in pools if pool.takes[adapter]] or pools[:1]) for adapter in of_kind]
        self.router: Choosing = routers[0] if len(routers) == 1 else ByRequest([routers[kind] for kind in kinds])
        if len(self._made) > 1:
            views = {id(router): view for router, view in self._made.values()}
            of_kind_views = [views.get(id(router)) for router in routers]
            self.of_request = [view for kind in kinds if (view := of_kind_views[kind]) is not None]
        if len(pools) < len(world.pools):
            self.hand_over = self._among([pool for pool in world.pools if pool.role == "decode"])[0]

    def _router(self, pools: Sequence[Pool]) -> Choosing:
        spec = pools[0].whole_models
        if spec is not None:
            return self._of_full_models(pools[0], spec)
        router = self._world.scenario.router
        if router.pools == "together" or len(pools) == 1:
            return self._among(pools)[0]
        routed = []
        for pool in pools:
            own, view = self._among([pool])
            routed.append(RoutedPool(own, view, pool.weight, _full_at(pool.scenario)))
        if router.spill is not None:
            self.reads |= {"loads"}
        return ByWeight(routed, stream_key(self._world.scenario.run.seed, self._replication, "pool"))

    def _among(self, pools: Sequence[Pool]) -> tuple[Choosing, View]:
        indices = tuple(index for pool in pools for index in pool.serving)  # an autoscaler's other places are down
        if indices not in self._made:
            view = self._new_view(list(indices))
            router = make_router(self._world, view, self._replication)
            self.views.append(view)
            self.reads |= router.reads
            if isinstance(router, Following):
                self.following.append(router)
            self._made[indices] = (router, view)
        return self._made[indices]

    def _of_full_models(self, pool: Pool, spec: FullModels) -> Choosing:
        """Return a router that always sees the current state."""
        view = self._new_view(list(pool.indices))
        self.current.append(view)
        self.current_reads |= {"loads"}
        router: Choosing = LeastLoaded(RouterContext(view, self._world.replicas, 0, 0))
        if spec.serve == "swap":
            if pool.replicas > 1:
                self.current_reads |= {"resident", "inside"}
            key = stream_key(self._world.scenario.run.seed, self._replication, "full-model-router")
            router = ToHolders(view, np.flatnonzero(pool.takes).tolist(), key)
        self._made[tuple(pool.indices)] = (router, view)
        return router


def _kinds_of_requests(pools: Sequence[Pool], adapters: int) -> tuple[list[int], list[int]]:
    """Return requests by the pools that take them: the kind of each adapter, last that of the base model, and an
    adapter of each kind (-1: the base model)."""
    kinds: NDArray[np.int64] = np.zeros(adapters + 1, dtype=np.int64)
    for pool in pools:
        kinds = np.unique(2 * kinds + pool.takes, return_inverse=True)[1].reshape(-1)
    _, first = np.unique(kinds, return_index=True)
    return kinds.tolist(), [-1 if place == adapters else int(place) for place in first]


def _full_at(scenario: Scenario) -> int | None:
    """Return the requests in a replica from which it passes others on; None: it never does."""
    spill = scenario.router.spill
    if spill == "full":
        return 1 if scenario.fleet.engine == "fixed" else scenario.fleet.max_num_seqs
    return spill
