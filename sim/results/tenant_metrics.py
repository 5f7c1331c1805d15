"""From the recordings of a point's replications to what each tenant got."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sim.results.catalogue import TENANT_METRICS
from sim.results.measured_usage import sold
from sim.results.metric_state import Cause, State
from sim.results.metrics import measure
from sim.results.point import Metric, TenantResult
from sim.results.records import Recording
from sim.results.sample_data import MeasuredRequests, ScenarioFacts
from sim.results.served import is_served, late_shares
from sim.results.statistics import MIN_FOR_P99, ratio


def tenant_results(
    recordings: Sequence[Recording],
    facts: ScenarioFacts,
    overload_of: Callable[[MeasuredRequests], float | None],
    least_for_p99: int | None = None,
) -> list[TenantResult]:
    """Return what each tenant got, in the order of the scenario; [] without tenants.

    :param overload_of: arrivals over completions where a queue grew over the whole measured time, else None.
    :param least_for_p99: requests that a p99 needs, where it is only compared; None: as many as usual.
    """
    if not facts.tenants:
        return []
    assert facts.tenant_of is not None, "there are tenants"
    whole = [facts.tenant_of[np.asarray(r.requests["adapter"], dtype=np.int64)] for r in recordings]
    found, tokens = [], []
    for place, tenant in enumerate(facts.tenants):
        own = [_only(r, tenants == place) for r, tenants in zip(recordings, whole, strict=True)]
        own_facts = replace(facts, slo=tenant.slo, tenants=())
        least = MIN_FOR_P99 if least_for_p99 is None else least_for_p99
        metrics, m = measure(own, own_facts, least, TENANT_METRICS)
        overload = overload_of(m)
        # As what is sold, by the time of the end: otherwise, margins would be differences of two things.
        tokens.append(m.by_finish(weight="prompt_tokens") + m.by_finish(weight="output_tokens"))
        found.append(
            TenantResult(
                name=tenant.name,
                slo=dict(tenant.slo),
                metrics={name: _judged(metric, overload) for name, metric in metrics.items()},
                late={} if is_served(m) and least_for_p99 is None else late_shares(m),
                overload=overload,
                sold=sold(m),
            )
        )
    total = np.sum(tokens, axis=0)
    shares = [ratio(own, total, m.sections, "1", highest=1) for own in tokens]
    return [
        replace(one, token_share=share.value or 0.0, cost_share=share) for one, share in zip(found, shares, strict=True)
    ]


def _only(recording: Recording, own: NDArray[np.bool_]) -> Recording:
    """Return a recording with these requests alone; what it says of steps and loads stays the fleet's."""
    requests = {name: values[own] for name, values in recording.requests.items()}
    return replace(recording, requests=requests, section_of=recording.section_of[own])


def _judged(metric: Metric, overload: float | None) -> Metric:
    """Return a latency unsettled where more of the tenant's requests come than are served."""
    if overload is None or overload < 1 or metric.unit != "s" or metric.value is None:
        return metric
    return replace(metric, state=State(Cause.OVERLOADED))
