"""What one simulated point (one set of values of the swept keys) says: the contract with reports.

``Point`` is plain data. It becomes one entry of ``summary.json`` (``set`` and ``metrics``) and one file
under ``points/`` of a run directory (everything), from which a report is drawn without simulating.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

UNITS = {
    "miss_ratio": "1", "delayed_hit_ratio": "1", "hit_ratio": "1", "byte_miss_ratio": "1",
    "loads_per_request": "1", "loader_utilization": "1", "gpu_utilization": "1",
    "queue_mean_s": "s", "queue_p50_s": "s", "queue_p99_s": "s", "load_wait_mean_s": "s",
    "ttft_mean_s": "s", "ttft_p50_s": "s", "ttft_p99_s": "s", "tpot_mean_s": "s",
    "itl_mean_s": "s", "itl_p99_s": "s", "e2e_mean_s": "s", "e2e_p50_s": "s", "e2e_p99_s": "s",
    "throughput_rps": "1/s", "output_tokens_per_s": "1/s", "goodput_rps": "1/s", "slo_attainment": "1",
    "completed": "requests", "unfinished": "requests", "refused": "requests", "failed": "requests",
    "preemptions": "1", "evictions": "1", "replica_load_skew": "1", "harmed": "requests",
    "harmed_excess": "requests",
    "mixed_version_responses": "requests", "sessions_saw_both": "sessions", "sessions_went_back": "sessions",
    "stale_after_cutover": "requests", "extra_resident_bytes_peak": "B",
    "rollout_duration_s": "s", "rollout_loads": "loads", "rollout_peak_loads_per_s": "1/s",
    "rollout_ttft_p99_s": "s", "rollout_e2e_p99_s": "s", "rollout_miss_ratio": "1",
    "before_peak_loads_per_s": "1/s", "before_ttft_p99_s": "s", "before_e2e_p99_s": "s", "before_miss_ratio": "1",
    "misrouted": "requests", "wrong_adapter_served": "requests", "wrong_adapter_detected": "requests",
    "retried": "requests", "old_prefix_served": "requests", "rerouted": "requests", "lost": "requests",
    "rerouted_e2e_mean_s": "s",
}  # fmt: skip
"""Every metric and its unit, in the order in which tables print them."""

NO_ROLLOUT, NO_FAULT = "the scenario has no rollout", "the scenario has no such fault"
NO_CHANGE, ONE_REPLICA = "the scenario has neither rollouts nor faults", "there is one replica"
NOT_THERE = frozenset({NO_ROLLOUT, NO_FAULT, NO_CHANGE, ONE_REPLICA})
"""Notes of metrics that mean nothing in a scenario; tables for people leave these out."""

SUMMED = frozenset({"requests", "sessions", "loads"})
"""Units of counts that are sums over all replications."""

SHARES = frozenset({
    "miss_ratio", "delayed_hit_ratio", "hit_ratio", "byte_miss_ratio", "loader_utilization",
    "gpu_utilization", "slo_attainment", "rollout_miss_ratio", "before_miss_ratio",
})  # fmt: skip
"""Metrics of unit 1 between 0 and 1; the others of unit 1 are counts or averages."""


@dataclass(slots=True)
class Metric:
    """An estimate and its 95 % interval.

    ``value`` is None where there is nothing to measure or not enough of it; ``note`` says why. ``settled``
    is False where the interval can't be trusted or is wide (docs/statistics.md). ``calibration_lo`` and
    ``calibration_hi`` are the 95 % interval of what the profile's draws leave open; None without draws.

    ``parts`` holds the metric in the parts of the run that the interval is made from: one value a replication from five
    replications on, else one a section; None in a part that has none. Sums over a run have what each part adds. Of
    rollouts and what they harm it is always one value a replication. They are for comparing with the same parts of
    other designs (``sim.results.pairs``), so tables leave them out.
    """

    value: float | None
    lo: float | None = None
    hi: float | None = None
    unit: str = "1"
    settled: bool = True
    note: str = ""
    calibration_lo: float | None = None
    calibration_hi: float | None = None
    parts: list[float | None] = field(default_factory=list, repr=False)

    @property
    def applies(self) -> bool:
        """Whether the scenario has what this metric speaks of."""
        return self.value is not None or self.note not in NOT_THERE

    def to_json(self, *, calibrated: bool) -> dict[str, Any]:
        """Return plain data without parts, with the calibration interval only where the profile has draws."""
        names = [one.name for one in fields(self) if one.name != "parts"]
        return {name: getattr(self, name) for name in names if calibrated or not name.startswith("calibration_")}


@dataclass(slots=True)
class Late:
    """How many of the measured requests an SLO term counts as late, those without an answer among them.

    :ivar target: that of the term. The share is of no use for another one.
    :ivar share: with its interval (``sim.results.served``).
    """

    target: float
    share: Metric


@dataclass(slots=True)
class Point:
    """Everything a report needs to know of one point.

    :ivar set: swept keys and their values, ``{}`` for a single run.
    :ivar metrics: every name of ``UNITS``.
    :ivar cdf: ``{"q": [...], "ttft_s": [...], "e2e_s": [...], "queue_s": [...], "load_wait_s": [...]}``,
        quantiles over all measured requests; a latency the engine lacks is an empty list.
    :ivar timeline: first replication, about 200 equal spans: ``{"t_s", "running", "waiting", "loads_in_flight"
        , "arrivals_per_s", "loads_per_s", "ttft_mean_s", "ttft_p99_s", "e2e_mean_s", "e2e_p99_s"}`` (time means; t_s
        is the middle of the span). TTFT and E2E are those of the requests that arrive in the span, their p99 over two
        spans more on both sides, but not across the begin of a rollout or fault; None where there are too few.
    :ivar breakdown: mean seconds per completed request, adding up to ``e2e_mean_s``: ``{"loader_queue_s",
        "load_s", "queue_s", "prefill_s", "decode_s"}`` (for engine fixed: prefill 0, decode = service); docs/metrics.md
        says which wait lies where.
    :ivar groups: rows by kind of adapter: ``{"group", "adapters", "adapter_bytes", "requests", "miss_ratio",
        "ttft_p99_s", "e2e_p99_s"}``; then rows by popularity (hottest 1 %, next 9 %, rest).
    :ivar capacity: what could bind: ``{"loader": {"utilization", "offered_load", "loaders"}, "slots":
        {"blocked_share", "in_use_peak", "slots"}, "kv": {"blocked_share", "peak_share", "tokens"}, "seats":
        {"blocked_share", "limit"}, "compute": {"utilization"}, "faults": {"crash", ...}}``; shares
        are of measured time; those of faults, by kind, times the share of replicas that are down or have slow storage;
        a part that the engine or the scenario lacks is missing.
    :ivar traffic: ``{"requests", "adapters", "rate_rps", "top_1pct", "top_10pct", "top_20pct",
        "effective_adapters"}`` of what was simulated.
    :ivar warnings: sentences for the reader.
    :ivar cost: ``{"wall_s", "simulated_s", "requests"}``.
    :ivar calibration: ``{"draws", "of", "overloaded"}``: draws simulated, draws of the profile, and with how many of
        those simulated more arrives than is served; ``{}`` for a profile without draws.
    :ivar replicas: rows of the first replication where there are several replicas: ``{"replica", "requests",
        "completed", "miss_ratio", "loads", "busy_share", "e2e_p99_s"}``, measured requests and time.
    :ivar events: what happened to the fleet in the first replication: ``{"t_s", "kind", "text"}``.
    :ivar version_mix: of scenarios with rollouts, over the spans of the timeline: ``{"t_s": [...], "versions": {"1":
        [...], "2": [...], "none": [...]}}``: shares of the requests that arrive in a span, by the version of their
        first token; none: refused or failed.
    :ivar harm: of scenarios with rollouts or faults, measured requests of all replications by what befell them:
        ``{"requests", "mixed", "stale", "refused_by_rollout", "wrong_served", "wrong_detected", "retried", "lost",
        "failed_loads", "rerouted", "old_prefix", "failed", "slow", "unanswered", "slow_unanswered", "requests_before",
        "unanswered_after", "slow_before"}``; slow: late by the targets for single requests, None without such targets;
        unanswered: unfinished when the run ended, those of them that are slow too, and those that came from the first
        rollout or fault on; before: those that came before that, where it isn't there from the start.
    :ivar held: rollouts that were held because their version was vetted and failed: ``{"rollouts": [{"rollout",
        "strategy", "at_s", "weights", "vetted"}], "requests", "answered": {"value", "lo", "hi"}, "by_rollout": [...],
        "metrics": {NAME: ...}}``: what was avoided, by the same traffic with them going out
        (``sim.results.held_back_counterfactual``).
    :ivar traffic_ids: ``{"requests", "draws"}``: digests of the traffic, equal where two points met the same one
        (``sim.results.traffic_digest``).
    :ivar late: by latency term of the SLO; ``{}`` where every measured request was served.
    :ivar unserved: measured requests of all replications: ``{"requests", "refused", "failed", "too_long",
        "longest_tokens", "limit_tokens"}``; too long: refused at arrival for their tokens, with the most that one of
        them has, and how many ``fleet.max_model_len`` or the KV cache allows; ``{}`` where every one was served.
    """

    set: dict[str, Any]
    metrics: dict[str, Metric]
    cdf: dict[str, list[float]] = field(default_factory=dict)
    timeline: dict[str, list[Any]] = field(default_factory=dict)
    breakdown: dict[str, float] = field(default_factory=dict)
    groups: list[dict[str, Any]] = field(default_factory=list)
    capacity: dict[str, dict[str, float | None]] = field(default_factory=dict)
    traffic: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    cost: dict[str, float] = field(default_factory=dict)
    calibration: dict[str, int] = field(default_factory=dict)
    replicas: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    version_mix: dict[str, Any] = field(default_factory=dict)
    harm: dict[str, int | None] = field(default_factory=dict)
    traffic_ids: dict[str, str] = field(default_factory=dict)
    held: dict[str, Any] = field(default_factory=dict)
    late: dict[str, Late] = field(default_factory=dict)
    unserved: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain data that ``json`` can write, without the parts that most points have nothing of."""
        data = asdict(replace(self, metrics={}, late={}))
        data["metrics"] = self.metrics_json()
        calibrated = bool(self.calibration)
        data["late"] = {
            name: {"target": late.target, "share": late.share.to_json(calibrated=calibrated)}
            for name, late in self.late.items()
        }
        data["parts"] = {name: metric.parts for name, metric in self.metrics.items() if metric.parts}
        for name in ("calibration", "held", "late", "unserved"):
            if not data[name]:
                del data[name]
        return data

    def metrics_json(self) -> dict[str, Any]:
        """Return the metrics as plain data."""
        return {name: metric.to_json(calibrated=bool(self.calibration)) for name, metric in self.metrics.items()}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Point:
        """Build a point from what ``to_json`` gave; keys of other versions are left out."""
        parts = data.get("parts", {})
        metrics = {name: Metric(**values, parts=parts.get(name, [])) for name, values in data["metrics"].items()}
        late = {name: Late(one["target"], Metric(**one["share"])) for name, one in data.get("late", {}).items()}
        known = {one.name for one in fields(Point)}
        given = {key: value for key, value in data.items() if key in known}
        return Point(**{**given, "metrics": metrics, "late": late})
