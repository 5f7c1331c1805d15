"""How many GPU hours requests and tokens take."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sim.results.changes.change_metrics import mean_count
from sim.results.fleet_costs.prices import HOURS_PER_MONTH
from sim.results.metric_state import Cause, State
from sim.results.point import UNITS, Metric, Usage
from sim.results.sample_data import MeasuredRequests
from sim.results.statistics import ratio

_SECONDS_PER_HOUR = 3600.0
_MILLION = 1e6
_ROUNDING = 1e-9
"""Share of idle time that floating-point arithmetic alone leaves."""


def measured_usage(m: MeasuredRequests, busy: Metric) -> Usage:
    """Return the usage of all replications, as costs at a price of 1 per GPU hour.

    All GPUs are paid for all the time, whether they compute or not; with an autoscaler, from the start of a replica's
    cold start to the end of its drain.

    :param busy: the share of the time in which GPUs compute.
    """
    per_replica = m.facts.gpus // m.facts.replicas
    seconds = m.replica_seconds(per_replica) if m.autoscaled else m.spans * m.facts.gpus
    hours = seconds / _SECONDS_PER_HOUR
    by_finish = {"usd_per_request": m.by_finish()}
    if not m.facts.fixed:
        prompts, answers = (m.by_finish(weight=name) / _MILLION for name in ("prompt_tokens", "output_tokens"))
        by_finish |= {
            "usd_per_m_tokens": prompts + answers,
            "usd_per_m_input_tokens": prompts,
            "usd_per_m_output_tokens": answers,
        }
    nothing = Metric(None, unit="USD", state=State(Cause.NO_TOKENS))
    metrics = dict.fromkeys(("usd_per_m_tokens", "usd_per_m_input_tokens", "usd_per_m_output_tokens"), nothing)
    metrics |= {name: ratio(hours, counts, m.sections, "USD") for name, counts in by_finish.items()}
    if m.autoscaled:
        metrics["cost_usd"] = mean_count(hours.reshape(m.replications, -1).sum(axis=1), "USD")
        metrics["usd_per_month"] = _monthly(ratio(seconds, m.spans, m.sections, "USD"))
    else:
        month = m.facts.gpus * HOURS_PER_MONTH
        parts: list[float | None] = [month] * len(busy.parts)
        metrics["usd_per_month"] = Metric(month, month, month, "USD", parts=parts)
    month = metrics["usd_per_month"].value or 0.0
    metrics["idle_usd_per_month"] = _idle(busy, month)
    return Usage(m.facts.gpus, {name: metrics[name] for name in UNITS if name in metrics})


def _monthly(gpus: Metric) -> Metric:
    """Return what so many GPUs cost in a month."""

    def cost(count: float | None) -> float | None:
        return None if count is None else count * HOURS_PER_MONTH

    return replace(gpus, value=cost(gpus.value), lo=cost(gpus.lo), hi=cost(gpus.hi), parts=[*map(cost, gpus.parts)])


def sold(m: MeasuredRequests) -> dict[str, Metric]:
    """Return what completed requests are in a month: ``request``, and millions of ``input`` and ``output`` tokens.

    Like throughput, it counts what ends in the measured time.
    """
    sales = {"request": m.by_finish()}
    if not m.facts.fixed:
        sales["input"] = m.by_finish(weight="prompt_tokens") / _MILLION
        sales["output"] = m.by_finish(weight="output_tokens") / _MILLION
    month = HOURS_PER_MONTH * _SECONDS_PER_HOUR
    return {name: ratio(count * month, m.spans, m.sections, "1") for name, count in sales.items()}


def tokens_of(m: MeasuredRequests) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return the prompt and output tokens of every measured request that completed; 0 for the others."""
    tokens = m.column("prompt_tokens") + m.column("output_tokens")
    return np.where(m.completed, tokens, 0).astype(np.float64)


def _idle(busy: Metric, month: float) -> Metric:
    """Return what the time without computing takes of a month."""

    def idle(share: float | None) -> float | None:
        return None if share is None else (0.0 if 1 - share < _ROUNDING else (1 - share) * month)

    return replace(
        busy, value=idle(busy.value), lo=idle(busy.hi), hi=idle(busy.lo), unit="USD", parts=[*map(idle, busy.parts)]
    )
