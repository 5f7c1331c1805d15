"""Some of the requests, measured as all of them are: of a tenant, a pool, a group of adapters, a replica, or a time.

Which metrics a slice has stands in ``sim.results.catalogue``. What it says of steps and loads stays the fleet's.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.arrays import Mask
from sim.results.capacity import overload
from sim.results.catalogue import measured_of
from sim.results.fleet_metrics import sold
from sim.results.metric_state import Cause, State
from sim.results.metrics import Measured, metrics_of
from sim.results.point import Metric, SliceResult, TenantResult
from sim.results.records import Recording
from sim.results.sample_data import MeasuredRequests, ScenarioFacts, Span
from sim.results.served import is_served, late_shares
from sim.results.statistics import MIN_FOR_P99, MIN_SECTION_P99, ratio


@dataclass(frozen=True, slots=True)
class Slice:
    """Which requests.

    :ivar adapters: (adapters + 1,) those for these adapters, last the base model; None: those that went to
        ``replicas``, or that arrived in ``span``.
    """

    name: str
    adapters: Mask | None = None
    replicas: range = range(0)
    span: Span | None = None

    def of(self, m: Measured, facts: ScenarioFacts | None = None) -> Measured:
        """Return the measured requests of the slice.

        :param facts: its own; None: those of the fleet.
        """
        part = Measured([self._only(r) for r in m.recordings], facts or m.facts, m.least_for_p99, alone=m.alone)
        part.near_saturation = m.near_saturation  # of loaders and servers, which are the fleet's
        return part

    def _only(self, r: Recording) -> Recording:
        if self.span is not None:
            at = np.asarray(r.requests["arrival_s"], dtype=np.float64) % self.span.cycle_s
            own = np.flatnonzero((at >= self.span.from_s) & (at < self.span.to_s))
        elif self.adapters is None:
            replica = np.asarray(r.requests["replica"], dtype=np.int64)
            own = np.flatnonzero((replica >= self.replicas.start) & (replica < self.replicas.stop))
        else:
            own = np.flatnonzero(self.adapters[np.asarray(r.requests["adapter"], dtype=np.int64)])
        return replace(r, requests=_Columns(r.requests, own), section_of=r.section_of.take(own))


class _Columns(dict[str, NDArray[np.generic]]):
    """The columns of some requests, each made when something reads it: most are never read."""

    def __init__(self, every: Mapping[str, NDArray[np.generic]], own: NDArray[np.intp]) -> None:
        self._every, self._own = every, own

    def __missing__(self, name: str) -> NDArray[np.generic]:
        column = self[name] = self._every[name].take(self._own)
        return column


def overloaded(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """Return metrics with all latencies unsettled, where more requests come than are served: they depend on how long
    the run is."""
    state = State(Cause.OVERLOADED)
    return {
        name: replace(metric, state=state) if metric.unit == "s" and metric.value is not None else metric
        for name, metric in metrics.items()
    }


def _result(names: Container[str], one: Slice, m: Measured, facts: Mapping[str, Any]) -> SliceResult:
    part = one.of(m)
    metrics, requests = metrics_of(part, names), len(part.section)
    if m.facts.fixed:  # has one answer, whose TTFT is its E2E
        metrics |= {name: Metric(None, unit="s", state=State(Cause.NO_TOKENS)) for name in metrics if "ttft" in name}
    counts = {"requests": requests, "request_share": requests / len(m.section) if len(m.section) else 0.0}
    return SliceResult(one.name, {**facts, **counts}, metrics)


def _use(m: Measured, replicas: range) -> dict[str, Any]:
    """Return the requests that some replicas completed, their loads, and the share of the time in which they compute:
    exact for the run."""
    replica = m.column("replica")
    done = m.completed & (replica >= replicas.start) & (replica < replicas.stop)
    busy_s = sum(float(r.busy_by_replica[replicas.start : replicas.stop].sum()) for r in m.recordings)
    loads = 0
    for r in m.recordings:
        own = (r.loads["replica"] >= replicas.start) & (r.loads["replica"] < replicas.stop)
        loads += int((own & (r.loads["started_s"] >= r.bounds[0]) & (r.loads["started_s"] < r.bounds[-1])).sum())
    time_s = float(m.spans.sum()) * len(replicas)
    return {"completed": int(done.sum()), "loads": loads, "gpu_utilization": busy_s / time_s if time_s > 0 else None}


def pool_results(m: Measured) -> list[SliceResult]:
    """Return what each pool did; nothing without pools."""
    found = []
    for pool in m.facts.pools:
        replicas = range(pool.first, pool.first + pool.replicas)
        facts = {"replicas": pool.replicas, "gpus": pool.gpus, "device": pool.device, **_use(m, replicas)}
        facts |= {"role": pool.role} if pool.role else {}
        found.append(_result(measured_of("pool"), Slice(pool.name, replicas=replicas), m, facts))
    return found


def replica_results(recording: Recording, facts: ScenarioFacts) -> list[SliceResult]:
    """Return what each replica did in one replication; nothing for a single replica."""
    if facts.replicas == 1:
        return []
    m = Measured([recording], facts, MIN_SECTION_P99)
    pool_of = [pool.name for pool in facts.pools for _ in range(pool.replicas)]
    found = []
    for number in range(facts.replicas):
        kind = "full models" if number >= facts.own_replicas else pool_of[number] if pool_of else ""
        replicas = range(number, number + 1)
        one, own = Slice(str(number), replicas=replicas), {"pool": kind, **_use(m, replicas)}
        found.append(_result(measured_of("replica"), one, m, own))
    return found


def group_results(m: Measured) -> list[SliceResult]:
    """Return what each group of adapters got: the base model and all adapters if both are asked for, kinds of adapters,
    and popularity as seen in the run."""
    tokens = np.where(m.completed, m.column("prompt_tokens") + m.column("output_tokens"), 0).astype(np.float64)
    whole = float(tokens.sum())
    adapter = m.column("adapter").astype(np.int64)
    found = []
    for name, chosen in _groups(m):
        sizes = m.facts.size_bytes[chosen[:-1]]
        facts = {
            "adapters": len(sizes),
            "adapter_bytes": float(sizes.mean()) if len(sizes) else 0.0,
            "token_share": float(tokens[chosen[adapter]].sum()) / whole if whole else 0.0,
        }
        found.append(_result(measured_of("group"), Slice(name, chosen), m, facts))
    return found


def span_results(m: Measured) -> list[SliceResult]:
    """Return what requests got by when they came in the cycle that the rate repeats; [] if all came in one part.

    They have the metrics of a group, and what the SLO is about.
    """
    asked = [name for name in measured_of("tenant") if name in m.facts.slo or name == "slo_attainment"]
    names = (*measured_of("group"), *asked)
    found = [_result(names, Slice(span.name, span=span), m, {}) for span in m.facts.spans]
    found = [one for one in found if one.facts["requests"]]
    return found if len(found) > 1 else []


def _groups(m: MeasuredRequests) -> Iterator[tuple[str, Mask]]:
    """Yield groups by name, each with its adapters, last the base model."""
    facts, count = m.facts, len(m.facts.size_bytes)

    def adapters(chosen: Mask) -> Mask:
        return np.append(chosen, False)

    if m.for_base.any():
        yield "base model", np.append(np.zeros(count, dtype=np.bool_), True)
        yield "adapters", adapters(np.ones(count, dtype=np.bool_))
    if len(facts.kind_names) > 1:
        for number, name in enumerate(facts.kind_names):
            yield name, adapters(facts.kind == number)
    if count >= 10:
        asked = np.bincount(m.column("adapter")[~m.for_base], minlength=count)
        place = np.empty(count, dtype=np.int64)
        place[np.argsort(-asked, kind="stable")] = np.arange(count)
        top, next_ = max(1, round(count * 0.01)), max(2, round(count * 0.1))
        for name, first, end in (("hottest 1 %", 0, top), ("next 9 %", top, next_), ("other 90 %", next_, count)):
            yield name, adapters((place >= first) & (place < end))


def tenant_results(recordings: Sequence[Recording], facts: ScenarioFacts, *, alone: bool = False) -> list[TenantResult]:
    """Return what each tenant got, in the order of the scenario; [] without tenants.

    :param alone: whether they are only compared; see ``sim.results.point_summary.measure_alone``.
    """
    if not facts.tenants:
        return []
    assert facts.tenant_of is not None, "there are tenants"
    m = Measured(list(recordings), facts, MIN_SECTION_P99 if alone else MIN_FOR_P99, alone=alone)
    found, tokens = [], []
    for place, tenant in enumerate(facts.tenants):
        part = Slice(tenant.name, facts.tenant_of == place).of(m, replace(facts, slo=tenant.slo, tenants=()))
        metrics, over = metrics_of(part, measured_of("tenant")), overload(part)
        # As what is sold, by the time of the end: otherwise, margins would be differences of two things.
        tokens.append(part.by_finish(weight="prompt_tokens") + part.by_finish(weight="output_tokens"))
        found.append(
            TenantResult(
                name=tenant.name,
                slo=dict(tenant.slo),
                metrics=overloaded(metrics) if over is not None and over >= 1 else metrics,
                late={} if is_served(part) and not alone else late_shares(part),
                overload=over,
                sold={name: part.with_requests(metric) for name, metric in sold(part).items()},
            )
        )
    total = np.sum(tokens, axis=0)
    shares = [m.with_requests(ratio(own, total, m.sections, "1", highest=1)) for own in tokens]
    return [
        replace(one, token_share=share.value or 0.0, cost_share=share) for one, share in zip(found, shares, strict=True)
    ]
