"""Results of ``vllm bench serve --save-result``, with ``--save-detailed`` every request (``vllm/benchmarks/serve.py``).

``--append-result`` puts several results into one file, one a line.
"""

from __future__ import annotations

import math

import numpy as np

from sim.studies.benchmarks.bench_run import (
    KINDS,
    QUANTILES,
    BenchRequests,
    BenchRun,
    ClosedLoad,
    JsonFields,
    OpenLoad,
    TokenSummary,
    measures_of,
)

FORM = "a result of vllm bench serve"
TOOL = "vllm bench serve"
_NAMES = {"e2e": ("e2el", "e2e_latency")}


def is_vllm_bench(data: object) -> bool:
    """Return whether JSON has this form."""
    return isinstance(data, dict) and "completed" in data and isinstance(data.get("request_throughput"), int | float)


def read_vllm_bench(fields: JsonFields, name: str) -> BenchRun:
    """Return the run.

    :raises InputError: naming what is missing.
    """
    completed, rows = int(fields.number("completed")), _rows(fields)
    measured = {"requests_per_s": fields.number("request_throughput")}
    if fields.has("output_throughput"):
        measured["output_tokens_per_s"] = fields.number("output_throughput")
    errors: dict[str, float] = {}
    if rows is not None:
        more, errors = measures_of(rows)
        measured |= more
    else:
        _summaries(fields, completed, measured, errors)
    return BenchRun(
        tool=TOOL,
        name=name,
        model=fields.text("model_id"),
        load=_load(fields, completed),
        completed=completed,
        failed=int(fields.maybe("failed") or 0),
        prompt=TokenSummary(fields.number("total_input_tokens") / max(completed, 1)),
        output=TokenSummary(fields.number("total_output_tokens") / max(completed, 1)),
        measured=measured,
        errors=errors,
        rows=rows,
    )


def _summaries(fields: JsonFields, completed: int, measured: dict[str, float], errors: dict[str, float]) -> None:
    for kind in KINDS:
        for tag in _NAMES.get(kind, (kind,)):
            mean, median = fields.maybe(f"mean_{tag}_ms"), fields.maybe(f"median_{tag}_ms")
            if mean is None or median is None:
                continue
            measured[f"{kind}_mean_s"], measured[f"{kind}_p50_s"] = mean / 1e3, median / 1e3
            for percent in QUANTILES[1:]:
                value = fields.maybe(f"p{percent}_{tag}_ms")
                if value is not None:
                    measured[f"{kind}_p{percent}_s"] = value / 1e3
            spread = fields.maybe(f"std_{tag}_ms")
            if spread is not None and completed:
                errors[f"{kind}_mean_s"] = 1.96 * spread / 1e3 / math.sqrt(completed)
            break


def _load(fields: JsonFields, completed: int) -> ClosedLoad | OpenLoad:
    """Return the load: a rate ``inf`` sends everything at once, up to the concurrency."""
    cap = fields.maybe("max_concurrency")
    rate = fields.data.get("request_rate")
    unlimited = rate is None or rate == "inf" or (isinstance(rate, float) and math.isinf(rate))
    if unlimited:
        total = fields.maybe("num_prompts") or completed
        return ClosedLoad(max(1, int(min(cap, total) if cap is not None else total)))
    shape = fields.maybe("burstiness") or 1.0
    return OpenLoad(fields.number("request_rate"), shape, None if cap is None else int(cap))


def _rows(fields: JsonFields) -> BenchRequests | None:
    """Return every completed request; None where the file has none, or not when each was sent."""
    if not (fields.has("ttfts") and fields.has("start_times") and fields.has("itls")):
        return None
    start, ttft = fields.numbers("start_times"), fields.numbers("ttfts")
    prompt, output = fields.numbers("input_lens"), fields.numbers("output_lens")
    gaps = fields.lists_of_numbers("itls")
    late = fields.numbers("latencies") if fields.has("latencies") else None
    errors = fields.items("errors") if fields.has("errors") else [""] * len(start)
    lengths = {len(each) for each in (start, ttft, prompt, output, gaps, errors) + (() if late is None else (late,))}
    if len(lengths) > 1:
        raise fields.wrong("start_times", f"lists of {sorted(lengths)} values", "lists of the same length")
    if late is None:
        late = ttft + np.array([each.sum() for each in gaps])
    e2e = np.maximum(late, ttft)
    good = np.array([not error for error in errors]) & (output > 0)
    if not good.any():
        return None
    order = np.flatnonzero(good)[np.argsort(start[good], kind="stable")]
    return BenchRequests(
        start_s=start[order] - start[order[0]],
        prompt_tokens=prompt[order].astype(np.int64),
        output_tokens=output[order].astype(np.int64),
        ttft_s=ttft[order],
        e2e_s=e2e[order],
        gaps_s=np.concatenate([gaps[place] for place in order]),
    )
