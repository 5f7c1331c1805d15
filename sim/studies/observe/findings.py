"""What metrics measured beside what the simulated scenario does."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from sim.spec.scenario import Scenario
from sim.studies.observe.study import BucketQuantile, ObservedService
from sim.studies.predicted_service import Latency, PredictedService, predict_service
from sim.world.build import build_world
from sim.world.world import World

SIMULATED_REQUESTS, REPLICATIONS = 5_000, 4
QUANTILES = (0.5, 0.9, 0.99)

_LATENCIES: tuple[Latency, ...] = ("ttft", "itl", "tpot", "e2e")
"""Not the time in queue: vLLM's begins when the engine takes a request, after the step that was running."""


@dataclass(frozen=True, slots=True)
class ComparedMetric:
    """One row.

    :ivar measured: the value; of a quantile, one that is interpolated within ``bucket``.
    :ivar simulated: NaN where the simulation has none.
    """

    name: str
    measured: float
    simulated: float
    bucket: BucketQuantile | None = None

    @property
    def error(self) -> float | None:
        """Simulated over measured, minus 1; of a quantile over the nearer bound of its bucket, within which it is None.

        Where in its bucket a quantile lies is not known, so the difference is at least that.
        """
        measured = self.measured
        if self.bucket is not None:
            measured = self.bucket.low if self.simulated < self.bucket.low else self.bucket.high
        if self.within or not measured or not math.isfinite(self.simulated):
            return None
        return self.simulated / measured - 1

    @property
    def within(self) -> bool:
        """Whether the simulated value is in the same bucket as the measured one."""
        return self.bucket is not None and self.bucket.holds(self.simulated)


def observed_world(scenario: Scenario) -> World:
    """Return the world of a scenario of measured traffic, with ``SIMULATED_REQUESTS`` at most."""
    few = min(scenario.workload.requests or SIMULATED_REQUESTS, SIMULATED_REQUESTS)
    workload = scenario.workload.model_copy(update={"requests": few, "duration": None})
    return build_world(scenario.model_copy(update={"workload": workload}))


def compare_observed(service: ObservedService, scenario: Scenario) -> tuple[list[ComparedMetric], tuple[str, ...]]:
    """Simulate a scenario of the measured traffic, and compare; return notes, too.

    Engines take the time of a request from its arrival in the API server, so the time in the front end counts for TTFT
    and E2E.
    """
    world = observed_world(scenario)
    seen = len(service.adapters.names)
    notes = world.notes
    if seen and seen >= len(world.traffic.population):
        more = f"metrics name only adapters that had requests, {seen} of them: raise adapters.count if there are more"
        if scenario.workload.popularity.law == "groups":
            more += ", and add a group for these to workload.popularity.groups"
        notes = (more, *notes)
    used = [pool.profile for pool in world.pools if pool.profile is not None]
    simulated = dict.fromkeys(f"simulated: {each.model} on {each.device}, profile {each.name}" for each in used)
    return list(_rows(service, predict_service(world, REPLICATIONS))), (*simulated, *notes)


def _rows(service: ObservedService, predicted: PredictedService) -> Iterator[ComparedMetric]:
    # requests that were aborted are simulated to their end
    yield ComparedMetric("requests_per_s", service.ended / service.seconds, predicted.requests_per_s)
    if service.output_total is not None:
        measured = service.output_total / service.seconds
        yield ComparedMetric("output_tokens_per_s", measured, predicted.output_tokens_per_s)
    if service.in_flight is not None:
        yield ComparedMetric("in_flight", service.in_flight, predicted.running + predicted.waiting)
    if service.running is not None:
        yield ComparedMetric("running", service.running, predicted.running)
    if service.waiting is not None:
        yield ComparedMetric("waiting", service.waiting, predicted.waiting)
    for kind in _LATENCIES:
        histogram = service.histograms.get(kind)
        if histogram is None:
            continue
        if histogram.mean is not None:
            yield ComparedMetric(f"{kind}_mean_s", histogram.mean, predicted.mean(kind))
        for share in QUANTILES:
            bucket = histogram.quantile(share)
            simulated = predicted.quantile(kind, share)
            yield ComparedMetric(f"{kind}_p{share * 100:.0f}_s", bucket.value, simulated, bucket)
    if service.prefix_hits is not None and predicted.prefix_hits is not None:
        yield ComparedMetric("prefix_hits", service.prefix_hits, predicted.prefix_hits)
