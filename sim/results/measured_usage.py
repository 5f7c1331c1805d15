"""How many GPU hours requests and tokens take."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np

from sim.results.fleet_costs import HOURS_PER_MONTH
from sim.results.point import Metric
from sim.results.sample_data import Floats, MeasuredRequests
from sim.results.statistics import mean_count, ratio

_SECONDS_PER_HOUR = 3600.0
_MILLION = 1e6
_ROUNDING = 1e-9
"""Share of idle time that floating-point arithmetic alone leaves."""


class GpuHours:
    """GPU hours of all replications, as costs at a price of 1 per GPU hour.

    All GPUs are paid for all the time, whether they compute or not; with an autoscaler, from the start of a replica's
    cold start to the end of its drain.
    """

    def __init__(self, m: MeasuredRequests) -> None:
        self._m = m
        each = m.facts.gpus // m.facts.replicas
        self._seconds = m.replica_seconds(each) if m.autoscaled else m.spans * m.facts.gpus
        self._hours = self._seconds / _SECONDS_PER_HOUR

    @cached_property
    def m_prompt(self) -> Floats:
        """Millions of prompt tokens of the requests that end, by section."""
        return self._m.by_finish(weight="prompt_tokens") / _MILLION

    @cached_property
    def m_output(self) -> Floats:
        """Millions of output tokens."""
        return self._m.by_finish(weight="output_tokens") / _MILLION

    def per(self, counts: Floats) -> Metric:
        """Return the cost of one of what is counted by section."""
        return ratio(self._hours, counts, self._m.sections, "USD")

    def whole(self) -> Metric:
        """Return the cost of a replication."""
        return mean_count(self._hours.reshape(self._m.replications, -1).sum(axis=1), "USD")

    def month(self, busy: Metric) -> Metric:
        """Return the cost of a month.

        :param busy: the share of the time in which GPUs compute; a cost that doesn't vary has as many parts.
        """
        if self._m.autoscaled:
            gpus = ratio(self._seconds, self._m.spans, self._m.sections, "USD")
            return gpus.mapped(lambda count: count * HOURS_PER_MONTH)
        month = self._m.facts.gpus * HOURS_PER_MONTH
        parts: list[float | None] = [month] * len(busy.parts)
        return Metric(month, month, month, "USD", parts=parts)

    def idle(self, busy: Metric) -> Metric:
        """Return what the time without computing takes of a month."""
        month = self.month(busy).value or 0.0

        def idle(share: float) -> float:
            return 0.0 if 1 - share < _ROUNDING else (1 - share) * month

        return replace(busy, lo=busy.hi, hi=busy.lo, unit="USD").mapped(idle)


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
