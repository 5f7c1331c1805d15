"""The router of a fleet, and the live state of the replicas that it reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sim.policies.routing import Router, RouterContext, View
from sim.policies.routing import make_router as make_policy
from sim.policies.routing.prefix_index import INDEX_BLOCKS, LEAST_BLOCK
from sim.rng import stream_key, uniform_draw
from sim.spec.engines import schedules_ahead
from sim.traffic.request import Request
from sim.world.replica.server import Server
from sim.world.routing.placement_controller import first_placement, placer_of
from sim.world.routing.router_views import Activity, BatchActivity, InFlightActivity, Residency, Sources
from sim.world.world import World


class ReplicaViews:
    """The views of all routers of a fleet, in which replicas go down and come up.

    :param views: each of some replicas, all of them up; a single one is of all, up or not.
    :param of_request: where there are several, that of the router of each request: by adapter, and last of the base
        model.
    """

    def __init__(self, views: Sequence[View], of_request: Sequence[View] = ()) -> None:
        self._views = [(view, None if len(views) == 1 else frozenset(view.up)) for view in views]
        self._of_request = of_request

    def none_up(self, request: Request) -> bool:
        """Return whether no replica that takes a request is up."""
        view = self._of_request[request.adapter] if self._of_request else self._views[0][0]
        return not view.up

    def goes_down(self, replica: int) -> None:
        """Exclude a replica from routing, if it isn't."""
        for view, _ in self._views:
            if replica in view.up:
                view.goes_down(replica)

    def comes_up(self, replica: int) -> None:
        """Include a replica in routing again."""
        for view, replicas in self._views:
            if replicas is None or replica in replicas:
                view.comes_up(replica)


class RouterInstances:
    """The router processes of a fleet. A session always uses the same one, other requests a random one.

    :param count: number of routers.
    """

    def __init__(self, count: int, seed: int, replication: int) -> None:
        self.count = count
        self._key = stream_key(seed, replication, "router-instance")

    def of(self, request: Request) -> int:
        """Return the number of the router for a request."""
        if self.count == 1:
            return 0
        number = request.index if request.session is None else ~request.session
        return int(uniform_draw(self._key, number) * self.count)


class RouterState:
    """The current state of the replicas, as far as the router reads it.

    :param reads: fields of the view that the router reads (``Router.reads``).
    :ivar residency: adapters on each replica; ``activity``: adapters in batches. Both follow the replicas only if the
        router reads them.
    :ivar counts: by replica, requests inside by adapter; ``InFlight`` updates them if the router reads them.
    """

    def __init__(self, adapters: int, replicas: int, reads: frozenset[str]) -> None:
        self.residency = Residency(adapters, replicas)
        self.activity = BatchActivity(adapters, replicas)
        self.counts: list[dict[int, int]] = [{} for _ in range(replicas)]
        self._reads = reads
        self._batches = False
        self._adapters = adapters

    def reads(self, field: str) -> bool:
        """Return whether the router reads a field of its view."""
        return field in self._reads

    def cache_listeners(self) -> list[Residency]:
        """Return what must know which adapters come to, and leave, the caches of the replicas."""
        return [] if self._reads.isdisjoint(("resident", "held", "copies")) else [self.residency]

    def replica(self, server: Server) -> None:
        """Follow a new server, which takes the place of the one with its index."""
        if self.reads("running"):
            self._batches = server.follow_batch(self.activity.replica)

    def sources(
        self, loads: list[int], inside: Callable[[], list[dict[int, int]]], servers: Sequence[Server]
    ) -> Sources:
        """Return the sources of the router's view.

        :param loads: by replica, number of requests inside; ``inside`` returns them by adapter.
        """
        activity: Activity = self.activity
        if self.reads("running") and not self._batches:
            activity = InFlightActivity(self._adapters, inside())
        return Sources(loads, self.residency, activity, inside, servers)


def make_router(world: World, view: View, replication: int) -> Router:
    """Return a router of one replication for the replicas that are up in a view, which are all that it ever chooses."""
    spec, traffic, first = world.scenario.router, world.traffic, world.pools[0]
    weights: Sequence[float] | None = None
    if spec.placement == "popularity":
        weights = traffic.shares().tolist()
    return make_policy(
        world.scenario.router_policy,
        RouterContext(
            view=view,
            replicas=world.replicas,
            key=stream_key(world.scenario.run.seed, replication, "router"),
            adapters=traffic.places,
            weights=weights,
            bound=spec.load_bound,
            placement=spec.placement,
            copies=spec.copies,
            homes=None if spec.placing is None else first_placement(first, placer_of(spec.placing, first, replication)),
            base_model=world.base_model,
            tenants=traffic.tenant_of is not None,
            spec=spec,
            # vLLM since its pull request 26801, in 0.11.1; the preset for 0.11 to 0.13 is that of 0.9.2.
            lists_twice=schedules_ahead(first.scenario.fleet.engine),
            block_tokens=max(LEAST_BLOCK, first.scenario.fleet.block_size),
            index_blocks=[
                (pool.kv_tokens or 0) // pool.scenario.fleet.block_size or INDEX_BLOCKS
                for pool in world.pools
                for _ in pool.indices
                if traffic.shares_text
            ],
        ),
    )
