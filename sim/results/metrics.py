"""From the recordings of a point's replications to its metrics: what the estimates of the catalogue are made of.

Those of rollouts are in ``change_metrics``, of scaling, placement and costs in ``fleet_metrics``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Sequence
from dataclasses import replace
from functools import cached_property
from weakref import proxy

import numpy as np

from sim.arrays import Floats
from sim.results.catalogue import CATALOGUE, ONLY_WITH_PRICE, UNITS, Definition
from sim.results.change_metrics import ChangeMetrics
from sim.results.fleet_metrics import GpuHours, PlacementMetrics, ScalingMetrics
from sim.results.metric_state import MANY_TIMES, SETTLED, Cause, State
from sim.results.point import Metric, Usage
from sim.results.recording.leaps import gap_bin_edges
from sim.results.records import Recording
from sim.results.sample_data import MeasuredRequests, ScenarioFacts, joined_columns
from sim.results.served import attainment
from sim.results.statistics import (
    ENOUGH_FOR_SHARE,
    ENOUGH_REPLICATIONS,
    MIN_FOR_P99,
    Sampled,
    estimate,
    histogram_quantile,
    kept,
    mean_count,
    ratio,
    share_by_size,
    spread_over,
)
from sim.spec.units import round_up
from sim.traffic.request import MISS

BUSY = 0.95
"""A loader or server busier than this leaves latencies unsettled: their queue has not reached its mean."""
MEASURED = frozenset(UNITS) - ONLY_WITH_PRICE
"""The metrics of a fleet; costs are those of ``measured_usage``."""


def measure(
    recordings: list[Recording], facts: ScenarioFacts, least_for_p99: int = MIN_FOR_P99
) -> tuple[dict[str, Metric], Measured]:
    """Return the metrics of the catalogue that apply over all replications, and the measured requests."""
    m = Measured(recordings, facts, least_for_p99)
    return metrics_of(m, MEASURED), m


def metrics_of(m: Measured, names: Container[str]) -> dict[str, Metric]:
    """Return those of these metrics that apply to some requests, in the order of the catalogue."""
    return {each.name: metric for each in CATALOGUE.values() if each.name in names and (metric := _of(each, m))}


def measured_usage(m: Measured) -> Usage:
    """Return the usage of all replications, as costs at a price of 1 per GPU hour."""
    costs = (each for each in CATALOGUE.values() if each.name in ONLY_WITH_PRICE)
    return Usage(m.facts.gpus, {each.name: metric for each in costs if (metric := _of(each, m))})


def _of(definition: Definition, m: Measured) -> Metric | None:
    """Return a metric, unsettled where it is a latency of a fleet that is nearly full."""
    metric = definition.of(m)
    if metric is not None and metric.value is not None and definition.is_latency and m.near_saturation is not None:
        return replace(metric, state=m.near_saturation)
    return metric and m.with_requests(metric)


class Measured(MeasuredRequests):
    """The measured requests, and what metrics are made of (``sim.results.catalogue``).

    Its parts know it by a proxy. In a reference cycle the columns of all its requests would stay in memory until the
    collector runs, which is seldom where objects are few and large.
    """

    @cached_property
    def changes(self) -> ChangeMetrics:
        """What rollouts and faults did."""
        return ChangeMetrics(proxy(self))

    @cached_property
    def scaling(self) -> ScalingMetrics:
        """What an autoscaler did."""
        return ScalingMetrics(proxy(self))

    @cached_property
    def placement(self) -> PlacementMetrics:
        """What a placement controller did."""
        return PlacementMetrics(proxy(self))

    @cached_property
    def gpu_hours(self) -> GpuHours:
        """What costs are made of."""
        return GpuHours(proxy(self))

    def ratio(self, over: Floats, under: Floats, unit: str = "1", *, highest: float = math.inf) -> Metric:
        """Return the ratio of two sums over sections; see ``statistics.ratio``."""
        if self.alone:
            return ratio(over.sum(keepdims=True), under.sum(keepdims=True), 1, unit, highest=highest)
        return ratio(over, under, self.sections, unit, highest=highest)

    def mean_count(self, each: Floats, unit: str) -> Metric:
        """Return the mean of one count a replication."""
        return mean_count(each, unit)

    def mean_of_replications(self, each: Floats, unit: str) -> Metric:
        """Return the mean of one value a replication, which is not a count."""
        return spread_over(float(each.mean()), each, unit)

    def with_requests(self, metric: Metric) -> Metric:
        """Return a metric with the number of requests for a run that is long enough, rounded up to two digits."""
        if self.facts.seed is None and metric.state != SETTLED:
            metric = replace(metric, state=replace(metric.state, recorded=True))
        if metric.state != SETTLED and self.facts.spans and self.facts.spans[0].cycle_s > 0.9 * self.spans.min():
            return replace(metric, state=replace(metric.state, by_cycle=True))
        once = self.facts.seed is not None and (self.facts.strategies or self.facts.faults_from_s < math.inf)
        if metric.state != SETTLED and once:
            return replace(metric, state=replace(metric.state, once=True))
        times, requests = metric.state.times_longer, self.facts.requests
        if times is None or times > MANY_TIMES or requests is None or metric.state.once:
            return metric
        return replace(metric, state=replace(metric.state, requests=round_up(requests * times)))

    # Of admitted requests for adapters ------------------------------------------------------------------------------

    @cached_property
    def _few(self) -> Metric | None:
        count = int(self.admitted_with_adapter.sum())
        if 0 < count < self.least_for_ratio:
            return Metric(None, unit="1", state=State(Cause.FEW_REQUESTS, count, self.least_for_ratio))
        return None

    @cached_property
    def _asked(self) -> Floats:
        return self.count(self.admitted_with_adapter)

    def outcomes(self, outcome: int) -> Metric:
        """Return the share of the requests that found their adapter so."""
        if self._few is not None:
            return self._few
        admitted = self.admitted_with_adapter
        chosen = self.column("outcome") == outcome
        if self.alone:
            return self.ratio(self.count(admitted & chosen), self._asked, highest=1)
        series = self.sampled(chosen[admitted].astype(np.float64), admitted).by_replication()
        found = self.count(admitted & chosen)
        return share_by_size(found, self._asked, self.sections, series, ENOUGH_FOR_SHARE, cyclic=self.cyclic)

    def byte_misses(self) -> Metric:
        """Return the adapter bytes of the requests that missed, over those of all."""
        if self._few is not None:
            return self._few
        sizes = self.facts.size_bytes[self.column("adapter")].astype(np.float64)
        missed = self.admitted_with_adapter & (self.column("outcome") == MISS)
        return self.ratio(self.count(missed, sizes), self.count(self.admitted_with_adapter, sizes), highest=1)

    def loads_per_request(self) -> Metric:
        """Return the loads from any tier over the requests."""
        return self._few or self.ratio(self.loads("all")[0], self._asked)

    def of_admitted(self, column: str) -> Floats:
        """Return the sum of a column over all admitted requests, by section."""
        return self.count(self.admitted, self.column(column))

    def prefix_ttft(self, *, hit: bool) -> Metric:
        """Return the mean TTFT of the requests that found any of their prompt cached, or of the others."""
        chosen = self.completed & ((self.column("cached_tokens") > 0) == hit)
        ttft = self.column("first_token_s") - self.column("arrival_s")
        return self.sampled(ttft[chosen], chosen).mean("s")

    # Of time --------------------------------------------------------------------------------------------------------

    @cached_property
    def loaders_busy(self) -> Metric:
        """The share of the time in which loaders load."""
        places = self.replica_seconds(self.facts.loaders) if self.autoscaled else self.spans * self.facts.loader_places
        return self.ratio(self.loading_s(), places, highest=1)

    @cached_property
    def gpus_busy(self) -> Metric:
        """The share of the time in which steps run."""
        busy = np.concatenate([r.busy_s for r in self.recordings])
        return self.with_requests(self.ratio(busy, self.replica_seconds(1), highest=1))

    @cached_property
    def near_saturation(self) -> State | None:
        """The state of latencies near saturation, where intervals don't show what a longer run would; else None."""
        server = self.gpus_busy.value if self.facts.fixed else None  # a batch engine is busy at any load
        if server is not None and server > BUSY:
            return State(Cause.SERVER_BUSY, share=server)
        loader = self.loaders_busy.value
        return State(Cause.LOADER_BUSY, share=loader) if loader is not None and loader > BUSY else None

    # Of tokens ------------------------------------------------------------------------------------------------------

    @cached_property
    def tpots(self) -> Sampled:
        """TPOT of the requests with several output tokens."""
        several = self.completed & (self.column("output_tokens") > 1)
        decode = (self.column("finished_s") - self.column("first_token_s"))[several]
        return self.sampled(decode / (self.column("output_tokens")[several] - 1), several)

    @cached_property
    def _gap_counts(self) -> tuple[np.ndarray[tuple[int, int], np.dtype[np.int64]], Floats]:
        """Gaps by section and bin, and the edges of these bins."""
        used = np.flatnonzero(np.any([r.gap_counts.any(axis=0) for r in self.recordings], axis=0))
        bins = slice(used[0], used[-1] + 1) if len(used) else slice(0)  # few of all bins: the others take time, too
        counts = joined_columns([r.gap_counts[:, bins] for r in self.recordings])
        return counts.sum(axis=0, keepdims=True) if self.alone else counts, gap_bin_edges()[bins]

    def itl_mean(self) -> Metric:
        """Return the mean gap."""
        sums = np.concatenate([r.gap_sum_s for r in self.recordings])
        return self.ratio(sums, self._gap_counts[0].sum(axis=1).astype(np.float64), "s")

    def itl_quantile(self, q: float) -> Metric:
        """Return a quantile of the gaps."""
        counts, edges = self._gap_counts
        by_replication = counts.reshape(self.replications, len(counts) // self.replications, -1).sum(axis=1)
        return estimate(
            histogram_quantile(counts.sum(axis=0), edges, q),
            np.array([histogram_quantile(row, edges, q) for row in counts]),
            np.array([histogram_quantile(row, edges, q) for row in by_replication]),
            "s",
        )

    # Of targets -----------------------------------------------------------------------------------------------------

    def goodput(self) -> Metric:
        """Return the requests per second within every target for single requests."""
        assert self.good is not None, "there are targets"
        return self.ratio(self.measured_by_finish(self.good), self.spans, "1/s")

    def attainment(self) -> Metric:
        """Return the share of the requests within every target for single requests."""
        assert self.good is not None, "there are targets"
        assert self.slow is not None, "there are targets"
        return attainment(self, self.good, self.slow)

    # Counts ---------------------------------------------------------------------------------------------------------

    def total(self, by_section: Floats, unit: str) -> Metric:
        """Return a count of what a run consists of: exact, so without an interval, but with parts to compare it by."""
        enough = self.replications >= ENOUGH_REPLICATIONS
        parts = by_section.reshape(-1, self.sections).sum(axis=1) if enough else by_section
        return Metric(int(by_section.sum()), unit=unit, parts=kept(parts))

    def summed(self, column: str) -> Floats:
        """Return the sum of a column over all measured requests, by section."""
        return self.count(np.ones(len(self.section), dtype=bool), self.column(column))

    def of_whole_runs(self, each: Sequence[int]) -> Metric:
        """Return a count of whole runs, which no section has a part of."""
        counts = np.array(each, dtype=np.float64)
        return Metric(int(counts.sum()), unit="1", parts=kept(counts))

    def offload_hits(self) -> Floats:
        """Return the share of the prompt tokens of each replication whose KV came from host memory."""
        prompts = [max(1, int(r.requests["prompt_tokens"].sum())) for r in self.recordings]
        return np.array([r.facts["kv_loaded_tokens"] for r in self.recordings]) / prompts

    def drafted(self, of: Callable[[float, float, float], float]) -> Floats:
        """Return a value of each replication, from its drafts that were verified, their tokens, and those accepted."""
        names = ("drafts_verified", "drafted_tokens", "accepted_tokens")
        return np.array([of(*(r.facts[name] for name in names)) for r in self.recordings])

    def unserved(self, status: str) -> Metric:
        """Return how many requests ended so in all replications; if nothing changes, with the sections of a short run
        as parts."""
        where = self.ended(status)
        each = self.by_replication(where)
        mean, count = mean_count(each, "requests"), len(each)
        ends = [None if end is None else end * count for end in (mean.lo, mean.hi)]
        metric = replace(mean, value=round(each.sum()), lo=ends[0], hi=ends[1])
        if self.replications < ENOUGH_REPLICATIONS and not self.facts.strategies and not self.facts.faults:
            return replace(metric, parts=kept(self.count(where)))
        return metric
