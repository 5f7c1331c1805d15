"""Short runs of a scenario's traffic, at any multiple of it: for headroom, and for answers that can't wait.

They leave out what happens at given times, which a short run would not reach, and start with full caches, which a
short run would not fill. Traffic that repeats itself is measured over whole periods, so that a rare burst counts as
much as it does in a long run. Where that takes too many requests, there is no short run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from sim.errors import InputError
from sim.spec.scenario import Scenario
from sim.spec.sections.traffic_laws import (
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
PERIODS = 2
"""Periods of traffic that repeats itself that a short run measures, at least."""
_CYCLES = 10
"""The same of traffic whose rate changes at random: in fewer, a burst may be missing by chance."""
_LONGEST = 2
"""How many times as many requests a short run has at most where traffic changes at random, to last as long as the
scenario."""
_NEARLY = 0.99
"""Share of a period, or of some of them, that is as good as the whole."""
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
    changed = {
        "rollouts": (),
        "faults": (),
        "adapters": scenario.adapters_without_rollouts,
        "cache": cache,
        "fleet": fleet,
    }
    return scenario.model_copy(update=changed)


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
        return self.scenario.workload.is_closed

    @property
    def period_s(self) -> float:
        """After how long the rate repeats itself, by the slowest of its parts; 0 where it is constant or a trace's."""
        arrivals, found = self.scenario.workload.arrivals, 0.0
        if isinstance(arrivals, PiecewiseArrivals):
            found = sum(step.time for step in arrivals.steps)
        elif isinstance(arrivals, DiurnalArrivals):
            found = arrivals.period
        return max([found, *(sum(step.time for step in tenant.steps) for tenant in self.scenario.tenants)])

    @property
    def most(self) -> float:
        """The largest multiple of the traffic of which a short run has whole periods; infinite where it has none."""
        needed = self._least_s * self._rate
        return (1 - WARMUP) * MOST / needed if needed else math.inf

    @property
    def fits(self) -> bool:
        """Whether a short run says what the scenario's own run does: both see all phases of the traffic."""
        return self.most >= 1 and self.period_s * self._rate * _NEARLY <= self.requests

    @property
    def _rate(self) -> float:
        rate: float = getattr(self.scenario.workload.arrivals, "rate", 0.0)  # closed loops and traces have none
        return rate

    @property
    def _cycle_s(self) -> float:
        """Return how long a rate that changes at random takes to go through its states, on average; 0: it doesn't."""
        arrivals = self.scenario.workload.arrivals
        if isinstance(arrivals, OnOffArrivals) and arrivals.per == "aggregate":
            return arrivals.on + arrivals.off
        return sum(state.time for state in arrivals.states) if isinstance(arrivals, MmppArrivals) else 0.0

    @property
    def _least_s(self) -> float:
        """Return how long a short run measures at least, at any multiple of the traffic."""
        return max(PERIODS * self.period_s, _CYCLES * self._cycle_s)

    @property
    def changes_over_s(self) -> float:
        """How long the traffic takes to go through its phases; 0 where it has none."""
        return max(self.period_s, self._cycle_s)

    @property
    def burstiness(self) -> float:
        """How many requests say as much of a count of arrivals as one of Poisson arrivals does: the squared ``cv``, of
        the burstiest tenant."""
        own = [tenant.cv for tenant in self.scenario.tenants if tenant.cv is not None]
        cv = max([getattr(self.scenario.workload.arrivals, "cv", 1.0), *own])
        return min(max(1.0, cv * cv), _BURSTIEST)

    def world(self, multiple: float, requests: int, *, overloaded: bool = False) -> World:
        """Return the world at a multiple of the traffic.

        :param requests: at least; more where traffic is bursty or changes with time, or many clients send it, those of
            the trace where it is one.
        :param overloaded: whether far more arrives than is served, so that it doesn't matter when; then all of it
            reaches the replicas, as if no tenant had a token bucket.
        :raises InputError: where whole periods of the traffic are too many requests, or the world can't be built.
        """
        changed: dict[str, Any]
        workload, run = self.scenario.workload, self.scenario.run
        warmup, requests = WARMUP, min(round(requests * self.burstiness), MOST)
        if workload.trace is not None:
            warmup, requests = run.warmup, min(self.requests, MOST)
            trace = workload.trace.model_copy(update={"time_scale": workload.trace.time_scale * multiple})
            changed = {"trace": trace}
        elif workload.client is not None:
            client = workload.client.model_copy(update=workload.client.more(multiple))
            changed = {"client": client}
            warmup, requests = run.warmup, min(client.num_prompts, MOST)
        elif isinstance(workload.arrivals, ClosedArrivals):
            clients = max(1, round(workload.arrivals.concurrency * multiple))
            requests = min(max(requests, 8 * clients), MOST)
            changed = {"arrivals": workload.arrivals.model_copy(update={"concurrency": clients})}
        else:
            arrivals = workload.arrivals
            assert arrivals is not None, "traffic is a trace or arrives"
            if workload.drift or workload.churn or isinstance(arrivals, (OnOffArrivals, MmppArrivals)):
                requests = min(max(requests, round(multiple * self.requests)), _LONGEST * requests, MOST)
            changed = {"arrivals": arrivals.model_copy(update={"rate": arrivals.rate * multiple})}
            if not overloaded:
                warmup, requests = self._whole_periods(multiple, requests)
        workload = workload.model_copy(update={**changed, "requests": requests, "duration": None})
        run = run.model_copy(update={"replications": 1, "warmup": warmup})
        tenants = self.scenario.tenants
        if overloaded:
            tenants = tuple(tenant.model_copy(update={"bucket": None}) for tenant in tenants)
        return build_world(self.scenario.model_copy(update={"workload": workload, "run": run, "tenants": tenants}))

    def _whole_periods(self, multiple: float, requests: int) -> tuple[float, int]:
        """Return the share of a warm-up and the requests of a short run that measures whole periods."""
        if multiple > self.most:
            raise InputError("whole periods of this traffic are too many requests for a short run")
        first, period = WARMUP * requests, self.period_s * self._rate * multiple
        measured = max(requests - first, self._least_s * self._rate * multiple)
        if period:
            measured = period * math.ceil(measured / period * _NEARLY)
        requests = min(round(first + measured), MOST)
        return first / requests, requests
