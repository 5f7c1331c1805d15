"""Compare measured with predicted metrics, in one table with a row a request, and with the noise of repeated runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from calibrate.serve.client import COMPLETE
from calibrate.serve.drive import LiveRun
from calibrate.serve.serve_prediction import ServePrediction, latency_metrics
from calibrate.serve.server_metrics import ObservedRun, over_run

if TYPE_CHECKING:
    import pyarrow

Floats = NDArray[np.float64]

# By hand: a plain list of names reads better in lines than one name a line.
METRICS = (
    "throughput_rps",
    "output_tokens_per_s",
    "ttft_p50_s",
    "ttft_p90_s",
    "ttft_p99_s",
    "ttft_mean_s",
    "itl_p50_s",
    "itl_mean_s",
    "itl_p99_s",
    "e2e_p50_s",
    "e2e_p90_s",
    "e2e_p99_s",
    "e2e_mean_s",
    "loads_per_request",
    "miss_ratio",
    "in_flight_mean",
    "preemptions",
)
"""What is compared, in the order of the table."""

WANTED = {
    "loads_per_request": 0.10,
    "throughput_rps": 0.05,
    "ttft_p50_s": 0.15,
    "e2e_p50_s": 0.15,
    "ttft_p99_s": 0.40,
    "e2e_p99_s": 0.40,
}
"""Relative errors that a good prediction stays below on an otherwise idle machine."""


@dataclass(frozen=True, slots=True)
class RequestTimes:
    """A measured run as arrays over its planned requests; NaN where a request was not served completely.

    :ivar sent_s: seconds after the run's start.
    """

    sent_s: Floats
    ttft_s: Floats
    e2e_s: Floats
    late_s: Floats


def times_of(run: LiveRun, count: int) -> RequestTimes:
    """Return the times of a run of ``count`` requests."""
    columns = {name: np.full(count, np.nan) for name in ("sent", "ttft", "e2e", "late")}
    for sent in run.sent:
        place, at = sent.request.index, sent.sent - run.start
        if not sent.sent:
            continue
        columns["sent"][place], columns["late"][place] = at, at - sent.request.at_s
        if sent.status == COMPLETE:
            columns["ttft"][place], columns["e2e"][place] = sent.first - sent.sent, sent.last - sent.sent
    return RequestTimes(columns["sent"], columns["ttft"], columns["e2e"], columns["late"])


def measured_metrics(run: LiveRun, times: RequestTimes, observed: ObservedRun | str) -> dict[str, float]:
    """Return the metrics of one run, those that could be measured."""
    done = np.isfinite(times.e2e_s)
    output = np.array([sent.request.output_tokens for sent in run.sent if sent.status == COMPLETE], dtype=np.float64)
    gaps = np.array([gap for sent in run.sent if sent.status == COMPLETE for gap in sent.gaps()])
    if not done.any():
        return {}
    span = float(np.max((times.sent_s + times.e2e_s)[done]) - np.nanmin(times.sent_s))
    result = latency_metrics(times.ttft_s[done], times.e2e_s[done], output, span)
    if len(gaps):
        result |= {
            "itl_mean_s": float(gaps.mean()),
            "itl_p50_s": float(np.quantile(gaps, 0.5)),
            "itl_p99_s": float(np.quantile(gaps, 0.99)),
        }
    counted = over_run(run.pages)
    if "preemptions" in counted:
        result["preemptions"] = counted["preemptions"]
    if not isinstance(observed, str):
        result["loads_per_request"] = observed.loads / len(times.sent_s)
        result["miss_ratio"] = observed.misses / len(times.sent_s)
    return result


def comparison(runs: Sequence[dict[str, float]], prediction: ServePrediction) -> dict[str, dict[str, float | None]]:
    """Return, by metric, the mean of what was measured, what was predicted, its error and the noise.

    The noise is the largest difference between runs, relative to their mean; None for a single run.
    """
    table: dict[str, dict[str, float | None]] = {}
    for name in METRICS:
        values = [run[name] for run in runs if name in run]
        predicted = prediction.metrics.get(name)
        measured = float(np.mean(values)) if values else None
        error = predicted / measured - 1 if measured and predicted is not None else None
        noise = (max(values) - min(values)) / measured if len(values) > 1 and measured else None
        table[name] = {
            "measured": measured,
            "predicted": predicted,
            "error": error,
            "noise": noise,
            "wanted": WANTED.get(name),
        }
    return table


def request_table(runs: Sequence[LiveRun], times: Sequence[RequestTimes], prediction: ServePrediction) -> pyarrow.Table:
    """Return one row a request and run: what was sent, what came, and what was predicted."""
    import pyarrow as pa

    rows: list[dict[str, Any]] = []
    for number, (run, columns) in enumerate(zip(runs, times, strict=True), 1):
        for sent in run.sent:
            r, place = sent.request, sent.request.index
            rows.append(
                {
                    "run": number,
                    "index": r.index,
                    "adapter": r.adapter,
                    "prompt_tokens": r.prompt_tokens,
                    "output_tokens": r.output_tokens,
                    "planned_s": r.at_s,
                    "sent_s": columns.sent_s[place],
                    "status": sent.status,
                    "problem": sent.problem,
                    "tokens": sent.tokens,
                    "ttft_s": columns.ttft_s[place],
                    "e2e_s": columns.e2e_s[place],
                    "itl_max_s": max(sent.gaps(), default=float("nan")),
                    "predicted_ttft_s": prediction.ttft_s[place],
                    "predicted_e2e_s": prediction.e2e_s[place],
                }
            )
    return pa.Table.from_pylist(rows)
