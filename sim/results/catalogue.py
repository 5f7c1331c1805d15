"""Every metric in one table: unit, words, which way is better, definition, how it is made, and where it is shown.

A new metric is a row here. Tables, tiles, verdicts, comparisons and docs/metrics.md read it. Rows make their estimates
from ``sim.results.metrics.Measured``, which is not imported: words about metrics need no numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from sim.results.metric_state import Cause, State
from sim.results.point import Metric
from sim.traffic.request import DELAYED_HIT, HIT, MISS

if TYPE_CHECKING:
    from sim.results.metrics import Measured

Better = Literal["lower", "higher", "neither"]


@dataclass(frozen=True, slots=True)
class Need:
    """What a metric is about, that not every scenario or engine has.

    :ivar cause: what stands in place of the value without it; None: a point lacks the metric.
    """

    met: Callable[[Measured], bool]
    cause: Cause | None = None


@dataclass(frozen=True, slots=True)
class Definition:
    """One metric.

    :ivar unit: ``1``, ``s``, ``1/s``, ``B``, ``USD``, or what is counted.
    :ivar words: what tables and sentences call it.
    :ivar over, interval, about: what it is taken over, how its interval is made, and its definition, as in
        docs/metrics.md, which says what the words mean.
    :ivar estimate: None: it is made of other metrics, later.
    :ivar share: it lies between 0 and 1, and is shown as a percentage; others of unit 1 are counts or averages.
    :ivar slices: kinds of slices that have it, too (``sim.results.slices``). It is over requests; gaps between tokens
        are recorded by replica.
    :ivar of_fleet: the fleet has it; money that tenants pay is theirs alone.
    :ivar shown: its place by where it is shown: ``tile``, or ``key`` (a column of many points).
    """

    name: str
    unit: str
    words: str
    better: Better
    over: str
    interval: str
    about: str
    estimate: Callable[[Measured], Metric] | None = None
    needs: tuple[Need, ...] = ()
    share: bool = False
    slices: frozenset[str] = frozenset()
    of_fleet: bool = True
    shown: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_latency(self) -> bool:
        """Whether it is a time that requests wait, so that it grows with a queue."""
        return self.unit == "s" and self.over in ("completed", "gaps")

    @property
    def is_total(self) -> bool:
        """Whether it is a sum over the parts of a run; others are means of them, or the like."""
        return self.interval in ("none", "sum") and self.unit != "USD"

    def of(self, m: Measured) -> Metric | None:
        """Return the metric; None where ``m`` has nothing that it is about."""
        for need in self.needs:
            if not need.met(m):
                return None if need.cause is None else Metric(None, unit=self.unit, state=State(need.cause))
        assert self.estimate is not None, f"{self.name} is made of other metrics"
        return self.estimate(m)


TOKENS = Need(lambda m: not m.facts.fixed, Cause.NO_TOKENS)
TARGETS = Need(lambda m: m.good is not None, Cause.NO_TARGET)
REPLICAS = Need(lambda m: m.facts.own_replicas > 1, Cause.ONE_REPLICA)
ROLLOUT = Need(lambda m: bool(m.facts.strategies), Cause.NO_ROLLOUT)
CHANGE = Need(lambda m: bool(m.facts.strategies or m.facts.faults), Cause.NO_CHANGE)
BASELINE = Need(lambda m: False, Cause.NO_BASELINE)
"""A simulation of the same traffic without rollouts and faults: ``sim.results.baseline_impact`` compares."""
SESSIONS = Need(lambda m: all("session" in r.requests for r in m.recordings), Cause.NO_SESSIONS)
WRONG_ADAPTER = Need(lambda m: bool(m.facts.faults & {"misrouting", "stale-map", "base-model"}), Cause.NO_FAULT)
OLD_PREFIXES = Need(lambda m: "named-prefixes" in m.facts.faults, Cause.NO_FAULT)
CRASH = Need(lambda m: "crash" in m.facts.faults, Cause.NO_FAULT)
PREFIX_CACHE = Need(lambda m: all(r.prefix_blocks_evicted is not None for r in m.recordings))
OFFLOAD = Need(lambda m: all("kv_loaded_tokens" in r.facts for r in m.recordings))
SPECULATION = Need(lambda m: all("drafts_verified" in r.facts for r in m.recordings))
AUTOSCALER = Need(lambda m: m.autoscaled)
PLACEMENT = Need(lambda m: any(len(r.moves) for r in m.recordings))

TENANT = frozenset({"tenant"})
POOL, GROUP = TENANT | {"pool"}, TENANT | {"group"}
ALL = POOL | GROUP | {"replica"}


def _asked(stage: str, words: str, *percents: int, needs: tuple[Need, ...] = ()) -> Iterator[Definition]:
    """Yield the rows of percentiles that are measured only where an SLO has a target for them."""
    gaps = stage == "itl"
    for percent in percents:
        name = f"{stage}_p{percent}_s"

        def has_target(m: Measured, name: str = name) -> bool:
            return any(name in slo for slo in m.facts.slos)

        def estimate(m: Measured, q: float = percent / 100) -> Metric:
            if gaps:
                return m.itl_quantile(q)
            return (m.tpots if stage == "tpot" else m.latency(stage)).quantile(q, "s")

        yield Definition(
            name,
            "s",
            f"p{percent} {words}",
            "lower",
            "gaps" if gaps else "completed",
            "histogram" if gaps else "p99",
            "The same.",
            estimate,
            (Need(has_target), *needs),
            slices=frozenset() if gaps else TENANT,
        )


# fmt: off
# A row is what it is about in one line and how it is made in another; one line for each value would take six times the
# room and hide the columns.
_M = Definition
_ROWS = (
    _M("miss_ratio", "1", "miss ratio", "lower", "admitted", "ratio", "Requests that had to start a load, over all.",
       lambda m: m.outcomes(MISS), share=True, slices=ALL, shown={"tile": 4, "key": 3}),
    _M("delayed_hit_ratio", "1", "delayed-hit ratio", "neither", "admitted", "ratio",  # between a miss and a hit
       "Requests that joined a load under way, over all.",
       lambda m: m.outcomes(DELAYED_HIT), share=True, slices=TENANT, shown={"key": 4}),
    _M("hit_ratio", "1", "hit ratio", "higher", "admitted", "ratio",
       "Requests that found their adapter resident when they needed it, over all.",
       lambda m: m.outcomes(HIT), share=True),
    _M("byte_miss_ratio", "1", "byte miss ratio", "lower", "admitted", "ratio",
       "Adapter bytes of the requests that missed, over those of all requests.",
       lambda m: m.byte_misses(), share=True),
    _M("loads_per_request", "1", "loads per request", "lower", "admitted", "ratio",
       "Loads from any tier that start in the measured time, over the requests. Each failed attempt counts, and so do "
       "loads of whole models.",
       lambda m: m.loads_per_request()),
    _M("loader_utilization", "1", "loader utilization", "neither", "time", "ratio",  # a cost of a part, and a use of it
       "Seconds in which loads from storage run, with pauses between attempts, over measured time × `storage.loaders` "
       "× replicas. Where loads block steps, copies from host memory count too; where loaders fetch to host memory, "
       "the busier of both counts. Loads of whole models don't count.",
       lambda m: m.loaders_busy, share=True, shown={"tile": 6, "key": 5}),
    _M("gpu_utilization", "1", "GPU busy", "neither", "time", "ratio",
       "Seconds in which a step (engine `fixed`: a request) runs, over measured time × replicas. A batch of one counts "
       "as much as one of 256.",
       lambda m: m.gpus_busy, share=True, shown={"key": 6}),
    _M("queue_mean_s", "s", "mean queue wait", "lower", "completed", "mean",
       "Arrival to first admission. With `storage.mode: overlap` the load wait is part of it.",
       lambda m: m.latency("queue").mean("s"), slices=TENANT),
    _M("queue_p50_s", "s", "median queue wait", "lower", "completed", "quantile", "The same.",
       lambda m: m.latency("queue").quantile(0.5, "s"), slices=TENANT),
    _M("queue_p99_s", "s", "p99 queue wait", "lower", "completed", "p99", "The same.",
       lambda m: m.latency("queue").quantile(0.99, "s"), slices=TENANT),
    _M("load_wait_mean_s", "s", "mean load wait", "lower", "completed", "mean",
       "From needing the adapter to having it; 0 for a hit.",
       lambda m: m.sampled(m.column("load_wait_s")[m.completed]).mean("s")),
    _M("ttft_mean_s", "s", "mean TTFT", "lower", "completed", "mean",
       "Arrival to the end of the step that completes the prefill. Engine `fixed` has one answer, so there TTFT equals "
       "E2E.",
       lambda m: m.latency("ttft").mean("s"), slices=POOL),
    _M("ttft_p50_s", "s", "median TTFT", "lower", "completed", "quantile", "The same.",
       lambda m: m.latency("ttft").quantile(0.5, "s"), slices=GROUP),
    *_asked("ttft", "TTFT", 90, 95),
    _M("ttft_p99_s", "s", "p99 TTFT", "lower", "completed", "p99", "The same.",
       lambda m: m.latency("ttft").quantile(0.99, "s"), slices=POOL | GROUP, shown={"tile": 1, "key": 1}),
    _M("tpot_mean_s", "s", "mean TPOT", "lower", "completed", "mean",
       "(Last token − first token) / (output tokens − 1); requests with one output token are left out.",
       lambda m: m.tpots.mean("s"), (TOKENS,), slices=TENANT, shown={"tile": 3}),
    *_asked("tpot", "TPOT", 90, 95, 99, needs=(TOKENS,)),
    _M("itl_mean_s", "s", "mean ITL", "lower", "gaps", "ratio",
       "Gap between consecutive tokens, all requests pooled. Percentiles are from a histogram with bins 0.1 % wide.",
       lambda m: m.itl_mean(), (TOKENS,)),
    *_asked("itl", "ITL", 90, 95, needs=(TOKENS,)),
    _M("itl_p99_s", "s", "p99 ITL", "lower", "gaps", "histogram",
       "The same.",
       lambda m: m.itl_quantile(0.99), (TOKENS,)),
    _M("e2e_mean_s", "s", "mean E2E", "lower", "completed", "mean", "Arrival to last token.",
       lambda m: m.latency("e2e").mean("s"), slices=POOL),
    _M("e2e_p50_s", "s", "median E2E", "lower", "completed", "quantile", "The same.",
       lambda m: m.latency("e2e").quantile(0.5, "s"), slices=TENANT),
    *_asked("e2e", "E2E", 90, 95),
    _M("e2e_p99_s", "s", "p99 E2E", "lower", "completed", "p99", "The same.",
       lambda m: m.latency("e2e").quantile(0.99, "s"), slices=ALL, shown={"tile": 2, "key": 2}),
    _M("throughput_rps", "1/s", "throughput", "higher", "time", "ratio",
       "Requests that end in the measured time, per second, those of the warm-up included.",
       lambda m: m.ratio(m.by_finish(), m.spans, "1/s"),
       slices=TENANT, shown={"tile": 7, "key": 7}),
    _M("output_tokens_per_s", "1/s", "output tokens", "higher", "time", "ratio",
       "Output tokens of these requests, per second; all tokens of a request count when it ends.",
       lambda m: m.ratio(m.by_finish(weight="output_tokens"), m.spans, "1/s"), (TOKENS,), slices=TENANT),
    _M("goodput_rps", "1/s", "goodput", "higher", "time", "ratio",
       "Measured requests that end in the measured time and within every target for single requests, per second.",
       lambda m: m.goodput(), (TARGETS,), slices=TENANT),
    _M("slo_attainment", "1", "SLO attainment", "higher", "measured", "share",
       "Requests that complete within every target for single requests, over completed, refused and failed ones and "
       "unfinished ones that are already late.",
       lambda m: m.attainment(), (TARGETS,), share=True, slices=TENANT, shown={"key": 8}),
    _M("completed", "requests", "completed", "neither", "measured", "none",
       "Requests that ended with their last token.",
       lambda m: m.total(m.count(m.ended("completed")), "requests"), slices=TENANT),
    _M("unfinished", "requests", "unfinished", "lower", "measured", "none",
       "Requests still inside when a run of given `duration` stops.",
       lambda m: m.total(m.count(m.ended("unfinished")), "requests"), slices=TENANT, shown={"key": 9}),
    _M("refused", "requests", "refused", "lower", "measured", "sum",
       "Requests that are refused: they are too long, their adapter was being replaced (`unload-then-load`), host "
       "memory was full of adapters in use (`cache.host.full: reject`), or the client of `fleet.front_end` had too "
       "many open.",
       lambda m: m.unserved("refused"), slices=TENANT),
    _M("failed", "requests", "failed", "lower", "measured", "sum",
       "Requests that ended without a right answer: lost with their replica, without their adapter, or with a wrong "
       "last answer that was noticed.",
       lambda m: m.unserved("failed"), slices=TENANT),
    _M("preemptions", "1", "preemptions", "lower", "measured", "none",
       "Times a running request lost its KV blocks and had to start again.",
       lambda m: m.total(m.summed("preemptions"), "1"), slices=TENANT),
    _M("evictions", "1", "evictions", "neither", "whole run", "none",
       "Adapters that left GPU memory, warm-up and drain included.",
       lambda m: m.of_whole_runs([r.evictions for r in m.recordings])),
    _M("prefix_hit_ratio", "1", "prefix hit ratio", "higher", "admitted", "ratio",
       "Prompt tokens found cached at first admission, over all prompt tokens, as vLLM counts them. Only with [prefix "
       "caching](prefix-caching.md) and requests that can share text.",
       lambda m: m.ratio(m.of_admitted("cached_tokens"), m.of_admitted("prompt_tokens"), highest=1), (PREFIX_CACHE,),
       share=True, shown={"tile": 5}),
    _M("prefix_blocks_evicted", "1", "cached blocks evicted", "neither", "whole run", "none",
       "Cached KV blocks that were taken for other content.",
       lambda m: m.of_whole_runs([r.prefix_blocks_evicted or 0 for r in m.recordings]), (PREFIX_CACHE,)),
    _M("prefix_hit_ttft_mean_s", "s", "mean TTFT with a prefix hit", "lower", "completed", "mean",
       "TTFT of requests that found any of their prompt cached.",
       lambda m: m.prefix_ttft(hit=True), (PREFIX_CACHE,)),
    _M("prefix_miss_ttft_mean_s", "s", "mean TTFT without", "lower", "completed", "mean",
       "TTFT of requests that found nothing cached.",
       lambda m: m.prefix_ttft(hit=False), (PREFIX_CACHE,)),
    _M("host_prefix_hit_ratio", "1", "host prefix hit ratio", "higher", "whole run", "replications",
       "Prompt tokens whose KV was copied from host memory, over all prompt tokens. Only with [KV "
       "offload](kv-offload.md).",
       lambda m: m.mean_of_replications(m.offload_hits(), "1"), (OFFLOAD,), share=True),
    _M("kv_loaded_tokens", "tokens", "tokens of KV from host memory", "neither", "whole run", "none",
       "Tokens whose KV was copied from host memory, not computed again. Only with [KV offload](kv-offload.md).",
       lambda m: m.of_whole_runs([int(r.facts["kv_loaded_tokens"]) for r in m.recordings]), (OFFLOAD,)),
    _M("kv_stored_tokens", "tokens", "tokens of KV to host memory", "neither", "whole run", "none",
       "Tokens whose KV was copied there.",
       lambda m: m.of_whole_runs([int(r.facts["kv_stored_tokens"]) for r in m.recordings]), (OFFLOAD,)),
    _M("accept_length", "tokens", "accept length", "higher", "whole run", "replications",
       "Tokens that a sequence gets in a step: its accepted drafts and one more, mean over the steps of all decoding "
       "sequences. Only with [speculation](speculation.md).",
       lambda m: m.mean_of_replications(m.drafted(lambda verified, drafted, accepted: 1 + accepted / verified),
                                        "tokens"), (SPECULATION,)),
    _M("drafts_wasted", "1", "drafts wasted", "lower", "whole run", "replications",
       "Drafted tokens that were rejected, over all that steps verified.",
       lambda m: m.mean_of_replications(m.drafted(lambda verified, drafted, accepted: 1 - accepted / drafted), "1"),
       (SPECULATION,), share=True),
    _M("replica_load_skew", "1", "load skew of replicas", "lower", "measured", "ratio",
       "Requests of the busiest replica over the mean per replica: 1 is even, `fleet.replicas` means that one replica "
       "got all.",
       lambda m: m.changes.skew(), (REPLICAS,)),
    _M("harmed", "requests", "affected requests", "lower", "measured", "count",
       "Affected requests: those with a mixed or stale answer, a wrong answer that was not noticed, or an old prefix, "
       "and those that a rollout refused, that failed, or were [late](statistics.md#who-is-late).",
       lambda m: m.changes.affected(), (CHANGE,)),
    _M("harmed_excess", "requests", "affected by the change", "lower", "measured", "count",
       "Affected requests beyond those of the same traffic without rollouts and faults "
       "([how](statistics.md#beyond-the-usual)). It can be below 0.",
       needs=(CHANGE, BASELINE)),
    _M("mixed_version_responses", "requests", "mixed-version responses", "lower", "measured", "count",
       "Requests whose tokens come from more than one version.",
       lambda m: m.counted(m.marked("mixed")), (ROLLOUT,)),
    _M("sessions_saw_both", "sessions", "sessions that saw both versions", "lower", "completed", "count",
       "Sessions that were answered by more than one version of an adapter.",
       lambda m: m.mean_count(m.changes.sessions[:, 0], "sessions"), (ROLLOUT, SESSIONS)),
    _M("sessions_went_back", "sessions", "sessions that went back", "lower", "completed", "count",
       "Of those, sessions in which an answer begins with an older version than an earlier one had.",
       lambda m: m.mean_count(m.changes.sessions[:, 1], "sessions"), (ROLLOUT, SESSIONS)),
    _M("stale_after_cutover", "requests", "stale after cutover", "lower", "measured", "count",
       "Requests that arrived when all should get the new version, and whose answer began with an older one.",
       lambda m: m.counted(m.marked("stale")), (ROLLOUT,)),
    _M("extra_resident_bytes_peak", "B", "extra resident bytes, peak", "lower", "whole run", "replications",
       "Most bytes of old versions in the GPU memory of all replicas in addition to new ones of the same adapter.",
       lambda m: m.mean_of_replications(m.changes.fact("extra_resident_bytes_peak"), "B"), (ROLLOUT,)),
    _M("rollout_duration_s", "s", "rollout duration", "lower", "whole run", "replications",
       "From `at` until the last request of the last old version has left (`new-name`), or every replica has the new "
       "version; of several rollouts the longest. Withheld unless all are complete in every replication.",
       lambda m: m.changes.duration(), (ROLLOUT,)),
    _M("rollout_standstill_s", "s", "standstill of a rollout", "lower", "whole run", "replications",
       "Longest time for which loads between two steps kept a replica from computing.",
       lambda m: m.mean_of_replications(m.changes.fact("rollout_standstill_s"), "s"), (ROLLOUT,)),
    _M("rollout_loads", "loads", "loads during", "lower", "the window", "count",
       "Loads from any tier that start *during*.",
       lambda m: m.changes.during.loads(), (ROLLOUT,)),
    _M("rollout_peak_loads_per_s", "1/s", "peak loads during", "lower", "the window", "replications",
       "Highest number of loads that start within any 10 s *during*, per second.",
       lambda m: m.changes.during.peak_loads(), (ROLLOUT,)),
    _M("rollout_ttft_p99_s", "s", "p99 TTFT during", "lower", "completed", "p99 of replications",
       "TTFT of requests that arrive *during*.",
       lambda m: m.changes.during.p99("ttft"), (ROLLOUT,)),
    _M("rollout_e2e_p99_s", "s", "p99 E2E during", "lower", "completed", "p99 of replications",
       "E2E of the same.",
       lambda m: m.changes.during.p99("e2e"), (ROLLOUT,)),
    _M("rollout_miss_ratio", "1", "miss ratio during", "lower", "admitted", "replications",
       "Miss ratio of the same.",
       lambda m: m.changes.during.misses(), (ROLLOUT,), share=True),
    _M("before_peak_loads_per_s", "1/s", "peak loads before", "lower", "the time before", "replications",
       "The same as during, *before*.",
       lambda m: m.changes.before.peak_loads(), (ROLLOUT,)),
    _M("before_ttft_p99_s", "s", "p99 TTFT before", "lower", "completed", "p99 of replications",
       "TTFT of requests that arrive *before*.",
       lambda m: m.changes.before.p99("ttft"), (ROLLOUT,)),
    _M("before_e2e_p99_s", "s", "p99 E2E before", "lower", "completed", "p99 of replications",
       "E2E of the same.",
       lambda m: m.changes.before.p99("e2e"), (ROLLOUT,)),
    _M("before_miss_ratio", "1", "miss ratio before", "lower", "admitted", "replications", "Miss ratio of the same.",
       lambda m: m.changes.before.misses(), (ROLLOUT,), share=True),
    _M("misrouted", "requests", "misrouted", "lower", "measured", "count",
       "Requests that reached a wrong adapter, or none, at least once.",
       lambda m: m.counted(m.marked("misrouted")), (WRONG_ADAPTER,)),
    _M("wrong_adapter_served", "requests", "wrong answers served", "lower", "measured", "count",
       "Requests with a wrong answer that was not noticed. They count as completed.",
       lambda m: m.counted(m.marked("wrong-served")), (WRONG_ADAPTER,)),
    # Noticing errors is good, having errors to notice is not.
    _M("wrong_adapter_detected", "requests", "wrong answers noticed", "neither", "measured", "count",
       "Requests with a wrong answer that was noticed.",
       lambda m: m.counted(m.marked("wrong-detected")), (WRONG_ADAPTER,)),
    _M("retried", "requests", "sent again", "neither", "measured", "count",
       "Requests that were sent again after a wrong answer.",
       lambda m: m.counted(m.marked("retried")), (WRONG_ADAPTER,)),
    _M("old_prefix_served", "requests", "old prefixes served", "lower", "measured", "count",
       "Requests whose prefix came from an older version (fault `named-prefixes`).",
       lambda m: m.counted(m.marked("old-prefix")), (OLD_PREFIXES,)),
    _M("rerouted", "requests", "rerouted", "neither", "measured", "count",
       "Requests sent to another replica because theirs had crashed.",
       lambda m: m.counted(m.marked("rerouted")), (CRASH,)),
    _M("lost", "requests", "lost", "lower", "measured", "count",
       "Requests lost with their replica. They count as failed.",
       lambda m: m.counted(m.marked("lost")), (CRASH,)),
    _M("rerouted_e2e_mean_s", "s", "mean E2E of rerouted", "lower", "completed", "replications",
       "E2E of rerouted requests, from their first arrival. They are longer than others, because crashes hit long "
       "requests more often.",
       lambda m: m.changes.rerouted(), (CRASH,)),
    _M("replica_seconds", "replica-s", "replica-seconds", "lower", "time", "count",
       "With `fleet.autoscale`: seconds of each replica, from the start of its cold start to the end of its drain.",
       lambda m: m.scaling.replica_seconds(), (AUTOSCALER,)),
    _M("mean_replicas", "1", "replicas on average", "lower", "time", "ratio",
       "`replica_seconds` over the measured time.",
       lambda m: m.ratio(m.replica_seconds(1), m.spans), (AUTOSCALER,)),
    _M("replicas_started", "replicas", "replicas started", "neither", "time", "count",
       "Replicas whose cold start begins.",
       lambda m: m.scaling.started(), (AUTOSCALER,)),
    _M("replicas_stopped", "replicas", "replicas stopped", "neither", "time", "count",
       "Replicas whose drain begins.",
       lambda m: m.scaling.stopped(), (AUTOSCALER,)),
    _M("cold_start_mean_s", "s", "mean cold start", "lower", "time", "replications",
       "From the start of a replica until it serves.",
       lambda m: m.scaling.cold_start(), (AUTOSCALER,)),
    _M("late_while_starting", "1", "late while a replica starts", "lower", "measured", "ratio",
       "Requests that miss a target of the `slo` for single requests, over all that arrive while a replica starts.",
       lambda m: m.scaling.late(m.scaling.while_starting), (AUTOSCALER, TARGETS), share=True),
    _M("late_otherwise", "1", "late at other times", "lower", "measured", "ratio", "The same over all other requests.",
       lambda m: m.scaling.late(~m.scaling.while_starting), (AUTOSCALER, TARGETS), share=True),
    _M("new_replica_loads", "1", "loads of a new replica", "lower", "time", "replications",
       "Loads from any tier in the first minute of a new replica.",
       lambda m: m.scaling.new_loads(), (AUTOSCALER,)),
    _M("new_replica_miss_ratio", "1", "miss ratio of a new replica", "lower", "time", "replications",
       "Miss ratio of new replicas in their first minute.",
       lambda m: m.scaling.new_misses(), (AUTOSCALER,), share=True),
    # Moves are what a controller is for; their loads are the cost.
    _M("placement_moves", "moves", "adapters moved", "neither", "time", "count",
       "Adapters that [a controller](routers.md#placement) moved to a replica.",
       lambda m: m.mean_count(m.placement.spent[:, 0], "moves"), (PLACEMENT,)),
    _M("placement_loads", "loads", "loads by moves", "lower", "time", "count",
       "Moves after which the adapter was loaded before a request found it.",
       lambda m: m.mean_count(m.placement.spent[:, 1], "loads"), (PLACEMENT,)),
    _M("placement_load_s", "s", "loading by moves", "lower", "time", "replications", "Seconds of these loads.",
       lambda m: m.mean_count(m.placement.spent[:, 2], "s"), (PLACEMENT,)),
    _M("placed_share", "1", "requests for placed adapters", "neither", "measured", "ratio",
       "Requests whose adapter had a place, over all for adapters.",
       lambda m: m.placement.placed(), (PLACEMENT,)),
    _M("usd_per_m_tokens", "USD", "cost per million tokens", "lower", "time", "ratio",
       "[Cost](plan.md#costs) of the measured time at `fleet.price`, over a million prompt and output tokens of the "
       "requests that end in it.",
       lambda m: m.gpu_hours.per(m.gpu_hours.m_prompt + m.gpu_hours.m_output), (TOKENS,),
       shown={"tile": 8, "key": 10}),
    _M("usd_per_m_input_tokens", "USD", "cost per million input tokens", "lower", "time", "ratio",
       "The same over prompt tokens alone.",
       lambda m: m.gpu_hours.per(m.gpu_hours.m_prompt), (TOKENS,)),
    _M("usd_per_m_output_tokens", "USD", "cost per million output tokens", "lower", "time", "ratio",
       "The same over output tokens alone.",
       lambda m: m.gpu_hours.per(m.gpu_hours.m_output), (TOKENS,)),
    _M("usd_per_request", "USD", "cost per request", "lower", "time", "ratio", "The same over the requests.",
       lambda m: m.gpu_hours.per(m.by_finish())),
    _M("usd_per_month", "USD", "cost a month", "lower", "time", "none",
       "`fleet.price` × GPUs × 730 hours; with `fleet.autoscale` the GPUs of `mean_replicas`.",
       lambda m: m.gpu_hours.month(m.gpus_busy), shown={"key": 11}),
    _M("idle_usd_per_month", "USD", "idle GPUs a month", "lower", "time", "ratio",
       "The part of it in which GPUs compute nothing: 1 − `gpu_utilization`.",
       lambda m: m.gpu_hours.idle(m.gpus_busy)),
    _M("cost_usd", "USD", "cost of the run", "lower", "time", "count",
       "With `fleet.autoscale`: `fleet.price` × GPUs of a replica × `replica_seconds`.",
       lambda m: m.gpu_hours.whole(), (AUTOSCALER,)),
    _M("revenue_usd_per_month", "USD", "revenue a month", "higher", "time", "ratio",
       "What a tenant pays.", of_fleet=False),
    _M("cost_share", "1", "share of the cost", "neither", "time", "ratio",
       "A tenant's part of the tokens of all requests.", share=True, of_fleet=False),
    _M("margin_usd_per_month", "USD", "margin a month", "higher", "time", "ratio",
       "A tenant's revenue less its cost.", of_fleet=False),
)
# fmt: on

CATALOGUE: dict[str, Definition] = {each.name: each for each in _ROWS}
"""Every metric by name, in the order in which tables print them."""
UNITS = {each.name: each.unit for each in _ROWS if each.of_fleet}
"""Every metric of a fleet, and its unit."""
ONLY_WITH_PRICE = frozenset(name for name, unit in UNITS.items() if unit == "USD")
"""Metrics that a point lacks unless its scenario says what a GPU costs (``fleet.price``)."""
SHARES = frozenset(each.name for each in _ROWS if each.share)
"""Metrics that are shown as percentages."""


def shown_in(place: str) -> tuple[str, ...]:
    """Return the metrics that are shown somewhere, in the order in which they are."""
    found = [each for each in _ROWS if place in each.shown]
    return tuple(each.name for each in sorted(found, key=lambda each: each.shown[place]))


def measured_of(kind: str) -> tuple[str, ...]:
    """Return the metrics of a kind of slice: ``tenant``, ``pool``, ``group`` or ``replica``."""
    return tuple(each.name for each in _ROWS if kind in each.slices)
