"""``profile_export_aiperf.json`` of AIPerf and ``profile_export_genai_perf.json`` of GenAI-Perf: the same metrics.

The load is in ``input_config``: AIPerf 0.13 has ``phases`` (``aiperf/config/phases.py``), earlier versions ``loadgen``,
GenAI-Perf ``perf_analyzer.stimulus``.
"""

from __future__ import annotations

import math
from typing import Any

from sim.studies.benchmarks.bench_run import QUANTILES, BenchRun, ClosedLoad, JsonFields, Kind, OpenLoad, TokenSummary

FORM = "an export of AIPerf or GenAI-Perf"
_TAGS: dict[Kind, str] = {"ttft": "time_to_first_token", "tpot": "inter_token_latency", "e2e": "request_latency"}
"""Both tools' inter-token latency is one value a request, which is called TPOT here."""
_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "seconds": 1.0}


def is_perf_export(data: object) -> bool:
    """Return whether JSON has this form."""
    return isinstance(data, dict) and isinstance(data.get("request_throughput"), dict) and "input_config" in data


def read_perf_export(fields: JsonFields, name: str) -> BenchRun:
    """Return the run.

    :raises InputError: naming what is missing.
    """
    # GenAI-Perf's count of requests is one of its settings in older versions.
    completed = int(fields.number("request_count.avg", "time_to_first_token.count", "request_latency.count"))
    measured = {"requests_per_s": fields.number("request_throughput.avg")}
    errors: dict[str, float] = {}
    if fields.has("output_token_throughput"):
        measured["output_tokens_per_s"] = fields.number("output_token_throughput.avg")
    for kind, tag in _TAGS.items():
        if not fields.has(tag):
            continue
        metric = fields.table(tag)
        unit = metric.text("unit")
        if unit not in _SECONDS:
            raise metric.wrong("unit", unit, ", ".join(_SECONDS))
        scale = _SECONDS[unit]
        measured[f"{kind}_mean_s"] = metric.number("avg") * scale
        for percent in QUANTILES:
            if metric.has(f"p{percent}"):
                measured[f"{kind}_p{percent}_s"] = metric.number(f"p{percent}") * scale
        if metric.has("std") and completed:
            errors[f"{kind}_mean_s"] = 1.96 * metric.number("std") * scale / math.sqrt(completed)
    is_aiperf = fields.has("aiperf_version") or fields.has("schema_version")
    return BenchRun(
        tool="AIPerf" if is_aiperf else "GenAI-Perf",
        name=name,
        model=_model(fields),
        load=_load(fields),
        completed=completed,
        failed=int(fields.maybe("error_request_count.avg") or 0),
        prompt=_tokens(fields, "input_sequence_length"),
        output=_tokens(fields, "output_sequence_length"),
        measured=measured,
        errors=errors,
    )


def _tokens(fields: JsonFields, tag: str) -> TokenSummary:
    metric = fields.table(tag)
    return TokenSummary(metric.number("avg"), metric.maybe("p99"))


def _model(fields: JsonFields) -> str | None:
    """Return the model's name; AIPerf lists models, of which there is one in most runs."""
    config = fields.table("input_config")
    listed = (config.data.get("models"), config.data.get("model_names"), config.data.get("endpoint"))
    names: Any = next((each for each in listed if each), None)
    if isinstance(names, dict) and "model_names" in names:
        names = names["model_names"]
    while isinstance(names, dict | list) and names:
        names = names[0] if isinstance(names, list) else names.get("items") or names.get("name")
    return names if isinstance(names, str) else None


def _load(fields: JsonFields) -> ClosedLoad | OpenLoad:
    config = fields.table("input_config")
    if config.has("phases"):
        return _of_phase(_profiling(config))
    if config.has("loadgen"):
        return _of_settings(config.table("loadgen"))
    if config.has("perf_analyzer.stimulus"):
        return _of_settings(config.table("perf_analyzer.stimulus"))
    raise config.wrong("phases", None, "phases, loadgen or perf_analyzer.stimulus")


def _profiling(config: JsonFields) -> JsonFields:
    phases = [phase for phase in config.tables("phases") if phase.data.get("kind", phase.data.get("name")) != "warmup"]
    if len(phases) != 1:
        raise config.wrong("phases", f"{len(phases)} phases that count", "one, beside warm-ups")
    return phases[0]


def _of_phase(phase: JsonFields) -> ClosedLoad | OpenLoad:
    kind = phase.text("type")
    cap = phase.maybe("concurrency")
    if kind == "concurrency":
        return ClosedLoad(max(1, int(cap or 1)))
    shapes = {"poisson": 1.0, "constant": math.inf, "gamma": phase.maybe("smoothness") or 1.0}
    if kind not in shapes:
        raise phase.wrong("type", kind, "concurrency, poisson, gamma or constant")
    return OpenLoad(phase.number("rate"), shapes[kind], None if cap is None else int(cap))


def _of_settings(settings: JsonFields) -> ClosedLoad | OpenLoad:
    rate, cap = settings.maybe("request_rate"), settings.maybe("concurrency")
    if rate is None:
        return ClosedLoad(max(1, int(settings.number("concurrency"))))
    pattern = settings.text("arrival_pattern", "request_rate_mode") or "poisson"
    shape = (settings.maybe("arrival_smoothness") or 1.0) if pattern == "gamma" else 1.0
    return OpenLoad(rate, math.inf if pattern == "constant" else shape, None if cap is None else int(cap))
