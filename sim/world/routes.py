"""The router of a fleet, and the live state that it looks at."""

from __future__ import annotations

from collections.abc import Sequence

from sim.policies.routing import ROUTERS, Router, Setting, View
from sim.rng import stream_key
from sim.world.batch import BatchServer
from sim.world.server import Server
from sim.world.views import Residency, Sources
from sim.world.world import World


class Live:
    """What can be seen of the replicas at any time.

    :ivar residency: who has which adapter; None where the router doesn't ask.
    :ivar counts: by replica, requests inside by adapter; kept by ``Changes`` where the router asks.
    """

    def __init__(self, adapters: int, replicas: int, router: Router) -> None:
        self.residency = Residency(adapters, replicas) if "resident" in router.reads else None
        self.counts: list[dict[int, int]] = [{} for _ in range(replicas)]
        self._running: list[dict[int, int]] = [{}] * replicas

    def replica(self, index: int, server: Server) -> None:
        """Note which server stands at an index: a batch is its own; in an engine without one, all inside run."""
        self._running[index] = server.scheduler.adapters if isinstance(server, BatchServer) else self.counts[index]

    def sources(self, loads: list[int]) -> Sources:
        """Return what views are read from.

        :param loads: by replica, requests inside.
        """
        return Sources(loads, self.residency, self._running, self.counts)


def make_router(world: World, view: View, replication: int) -> Router:
    """Return the router of one replication."""
    spec, traffic = world.scenario.router, world.traffic
    weights: Sequence[float] | None = None
    if spec.policy == "service-per-adapter" and spec.placement == "popularity":
        weights = traffic.shares().tolist()
    return ROUTERS[spec.policy](
        Setting(
            view, world.scenario.fleet.replicas, stream_key(world.scenario.run.seed, replication, "router"),
            traffic.places, weights, spec.load_bound, spec.placement, spec.copies,
        )
    )  # fmt: skip
