"""Reports of inference-perf: ``stage_N_lifecycle_metrics.json``, ``summary_lifecycle_metrics.json``, and
``per_request_lifecycle_metrics.json`` with every request (``inference_perf/reportgen/base.py``).

Only a stage's report names its rate or concurrency; of the requests, the times at which they were sent are enough.
"""

from __future__ import annotations

import numpy as np

from sim.studies.benchmarks.bench_run import (
    QUANTILES,
    BenchRequests,
    BenchRun,
    ClosedLoad,
    JsonFields,
    Kind,
    OpenLoad,
    TokenSummary,
    measures_of,
)

FORM = "a report of inference-perf"
TOOL = "inference-perf"
_TAGS: dict[Kind, str] = {
    "ttft": "time_to_first_token",
    "tpot": "time_per_output_token",
    "itl": "inter_token_latency",
    "e2e": "request_latency",
}


def is_inference_perf(data: object) -> bool:
    """Return whether JSON has this form."""
    if isinstance(data, list):
        return bool(data) and all(isinstance(row, dict) and {"start_time", "end_time"} <= row.keys() for row in data)
    return isinstance(data, dict) and "load_summary" in data and "successes" in data


def read_inference_perf(fields: JsonFields, name: str) -> BenchRun:
    """Return the run of a report.

    :raises InputError: naming what is missing.
    """
    successes, load = fields.table("successes"), fields.table("load_summary")
    completed = int(successes.number("count"))
    measured = {"requests_per_s": successes.number("throughput.requests_per_sec")}
    if successes.has("throughput.output_tokens_per_sec"):
        measured["output_tokens_per_s"] = successes.number("throughput.output_tokens_per_sec")
    for kind, tag in _TAGS.items():
        if not successes.has(f"latency.{tag}"):
            continue
        found = successes.table(f"latency.{tag}")
        measured[f"{kind}_mean_s"] = found.number("mean")
        for percent in QUANTILES:
            value = found.maybe("median" if percent == 50 else f"p{percent}")
            if value is not None:
                measured[f"{kind}_p{percent}_s"] = value
    if load.has("concurrency"):
        how: ClosedLoad | OpenLoad = ClosedLoad(max(1, int(load.number("concurrency"))))
    else:
        how = OpenLoad(load.number("achieved_rate", "requested_rate"))
    return BenchRun(
        tool=TOOL,
        name=name,
        model=None,
        load=how,
        completed=completed,
        failed=int(fields.maybe("failures.count") or 0),
        prompt=_tokens(successes, "prompt_tokens", "prompt_len"),
        output=_tokens(successes, "output_tokens", "output_len"),
        measured=measured,
    )


def _tokens(successes: JsonFields, *tags: str) -> TokenSummary:
    tag = next((tag for tag in tags if successes.has(tag)), tags[0])
    found = successes.table(tag)
    return TokenSummary(found.number("mean"), found.maybe("p99"))


def read_inference_perf_requests(fields: JsonFields, name: str) -> BenchRun:
    """Return the run whose requests a file lists.

    :raises InputError: naming what is missing.
    """
    found = [JsonFields(fields.file, fields.form, row, str(place)) for place, row in enumerate(fields.data)]
    good = [row for row in found if not row.has("error")]
    if not good:
        raise fields.wrong("0", f"{len(found)} requests with an error", "a request without one")
    start = np.array([row.number("start_time") for row in good])
    order = np.argsort(start, kind="stable")
    end = np.array([row.number("end_time") for row in good])
    rows = BenchRequests(
        start_s=(start - start.min())[order],
        prompt_tokens=np.array(
            [row.number("computed_metrics.input_tokens", "info.request_metrics.text.input_tokens") for row in good]
        )[order].astype(np.int64),
        output_tokens=np.array(
            [row.number("computed_metrics.output_tokens", "info.response_metrics.output_tokens") for row in good]
        )[order].astype(np.int64),
        ttft_s=np.maximum(np.array([_first(row) for row in good]), 0.0)[order],
        e2e_s=np.maximum(end - start, 0.0)[order],
        gaps_s=np.concatenate([_gaps(row) for row in good]),
    )
    measured, errors = measures_of(rows)
    span = float(end.max() - start.min())
    sending = float(start.max() - start.min())
    measured["requests_per_s"] = len(good) / span if span > 0 else 0.0
    measured["output_tokens_per_s"] = float(rows.output_tokens.sum()) / span if span > 0 else 0.0
    return BenchRun(
        tool=TOOL,
        name=name,
        model=None,
        load=OpenLoad(len(good) / sending if sending > 0 else 1.0),
        completed=len(good),
        failed=len(found) - len(good),
        prompt=TokenSummary(float(rows.prompt_tokens.mean())),
        output=TokenSummary(float(rows.output_tokens.mean())),
        measured=measured,
        errors=errors,
        rows=rows,
    )


def _first(row: JsonFields) -> float:
    """Return the time to the first token."""
    if row.has("computed_metrics.time_to_first_token"):
        return row.number("computed_metrics.time_to_first_token")
    times = row.numbers("info.response_metrics.output_token_times")
    if not len(times):
        raise row.wrong("info.response_metrics.output_token_times", "none", "times of tokens: a streamed answer")
    return float(times[0]) - row.number("start_time")


def _gaps(row: JsonFields) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    if row.has("info.response_metrics.output_token_times"):
        return np.diff(row.numbers("info.response_metrics.output_token_times"))
    return np.zeros(0)
