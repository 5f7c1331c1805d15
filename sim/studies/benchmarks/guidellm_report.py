"""``benchmarks.json`` of GuideLLM: one run for each rate or number of streams.

Its "inter-token latency" is one value a request, without the first token, which is called TPOT here; its "time per
output token" has the first token in it, and is not read. Version 0.3 has ``args.strategy`` and ``start_time``, later
ones ``config.strategy`` and ``request_start_time`` (``guidellm/benchmark/schemas``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

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

FORM = "a report of GuideLLM"
TOOL = "GuideLLM"
_MS: dict[Kind, tuple[str, float]] = {
    "ttft": ("time_to_first_token_ms", 1e-3),
    "tpot": ("inter_token_latency_ms", 1e-3),
    "e2e": ("request_latency", 1.0),
}


def is_guidellm_report(data: object) -> bool:
    """Return whether JSON has this form."""
    return isinstance(data, dict) and isinstance(data.get("benchmarks"), list)


def read_guidellm_report(fields: JsonFields, name: str) -> Iterator[BenchRun]:
    """Yield the runs, but those without a completed request.

    :raises InputError: naming what is missing.
    """
    runs = list(fields.tables("benchmarks"))
    for place, run in enumerate(runs):
        metrics = run.table("metrics")
        latency = metrics.table("request_latency.successful") if metrics.has("request_latency.successful") else None
        completed = 0 if latency is None else int(latency.number("count"))
        if completed:
            yield _run(run, completed, f"{name}, run {place + 1} of {len(runs)}" if len(runs) > 1 else name)


def _run(run: JsonFields, completed: int, name: str) -> BenchRun:
    metrics = run.table("metrics")
    measured = {"requests_per_s": metrics.number("requests_per_second.successful.mean")}
    if metrics.has("output_tokens_per_second.successful"):
        measured["output_tokens_per_s"] = metrics.number("output_tokens_per_second.successful.mean")
    errors: dict[str, float] = {}
    rows = _rows(run)
    if rows is not None:
        more, errors = measures_of(rows)
        measured |= {key: value for key, value in more.items() if not key.startswith("itl")}
    else:
        _summaries(metrics, completed, measured, errors)
    return BenchRun(
        tool=TOOL,
        name=name,
        model=run.text("config.backend.model", "worker.backend_model"),
        load=_load(run, completed),
        completed=completed,
        failed=int(metrics.maybe("request_latency.errored.count") or 0),
        prompt=_tokens(metrics, "prompt_token_count"),
        output=_tokens(metrics, "output_token_count"),
        measured=measured,
        errors=errors,
        rows=rows,
    )


def _summaries(metrics: JsonFields, completed: int, measured: dict[str, float], errors: dict[str, float]) -> None:
    for kind, (tag, scale) in _MS.items():
        if not metrics.has(f"{tag}.successful"):
            continue
        found = metrics.table(f"{tag}.successful")
        measured[f"{kind}_mean_s"] = found.number("mean") * scale
        for percent in QUANTILES:
            measured[f"{kind}_p{percent}_s"] = found.number(f"percentiles.p{percent}") * scale
        errors[f"{kind}_mean_s"] = 1.96 * found.number("std_dev") * scale / math.sqrt(completed)


def _tokens(metrics: JsonFields, tag: str) -> TokenSummary:
    found = metrics.table(f"{tag}.successful")
    return TokenSummary(found.number("mean"), found.maybe("percentiles.p99"))


def _load(run: JsonFields, completed: int) -> ClosedLoad | OpenLoad:
    strategy = run.table("config.strategy") if run.has("config.strategy") else run.table("args.strategy")
    kind, cap = strategy.text("type_"), strategy.maybe("max_concurrency")
    if kind == "synchronous":
        return ClosedLoad(1)
    if kind == "concurrent":
        return ClosedLoad(max(1, int(strategy.number("streams"))))
    if kind == "throughput":
        return ClosedLoad(max(1, int(cap or completed)))
    if kind in ("constant", "poisson"):
        shape = 1.0 if kind == "poisson" else math.inf
        return OpenLoad(strategy.number("rate"), shape, None if cap is None else int(cap))
    raise strategy.wrong("type_", kind, "synchronous, concurrent, throughput, constant or poisson")


def _rows(run: JsonFields) -> BenchRequests | None:
    """Return every request, unless the report keeps a sample of them, or none."""
    if not isinstance(run.data.get("requests"), dict) or not run.data["requests"].get("successful"):
        return None
    found = list(run.table("requests").tables("successful"))
    if len(found) < int(run.number("metrics.request_latency.successful.count")):
        return None
    if not all(row.has("time_to_first_token_ms") for row in found):
        return None
    start = np.array([row.number("request_start_time", "start_time") for row in found])
    order = np.argsort(start, kind="stable")
    e2e = np.array([_latency(row) for row in found])
    ttft = np.array([row.number("time_to_first_token_ms") / 1e3 for row in found])
    return BenchRequests(
        start_s=(start - start.min())[order],
        prompt_tokens=np.array([row.number("prompt_tokens") for row in found])[order].astype(np.int64),
        output_tokens=np.array([row.number("output_tokens") for row in found])[order].astype(np.int64),
        ttft_s=ttft[order],
        e2e_s=np.maximum(e2e, ttft)[order],
        gaps_s=np.zeros(0),
    )


def _latency(row: JsonFields) -> float:
    if row.has("request_latency"):
        return row.number("request_latency")
    return row.number("request_end_time", "end_time") - row.number("request_start_time", "start_time")
