"""Clients of a closed loop that wait for what lies between them and the engine."""

from __future__ import annotations

from dataclasses import replace

from sim.spec.sections.arrival_processes import ClosedArrivals
from sim.spec.sections.laws import FixedTime
from sim.traffic.generate import Traffic
from sim.world.world import World


class _WaitingTraffic(Traffic):
    """The requests of another traffic, with its files already read; only the clients' time to think differs."""

    def __init__(self, traffic: Traffic, think_s: float) -> None:
        self.__dict__.update(vars(traffic))
        self._think = FixedTime.model_construct(law="fixed", value=think_s)  # seconds, which a file can't give bare

    @property
    def closed_loop(self) -> ClosedArrivals | None:
        """The closed loop with this time to think; None in an open loop."""
        law = super().closed_loop
        return None if law is None else law.model_copy(update={"think": self._think})


def with_client_wait(world: World, outside_s: float) -> World:
    """Return a world whose clients wait for so many seconds before each request; in an open loop, the same world.

    The simulation sees a request only inside the engine. A client with one request in flight sends the next one when
    it has the answer, so time outside the engine delays the engine's next request as time to think does.

    :param outside_s: seconds of each request between client and engine.
    """
    if world.traffic.closed_loop is None:
        return world
    return replace(world, traffic=_WaitingTraffic(world.traffic, outside_s))
