"""What readings show of the traffic that servers had, and of how they served it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal

import numpy as np

from sim.arrays import Floats
from sim.errors import InputError
from sim.spec.profile_choice import known_model
from sim.studies.observe.engine_metrics import (
    CACHE_CONFIG,
    LORA_INFO,
    MOST_KV_TOKENS,
    SGLANG_KV_TOKENS,
    SGLANG_SLOTS,
    CacheConfig,
    Labels,
    Role,
    cache_config,
    counter_name,
    engine_of,
    gauge_name,
    histogram_name,
)
from sim.studies.observe.readings import Readings, server_of

# Histograms as Prometheus counts them: how many values are at most so large, for a few bounds.


@dataclass(frozen=True, slots=True)
class BucketQuantile:
    """A quantile as far as buckets show it.

    :ivar value: linear within the bucket, as PromQL's ``histogram_quantile`` has it.
    :ivar low, high: bounds of the bucket, between which the quantile lies; high is infinite in the last one.
    """

    value: float
    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Return whether a value lies in the same bucket as the measured one."""
        return self.low <= value <= self.high


@dataclass(frozen=True, slots=True)
class BucketHistogram:
    """Values counted in buckets.

    :ivar bounds: upper bounds, rising; the last one is infinite.
    :ivar counts: values in each bucket; not cumulative.
    :ivar total: the sum of all values, which is exact; None where it is not known.
    """

    bounds: tuple[float, ...]
    counts: tuple[float, ...]
    total: float | None

    @property
    def count(self) -> float:
        return math.fsum(self.counts)

    @property
    def mean(self) -> float | None:
        """The exact mean; None without values, or without their sum."""
        return self.total / self.count if self.count and self.total is not None else None

    def quantile(self, share: float) -> BucketQuantile:
        """Return the value below which a share of the values is.

        :param share: from 0 to 1.
        """
        rank, below = share * self.count, 0.0
        if not self.count:
            return BucketQuantile(math.nan, math.nan, math.nan)
        last = max(index for index, count in enumerate(self.counts) if count)
        for index, count in enumerate(self.counts[: last + 1]):
            if count and (below + count >= rank or index == last):
                low, high = self.edges(index)
                if math.isinf(high):
                    return BucketQuantile(low, low, high)
                return BucketQuantile(low + (high - low) * min(max((rank - below) / count, 0.0), 1.0), low, high)
            below += count
        raise AssertionError("a bucket holds every rank")

    def half_width(self) -> float:
        """Return the half-width of the mean's 95 % interval, if values are independent; they spread within buckets."""
        finite = [bound for bound in self.bounds if math.isfinite(bound)]
        values = self.spread(1000, 2 * max(finite, default=1.0))
        return 1.96 * float(values.std()) / math.sqrt(self.count)

    def edges(self, index: int) -> tuple[float, float]:
        """Return the lower and the upper bound of a bucket."""
        return (self.bounds[index - 1] if index else 0.0), self.bounds[index]

    def spread(self, points: int, highest: float) -> Floats:
        """Return values at equally spaced ranks that have these counts and this mean.

        Buckets say nothing of what is inside them: there, values rise as a power of the rank, the same power in all
        buckets, chosen so that the mean comes out right. Without a mean they rise evenly, about the bucket's middle.

        :param points: how many values.
        :param highest: the largest value that the last bucket may have.
        """
        shares = np.asarray(self.counts) / self.count
        ends = np.cumsum(shares)
        rank = (np.arange(points) + 0.5) / points
        index = np.minimum(np.searchsorted(ends, rank), len(ends) - 1)
        bounds = np.asarray(self.bounds)
        bounds = np.where(np.isinf(bounds), max(highest, bounds[-2] if len(bounds) > 1 else highest), bounds)
        low, high = np.concatenate([[0.0], bounds[:-1]])[index], bounds[index]
        inside = np.clip((rank - (ends - shares)[index]) / np.maximum(shares[index], 1e-300), 0.0, 1.0)

        def values(log_power: float) -> Floats:
            return np.asarray(low + (high - low) * inside ** math.exp(log_power))

        mean = self.mean
        if mean is None:
            return values(0.0)
        lowest, most = -12.0, 12.0  # the mean falls as the power rises
        for _ in range(60):
            middle = (lowest + most) / 2
            lowest, most = (middle, most) if values(middle).mean() > mean else (lowest, middle)
        return values((lowest + most) / 2)


ABORTED = ("abort", "error")
"""Values of ``finished_reason`` of requests that did not end with an answer."""

ENOUGH_READINGS = 20
"""Readings whose mean says something of a gauge between them."""

_MOST_SLOTS = 10**9


@dataclass(frozen=True, slots=True)
class ObservedAdapters:
    """Adapters, as ``vllm:lora_requests_info`` names them.

    :ivar names: those that had a request at any time, sorted.
    :ivar shares: of the requests, by adapter with a running request in a reading; empty where there are too few
        readings.
    :ivar unseen: share of the requests that are for all other adapters together.
    :ivar always: adapters with a running request in every reading of a server, whose share may be larger.
    :ivar slots: ``max_lora``.
    """

    names: tuple[str, ...] = ()
    shares: Mapping[str, float] = field(default_factory=dict)
    unseen: float = 0.0
    always: tuple[str, ...] = ()
    slots: int | None = None


@dataclass(frozen=True, slots=True)
class ObservedService:
    """What metrics show.

    :ivar engine: ``vllm`` or ``sglang``.
    :ivar servers: engines whose metrics these are.
    :ivar model: the base model, as ``model_name`` has it; empty without.
    :ivar seconds: the time that counts refer to.
    :ivar finished: requests that ended with an answer; ``aborted``: that did not.
    :ivar offered: requests that came in that time: those that ended either way, and by how much more are in flight now.
    :ivar in_flight: mean requests in flight, by Little's law from the sum of their times; None without these.
    :ivar running, waiting: means of readings, of all servers together; None of few readings, which show these moments
        alone.
    :ivar prompt_total, output_total: tokens of all requests.
    :ivar histograms: by role; latencies in seconds.
    :ivar prefix_hits: share of prompt tokens that were found cached; None without a prefix cache.
    :ivar cache: the KV cache of one server, as far as the metrics have it.
    """

    engine: str
    servers: int
    model: str
    seconds: float
    finished: float
    aborted: float
    offered: float
    in_flight: float | None
    running: float | None
    waiting: float | None
    prompt_total: float | None
    output_total: float | None
    histograms: Mapping[Role, BucketHistogram]
    prefix_hits: float | None
    adapters: ObservedAdapters
    cache: CacheConfig

    @property
    def ended(self) -> float:
        """Requests that ended, with an answer or without."""
        return self.finished + self.aborted

    @property
    def offered_rps(self) -> float:
        """Requests per second that came."""
        return self.offered / self.seconds

    def mean_tokens(self, which: Literal["prompt", "output"]) -> float | None:
        """Return mean tokens of a request's prompt or answer; None where no metric has them."""
        histogram = self.histograms.get("prompt_tokens" if which == "prompt" else "output_tokens")
        if histogram is not None and histogram.mean is not None:
            return histogram.mean
        total = self.prompt_total if which == "prompt" else self.output_total
        return None if total is None else total / self.ended


def observed_service(readings: Readings) -> ObservedService:
    """Return what readings show.

    :raises InputError: where they lack what no traffic can be described without.
    """
    names = readings.names
    engine = engine_of(names)
    assert engine is not None, "readings have metrics of an engine"
    if readings.seconds is None or readings.seconds <= 0:
        raise InputError(
            "nothing says over what time these counts grew",
            key="--window",
            allowed="two readings, or process_start_time_seconds in one",
            hint="say how long the server has run: --window 2h",
        )
    finished_name = counter_name("finished", names)
    if finished_name is None:
        raise InputError(
            "the count of finished requests is not among these metrics",
            key="vllm:request_success_total or sglang:num_requests_total",
            hint="take the whole page of /metrics",
        )
    aborted = sum(
        readings.growth((finished_name, labels))
        for labels in readings.labels_of(finished_name)
        if dict(labels).get("finished_reason") in ABORTED
    )
    finished = readings.total_growth(finished_name) - aborted
    if finished < 1:
        raise InputError("no request ended in this time", key=finished_name, got=finished, allowed="1 and more")
    histograms = dict(_histograms(readings))
    adapters = _adapters(readings)
    queries, hits = (_growth(readings, role) for role in ("prefix_queries", "prefix_hits"))
    e2e_s = histograms["e2e"].total if "e2e" in histograms else None
    enough = len(readings.times) >= ENOUGH_READINGS
    return ObservedService(
        engine=engine,
        servers=readings.servers(gauge_name("running", names) or finished_name),
        model=_model(readings, finished_name, adapters.names),
        seconds=readings.seconds,
        finished=finished,
        aborted=aborted,
        offered=max(finished + aborted + _grown_queue(readings), 1.0),
        in_flight=None if e2e_s is None else e2e_s / readings.seconds,
        running=_gauge(readings, "running") if enough else None,
        waiting=_gauge(readings, "waiting") if enough else None,
        prompt_total=_growth(readings, "prompt_total"),
        output_total=_growth(readings, "output_total"),
        histograms=histograms,
        prefix_hits=min(hits / queries, 1.0) if queries and hits is not None else None,
        adapters=adapters,
        cache=_cache_config(readings),
    )


def _model(readings: Readings, finished: str, adapters: Collection[str]) -> str:
    """Return the base model's name; empty without.

    :raises InputError: where servers of several base models have finished requests.
    """
    names, query = readings.parts(finished, "model_name", adapters)
    # Names of one's own may be of one model; repositories are not.
    models = {known_model(name) or (name if "/" in name else None) for name in names} - {None}
    if len(models) > 1:
        raise InputError(
            "these metrics are of several base models",
            key="model_name",
            got=", ".join(names),
            allowed="the servers of one",
            hint=f"query those of one model: {query}",
        )
    return max(names, key=lambda name: (known_model(name) is not None, "/" in name), default="")


def _growth(readings: Readings, role: Role) -> float | None:
    name = counter_name(role, readings.names)
    return None if name is None else readings.total_growth(name)


def _gauge(readings: Readings, role: Role) -> float | None:
    name = gauge_name(role, readings.names)
    return None if name is None else readings.mean_gauge(name)


def _grown_queue(readings: Readings) -> float:
    if readings.since_start:
        return sum(_gauge(readings, role) or 0.0 for role in ("running", "waiting"))
    grown = 0.0
    for role in ("running", "waiting"):
        name = gauge_name(role, readings.names)
        for labels in readings.labels_of(name) if name else ():
            points = readings.series[name, labels] if name else ()
            grown += points[-1][1] - points[0][1]
    return grown


def _histograms(readings: Readings) -> Iterator[tuple[Role, BucketHistogram]]:
    roles: tuple[Role, ...] = ("prompt_tokens", "output_tokens", "ttft", "itl", "tpot", "e2e")
    for role in roles:
        name = histogram_name(role, readings.names)
        found = None if name is None else _histogram(readings, name)
        if found is not None and found.count > 0:
            yield role, found


def _histogram(readings: Readings, name: str) -> BucketHistogram | None:
    """Return the growth of a histogram, all series together; None for one without buckets."""
    cumulative: dict[float, float] = {}
    for labels in readings.labels_of(f"{name}_bucket"):
        try:
            bound = float(dict(labels).get("le", ""))
        except ValueError:
            continue
        cumulative[bound] = cumulative.get(bound, 0.0) + readings.growth((f"{name}_bucket", labels))
    count = readings.total_growth(f"{name}_count")
    if not cumulative or count <= 0:
        return None
    cumulative[math.inf] = max(count, cumulative.get(math.inf, 0.0))
    bounds = sorted(bound for bound in cumulative if not math.isnan(bound))
    counts, below = [], 0.0
    for bound in bounds:
        counts.append(max(cumulative[bound] - below, 0.0))  # buckets of one scrape may be of different moments
        below = max(below, cumulative[bound])
    total = readings.total_growth(f"{name}_sum") if f"{name}_sum" in readings.names else None
    return BucketHistogram(tuple(bounds), tuple(counts), total)


def _cache_config(readings: Readings) -> CacheConfig:
    for labels in readings.labels_of(CACHE_CONFIG):
        return cache_config(labels)
    for labels in readings.labels_of(SGLANG_KV_TOKENS):
        tokens = readings.last((SGLANG_KV_TOKENS, labels))
        return CacheConfig(int(tokens) if 1 <= tokens <= MOST_KV_TOKENS else None)
    return CacheConfig()


def _adapters(readings: Readings) -> ObservedAdapters:
    """Read the names of adapters and the number of slots.

    At each time the series with the highest value is the current one; the others are what was before.
    """
    names: set[str] = set()
    slots: list[int] = []
    current: dict[tuple[float, Labels], tuple[float, Labels]] = {}
    for labels in readings.labels_of(LORA_INFO):
        info = dict(labels)
        names |= _split(info.get("running_lora_adapters", "")) | _split(info.get("waiting_lora_adapters", ""))
        if info.get("max_lora", "").isascii() and info.get("max_lora", "").isdigit():
            slots.append(int(info["max_lora"][:9]))
        server = server_of(labels)
        for at_s, value in readings.series[LORA_INFO, labels]:
            if value > current.get((at_s, server), (-1.0, ()))[0]:
                current[at_s, server] = value, labels
    of_sglang = (readings.last((SGLANG_SLOTS, labels)) for labels in readings.labels_of(SGLANG_SLOTS))
    slots += [int(value) for value in of_sglang if value <= _MOST_SLOTS]
    running: dict[Labels, list[set[str]]] = {}
    ever = set().union(*(_split(dict(labels).get("running_lora_adapters", "")) for _, labels in current.values()))
    for (_, server), (_, labels) in current.items():
        at_a_time = _split(dict(labels).get("running_lora_adapters", ""))
        starved = _split(dict(labels).get("waiting_lora_adapters", "")) - ever  # counted, though none was seen to run
        running.setdefault(server, []).append(at_a_time | starved)
    seen = Counter(chain(*chain(*running.values())))
    enough = len(current) >= ENOUGH_READINGS and seen.total() >= ENOUGH_READINGS
    shares, always = _shares(running) if enough else ({}, ())
    # Good-Turing: adapters in no reading get, together, the share of those in exactly one.
    unseen = sum(count == 1 for count in seen.values()) / seen.total() if enough else 0.0
    most = max((slot for slot in slots if slot > 0), default=None)
    return ObservedAdapters(tuple(sorted(names)), shares, unseen, always, most)


def _shares(running: Mapping[Labels, list[set[str]]]) -> tuple[dict[str, float], tuple[str, ...]]:
    """Return shares of the requests for adapters that were running, and those that were in every reading of a server.

    If requests of an adapter come independently, m of them on average at a time, none is running in a share exp(-m) of
    the readings: m is -ln(1 - share), while the share itself saturates at 1. In n readings an m beyond ln(2n) looks
    like a larger one.

    :param running: adapters with a running request in each reading, by server.
    """
    loads: dict[str, float] = {}
    always: set[str] = set()
    for rows in running.values():
        counts = Counter(chain.from_iterable(rows))
        for name, count in counts.items():
            idle = max(1 - count / len(rows), 1 / (2 * len(rows)))
            loads[name] = loads.get(name, 0.0) - len(rows) * math.log(idle)
            always |= {name} if count == len(rows) else set()
    total = math.fsum(loads.values())
    return {name: load / total for name, load in sorted(loads.items())}, tuple(sorted(always))


def _split(names: str) -> set[str]:
    return {name for name in names.split(",") if name}
