"""How a simulated fleet served its requests, in the terms in which clients and metrics pages measure real ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sim.arrays import Floats
from sim.results.recording.leaps import gap_bin_edges
from sim.results.records import COMPLETED, Recording
from sim.results.statistics import histogram_quantile
from sim.world.replication import simulate
from sim.world.world import World

Latency = Literal["ttft", "tpot", "itl", "e2e"]


@dataclass(frozen=True, slots=True)
class PredictedService:
    """Measures of simulated requests. Warm-ups are left out, except of ``running`` and ``waiting``.

    :ivar latencies: seconds of every completed request, by kind; TPOT of those with several tokens. Not ITL.
    :ivar gap_counts: gaps between tokens, in the bins of ``gap_bin_edges``; ``gap_sum_s`` their sum.
    :ivar requests_per_s, output_tokens_per_s: completed, over the time from the first request to the last token.
    :ivar running, waiting: requests in the batch and before it, means over the whole run, warm-up included,
        of all replicas together.
    :ivar prefix_hits: share of prompt tokens that were found cached; None without a prefix cache.
    """

    latencies: dict[str, Floats]
    gap_counts: NDArray[np.int64]
    gap_sum_s: float
    requests_per_s: float
    output_tokens_per_s: float
    running: float
    waiting: float
    prefix_hits: float | None

    def mean(self, kind: Latency) -> float:
        """Return a mean in seconds; NaN without values."""
        if kind == "itl":
            total = int(self.gap_counts.sum())
            return self.gap_sum_s / total if total else math.nan
        values = self.latencies[kind]
        return float(values.mean()) if len(values) else math.nan

    def quantile(self, kind: Latency, share: float) -> float:
        """Return a quantile in seconds; NaN without values."""
        if kind == "itl":
            return histogram_quantile(self.gap_counts, gap_bin_edges(), share)
        values = self.latencies[kind]
        return float(np.quantile(values, share)) if len(values) else math.nan


def predict_service(world: World, replications: int) -> PredictedService:
    """Simulate a world, and return how its requests were served.

    :param replications: simulations with different random numbers; of a trace, with other orders of adapters in a step.
    """
    return service_of([simulate(world, number, 1) for number in range(replications)])


def service_of(recordings: Sequence[Recording]) -> PredictedService:
    """Return how the requests of recordings were served, all together."""
    columns = [recording.measured() for recording in recordings]
    r = {name: np.concatenate([each[name] for each in columns]) for name in columns[0]}
    done = r["status"] == COMPLETED
    arrival, first, finished, output = (
        r[name][done].astype(np.float64) for name in ("arrival_s", "first_token_s", "finished_s", "output_tokens")
    )
    several = output > 1
    spans = [_span(each) for each in columns]
    cached = r.get("cached_tokens")
    return PredictedService(
        latencies={
            "ttft": first - arrival,
            "tpot": (finished - first)[several] / (output[several] - 1),
            "e2e": finished - arrival,
        },
        gap_counts=np.sum([recording.gap_counts.sum(axis=0) for recording in recordings], axis=0),
        gap_sum_s=float(sum(recording.gap_sum_s.sum() for recording in recordings)),
        requests_per_s=float(done.sum()) / sum(spans) if sum(spans) > 0 else math.nan,
        output_tokens_per_s=float(output.sum()) / sum(spans) if sum(spans) > 0 else math.nan,
        running=float(np.mean([each.running_area / each.stopped_s for each in recordings])),
        waiting=float(
            np.mean([max(each.inside_area - each.running_area, 0.0) / each.stopped_s for each in recordings])
        ),
        prefix_hits=None if cached is None else float(cached[done].sum() / max(r["prompt_tokens"][done].sum(), 1)),
    )


def _span(columns: dict[str, NDArray[np.generic]]) -> float:
    """Return the seconds from the first request to the last token; 0 without a completed request."""
    done = columns["status"] == COMPLETED
    if not done.any():
        return 0.0
    return float(columns["finished_s"][done].astype(np.float64).max() - columns["arrival_s"].astype(np.float64).min())


PERCENTS = (50, 90, 99)
"""Quantiles that ``predicted_values`` returns."""


def predicted_values(predicted: PredictedService) -> dict[str, float]:
    """Return rates and latencies by metric: ``requests_per_s``, ``ttft_mean_s``, ``ttft_p50_s`` and the like."""
    values = {"requests_per_s": predicted.requests_per_s, "output_tokens_per_s": predicted.output_tokens_per_s}
    for kind in get_args(Latency):
        values[f"{kind}_mean_s"] = predicted.mean(kind)
        for percent in PERCENTS:
            values[f"{kind}_p{percent}_s"] = predicted.quantile(kind, percent / 100)
    return values
