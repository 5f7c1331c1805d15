"""Short runs of a scenario's traffic, at any multiple of it: for headroom, and for answers that can't wait.

They leave out what happens at given times, which a short run would not reach, and start with full caches, which a
short run would not fill.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sim.spec.scenario import Scenario
from sim.spec.sections.arrival_processes import (
    ClosedArrivals,
    DiurnalArrivals,
    MmppArrivals,
    OnOffArrivals,
    PiecewiseArrivals,
)
from sim.world.build import build_world
from sim.world.world import World

WARMUP = 0.2
"""Share of the requests at the start that is not measured: queues start empty."""
MOST = 40_000
"""Requests of a short run, at most, however bursty the traffic is."""
UNKNOWN = 5_000
"""Requests of a scenario whose traffic does not say how many it has."""
_LONGEST = 2
"""How many times as many requests a short run has at most where traffic changes with time."""
_BURSTIEST = 4.0
"""How many times as many a short run has at most where gaps vary more than those of Poisson arrivals."""


def steady(scenario: Scenario) -> Scenario:
    """Return a scenario without what happens at given times, and with full caches at the start unless it says more.

    An autoscaler leaves all the replicas that it may have.
    """
    cache = scenario.cache
    if "warm" not in cache.model_fields_set:
        cache = cache.model_copy(update={"warm": "steady"})
    fleet = scenario.fleet
    if fleet.autoscale is not None:
        fleet = fleet.model_copy(update={"replicas": fleet.autoscale.max, "autoscale": None})
    return scenario.model_copy(update={"rollouts": (), "faults": (), "cache": cache, "fleet": fleet})


@dataclass(frozen=True, slots=True)
class Traffic:
    """A scenario whose traffic can be multiplied, in runs that are as short as wanted.

    :ivar requests: of one replication of the scenario.
    """

    scenario: Scenario
    requests: int

    @staticmethod
    def of(scenario: Scenario) -> Traffic:
        world = build_world(scenario)
        return Traffic(scenario, world.traffic.expected_requests() or UNKNOWN)

    @property
    def closed(self) -> bool:
        """Whether the traffic is a closed loop."""
        return isinstance(self.scenario.workload.arrivals, ClosedArrivals)

    @property
    def changes(self) -> bool:
        """Whether traffic changes with time, so that a multiple of it must last as long to be alike."""
        workload = self.scenario.workload
        moving = (OnOffArrivals, PiecewiseArrivals, DiurnalArrivals, MmppArrivals)
        return isinstance(workload.arrivals, moving) or workload.drift is not None or workload.churn is not None

    @property
    def burstiness(self) -> float:
        """How many requests say as much of a count of arrivals as one of Poisson arrivals does: the squared ``cv``."""
        cv = getattr(self.scenario.workload.arrivals, "cv", 1.0)
        return min(max(1.0, cv * cv), _BURSTIEST)

    def world(self, multiple: float, requests: int) -> World:
        """Return the world at a multiple of the traffic.

        :param requests: at least; more where traffic is bursty or changes with time, or many clients send it, those of
            the trace where it is one.
        """
        changed: dict[str, Any]
        workload, run = self.scenario.workload, self.scenario.run
        warmup, requests = WARMUP, min(round(requests * self.burstiness), MOST)
        if workload.trace is not None:
            warmup, requests = run.warmup, min(self.requests, MOST)
            trace = workload.trace.model_copy(update={"time_scale": workload.trace.time_scale * multiple})
            changed = {"trace": trace}
        elif isinstance(workload.arrivals, ClosedArrivals):
            clients = max(1, round(workload.arrivals.concurrency * multiple))
            requests = min(max(requests, 8 * clients), MOST)
            changed = {"arrivals": workload.arrivals.model_copy(update={"concurrency": clients})}
        else:
            arrivals = workload.arrivals
            assert arrivals is not None, "traffic is a trace or arrives"
            if self.changes:
                requests = min(max(requests, round(multiple * self.requests)), _LONGEST * requests, MOST)
            changed = {"arrivals": arrivals.model_copy(update={"rate": arrivals.rate * multiple})}
        workload = workload.model_copy(update={**changed, "requests": requests, "duration": None})
        run = run.model_copy(update={"replications": 1, "warmup": warmup})
        return build_world(self.scenario.model_copy(update={"workload": workload, "run": run}))
