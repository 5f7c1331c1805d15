"""What one simulated point (one set of values of the swept keys) says: the contract with reports.

``Point`` and its parts are frozen data: whoever changes one makes a new one (``dataclasses.replace``). A point becomes
one entry of ``summary.json`` (``set`` and ``metrics``) and one file under ``points/`` of a run directory (everything),
from which reports are written without simulating.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from sim.results.metric_state import SETTLED, TRUSTED, Kind, State
from sim.results.model import Capacity, ComputeUse, HeldBack, Impact, Setup, Timeline, from_plain

COUNTS = frozenset({"requests", "sessions", "loads", "moves", "replicas", "replica-s"})
"""Units of counts: exact for their run. Of rollouts and faults they are means over the replications."""


@dataclass(frozen=True, slots=True)
class Metric:
    """An estimate and its 95 % interval.

    ``value`` is None where there is nothing to measure or not enough of it; ``state`` says why, and how far a value can
    be trusted (docs/statistics.md). ``calibration_lo`` and ``calibration_hi`` are the 95 % interval of what the
    profile's draws leave open; None without draws.

    ``parts`` holds the metric in the parts of the run that the interval is made from: one value a replication from five
    replications on, else one a section; None in a part that has none. Sums over a run have what each part adds. Of
    rollouts and their impact it is always one value a replication. They are for comparing with the same parts of
    other designs (``sim.results.pairs``), so tables leave them out.
    """

    value: float | None
    lo: float | None = None
    hi: float | None = None
    unit: str = "1"
    state: State = SETTLED
    calibration_lo: float | None = None
    calibration_hi: float | None = None
    parts: list[float | None] = field(default_factory=list, repr=False)

    @property
    def settled(self) -> bool:
        """Whether there is nothing to doubt; a count is exact for its run, so it needs no interval."""
        exact = self.state.kind is Kind.ONE_REPLICATION and self.unit in COUNTS
        return exact or self.state.kind in TRUSTED

    @property
    def note(self) -> str:
        """What files say of the state."""
        return self.state.note

    @property
    def applies(self) -> bool:
        """Whether the scenario has what this metric is about."""
        return self.value is not None or self.state.kind is not Kind.NOT_APPLICABLE

    def mapped(self, change: Callable[[float], float]) -> Metric:
        """Return the metric with its value, the ends of its intervals and its parts changed."""
        ends: dict[str, Any] = {
            name: None if (end := getattr(self, name)) is None else change(end)
            for name in ("value", "lo", "hi", "calibration_lo", "calibration_hi")
        }
        return replace(self, **ends, parts=[None if part is None else change(part) for part in self.parts])

    def to_json(self, *, calibrated: bool) -> dict[str, Any]:
        """Return plain data without parts, with the calibration interval only where the profile has draws."""
        data = {
            "value": self.value,
            "lo": self.lo,
            "hi": self.hi,
            "unit": self.unit,
            "settled": self.settled,
            "note": self.note,
        }
        if calibrated:
            data |= {"calibration_lo": self.calibration_lo, "calibration_hi": self.calibration_hi}
        return data

    def kept(self, *, calibrated: bool) -> dict[str, Any]:
        """Return what the file of a point keeps: ``to_json``, and the state where it is not simply settled."""
        data = self.to_json(calibrated=calibrated)
        return data if self.state == SETTLED else {**data, "state": self.state.to_json()}


@dataclass(frozen=True, slots=True)
class LateShare:
    """How many of the measured requests an SLO term counts as late, those without an answer among them.

    :ivar target: that of the term. The share is of no use for another one.
    :ivar share: with its interval (``sim.results.served``).
    """

    target: float
    share: Metric


@dataclass(frozen=True, slots=True)
class SliceResult:
    """What some of the requests got: those of a pool, a group of adapters, or a replica (``sim.results.slices``).

    :ivar facts: what it is, and counts that are exact for the run.
    :ivar metrics: those of the catalogue that this kind of slice has, made as the fleet's are.
    """

    name: str
    facts: dict[str, Any]
    metrics: dict[str, Metric]

    @property
    def row(self) -> dict[str, Any]:
        """Facts and the values of metrics, by name."""
        return {**self.facts, **{name: metric.value for name, metric in self.metrics.items()}}


@dataclass(frozen=True, slots=True)
class TenantResult:
    """What the requests of one tenant got.

    :ivar slo: its targets by metric name.
    :ivar metrics: those of the fleet that are over requests.
    :ivar late: as of a point, for its own targets.
    :ivar overload: its arrivals over its completions where its queue grew over the whole measured time; else None.
    :ivar token_share: its share of the tokens of all requests that completed in the measured time.
    :ivar cost_share: the same with its interval: its share of what the fleet costs.
    :ivar sold: what its completed requests are a month, by what a price is for: ``input`` and ``output``, millions of
        tokens, and ``request``.
    :ivar price: in US dollars by what it is for, that its money is from; {}: it pays nothing.
    :ivar money: what it pays and costs a month. Revenue and margin only where it has a price, and all but revenue only
        where GPUs have one.
    """

    name: str
    slo: dict[str, float]
    metrics: dict[str, Metric]
    late: dict[str, LateShare] = field(default_factory=dict)
    overload: float | None = None
    token_share: float = 0.0
    cost_share: Metric | None = None
    sold: dict[str, Metric] = field(default_factory=dict)
    price: dict[str, float] = field(default_factory=dict)
    money: dict[str, Metric] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Usage:
    """How many GPU hours requests and tokens take, whatever an hour costs.

    :ivar gpus: of the whole fleet.
    :ivar metrics: costs at a price of 1 for a GPU and an hour; the names of
        ``catalogue.ONLY_WITH_PRICE``.
    :ivar price: of a GPU, in US dollars per hour, that the point's costs are from; None: it has no costs.
    """

    gpus: int
    metrics: dict[str, Metric]
    price: float | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """Everything a report needs to know of one point.

    :ivar set: swept keys and their values, ``{}`` for a single run.
    :ivar metrics: those of ``sim.results.catalogue`` that the scenario has anything of, in its order.
    :ivar setup: device, model, engine and profile.
    :ivar cdf: ``{"q": [...], "ttft_s": [...], "e2e_s": [...], "queue_s": [...], "load_wait_s": [...]}``,
        quantiles over all measured requests; a latency the engine lacks is an empty list.
    :ivar timeline: of the first replication.
    :ivar breakdown: mean seconds per completed request, adding up to ``e2e_mean_s``: ``{"front_end_s",
        "loader_queue_s", "load_s", "queue_s", "prefill_s", "decode_s"}`` (for engine fixed: prefill 0, decode =
        service), and with prefill and decode apart ``"hand_over_s", "read_s", "decode_queue_s", "decode_load_s"``;
        docs/metrics.md says which wait lies where.
    :ivar groups: the base model and all adapters, if there are requests to the base model; by kind of adapter, if there
        are several; by popularity (hottest 1 %, next 9 %, rest). Facts: ``{"adapters", "adapter_bytes", "token_share",
        "requests", "request_share"}``, and with a price ``"usd_per_month"``: its part of the fleet's cost.
    :ivar capacity: what could limit it, and how far each part is used.
    :ivar traffic: ``{"requests", "adapters", "rate_rps", "base_share" (only where above 0), "top_1pct", "top_10pct",
        "top_20pct", "effective_adapters"}`` of what was simulated; ``{"cycle_s", "measured_s", "whole_s"}``
        where the rate repeats a cycle of which only a part was measured, and how long a run takes that measures all.
    :ivar warnings: sentences for the reader.
    :ivar cost: ``{"wall_s", "simulated_s", "requests"}``.
    :ivar calibration: ``{"draws", "of", "overloaded"}``: draws simulated, draws of the profile, and with how many of
        those simulated more arrives than is served; ``{}`` for a profile without draws.
    :ivar replicas: where there are several, what each did in the first replication. Facts: ``{"pool", "completed",
        "loads", "gpu_utilization", "requests", "request_share"}``; those of full models are a pool of that name.
    :ivar events: what happened to the fleet in the first replication: ``{"t_s", "kind", "text"}``,
        ``"rollout"`` (its number) in those of rollouts, and ``"missed"`` where a gate did not hold.
    :ivar version_mix: of scenarios with rollouts, over the spans of the timeline: ``{"t_s": [...], "versions": {"1":
        [...], "2": [...], "none": [...]}}``: shares of the requests that arrive in a span, by the version of their
        first token; none: refused or failed.
    :ivar impact: of scenarios with rollouts or faults, what happened to the measured requests; None elsewhere.
    :ivar held_back: rollouts that were held back because their version was vetted and failed, and what that avoided.
    :ivar traffic_ids: ``{"requests", "draws"}``: digests of the traffic, equal where two points met the same one
        (``sim.results.point_summary.traffic_ids``).
    :ivar late: by latency term of the SLO; ``{}`` where every measured request was served.
    :ivar unserved: measured requests of all replications: ``{"requests", "refused", "failed", "too_long",
        "longest_tokens", "limit_tokens"}``; too long: refused at arrival for their tokens, with the most that one of
        them has, and how many ``fleet.max_model_len`` or the KV cache allows; ``{}`` where every one was served.
    :ivar usage: what costs follow from (``sim.results.fleet_costs``).
    :ivar pools: where there are several. Facts: ``{"replicas", "gpus", "device", "completed", "loads",
        "gpu_utilization", "requests", "request_share"}``, ``"role"`` with prefill and decode apart, where requests are
        those that it answers, and with a price ``"usd_per_month"``: what its GPUs cost.
    :ivar times: what requests got by when they came in the cycle that the rate repeats; [] where it repeats none.
        Facts: ``{"requests", "request_share"}``.
    :ivar tenants: what each tenant got, in the order of the scenario; [] without tenants.
    """

    set: dict[str, Any]
    metrics: dict[str, Metric]
    cdf: dict[str, list[float]] = field(default_factory=dict)
    timeline: Timeline = field(default_factory=Timeline)
    breakdown: dict[str, float] = field(default_factory=dict)
    groups: list[SliceResult] = field(default_factory=list)
    capacity: Capacity = field(default_factory=Capacity)
    traffic: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    cost: dict[str, float] = field(default_factory=dict)
    calibration: dict[str, int] = field(default_factory=dict)
    replicas: list[SliceResult] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    version_mix: dict[str, Any] = field(default_factory=dict)
    impact: Impact | None = None
    traffic_ids: dict[str, str] = field(default_factory=dict)
    held_back: HeldBack | None = None
    late: dict[str, LateShare] = field(default_factory=dict)
    unserved: dict[str, int] = field(default_factory=dict)
    setup: Setup | None = None
    usage: Usage | None = None
    pools: list[SliceResult] = field(default_factory=list)
    times: list[SliceResult] = field(default_factory=list)
    tenants: list[TenantResult] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return plain data that ``json`` can write, without the parts that most points have nothing of."""
        calibrated = bool(self.calibration)
        data = {each.name: _plain(getattr(self, each.name)) for each in fields(self)}
        data["metrics"] = {name: metric.kept(calibrated=calibrated) for name, metric in self.metrics.items()}
        data["parts"] = {name: metric.parts for name, metric in self.metrics.items() if metric.parts}
        left_out = ("calibration", "late", "pools", "times", "tenants", "unserved")
        return {name: each for name, each in data.items() if each is not None and (each or name not in left_out)}

    def value(self, name: str) -> float | None:
        """Return a metric's value, None where there is none."""
        metric = self.metrics.get(name)
        return None if metric is None else metric.value

    def of_tenant(self, tenant: TenantResult) -> Point:
        """Return a tenant's requests as a point, to be judged as the fleet is.

        Loaders are the fleet's. A queue that grows is the tenant's own, such as in front of its bucket: where the draws
        of the profile overload the fleet, that says nothing of one tenant.
        """
        compute = ComputeUse(None, tenant.overload)
        capacity = Capacity(loader=self.capacity.loader, compute=compute)
        return Point(self.set, tenant.metrics, capacity=capacity, late=tenant.late)

    def without_calibration(self) -> Point:
        """Return the point as it would be if the profile's costs were certain."""
        certain = self._with_each(lambda metric: replace(metric, calibration_lo=None, calibration_hi=None))
        return replace(certain, calibration={})

    def of_endless_run(self) -> Point:
        """Return the point as it would be if its values were those of a run without end."""
        return self._with_each(lambda metric: replace(metric, lo=metric.value, hi=metric.value, state=SETTLED))

    def _with_each(self, change: Callable[[Metric], Metric]) -> Point:
        """Return the point with its metrics changed, those of its tenants and the shares of late requests, too."""

        def changed(of: Any) -> dict[str, Any]:
            late = {name: replace(late, share=change(late.share)) for name, late in of.late.items()}
            return {"metrics": {name: change(metric) for name, metric in of.metrics.items()}, "late": late}

        tenants = [replace(each, **changed(each)) for each in self.tenants]
        return replace(self, **changed(self), tenants=tenants)

    def metrics_json(self, metrics: Mapping[str, Metric] | None = None) -> dict[str, Any]:
        """Return the metrics as plain data; or some of a slice."""
        some = self.metrics if metrics is None else metrics
        return {name: metric.to_json(calibrated=bool(self.calibration)) for name, metric in some.items()}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Point:
        """Build a point from what ``to_json`` gave; other keys are left out."""
        parts = data.get("parts", {})
        metrics = {name: {**one, "parts": parts.get(name, [])} for name, one in data["metrics"].items()}
        return from_plain(Point, {**data, "metrics": metrics})


def _plain(value: Any) -> Any:
    """Return plain data with lists and dicts of its own: of a dataclass its fields, unless it says how itself."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, Metric):
        return {**value.kept(calibrated=value.calibration_lo is not None), "parts": list(value.parts)}
    if hasattr(value, "to_json"):
        return value.to_json()
    return {each.name: _plain(getattr(value, each.name)) for each in fields(value)} if is_dataclass(value) else value
