"""Result files of benchmark clients, whichever form they have, read as runs.

Where a client's "inter-token latency" is one value a request, without the first token, it is called TPOT here; its
"time per output token" with the first token in it is not read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sim.arrays import Floats
from sim.errors import InputError
from sim.reading import brackets_fit, read_regular
from sim.studies.fidelity.bench_run import (
    KINDS,
    QUANTILES,
    VLLM,
    BenchRequests,
    BenchRun,
    ClosedLoad,
    JsonFields,
    Kind,
    OpenLoad,
    TokenSummary,
    measures_of,
)

BENCH_BYTES = 64 << 20
"""Bytes of a result, at most. With every gap between tokens, 1,000 requests of 250 tokens have 5 MB."""

KNOWN = (
    "vllm bench serve --save-result and sglang.bench_serving (completed, request_throughput), "
    "GuideLLM's benchmarks.json (benchmarks), profile_export_aiperf.json or "
    "profile_export_genai_perf.json (request_throughput.avg, input_config), inference-perf's "
    "stage_N_lifecycle_metrics.json (load_summary, successes) or per_request_lifecycle_metrics.json "
    "(start_time, end_time)"
)
"""The forms, and by which fields each is recognised."""


def is_bench_file(path: Path) -> bool:
    """Return whether a file's name is that of a result of a benchmark, rather than of a table."""
    return path.suffix.lower() in (".json", ".jsonl")


def read_bench(path: Path) -> list[BenchRun]:
    """Return the runs of a result file.

    :raises InputError: where it can't be read, has none of the known forms, or lacks a field.
    """
    try:
        raw = read_regular(path, BENCH_BYTES)
    except OSError as error:
        raise InputError("can't be read", file=str(path), hint=error.strerror) from None
    runs = [run for data, name in _documents(path, raw) for run in _runs(path, data, name)]
    runs = [run for run in runs if run.completed]
    if not runs:
        raise InputError("has no run with a completed request", file=str(path))
    for run in runs:
        _refuse_contradictions(run, str(path.with_name(run.name)))
    return runs


def _refuse_contradictions(run: BenchRun, file: str) -> None:
    """Refuse a run whose numbers contradict each other, such as by a wrong unit.

    :raises InputError: where a quantile falls, or by Little's law the load can't have so many requests in flight.
    """
    found = run.measured
    for kind in KINDS:
        rising = [found[name] for percent in QUANTILES if (name := f"{kind}_p{percent}_s") in found]
        if rising != sorted(rising):
            got = ", ".join(f"{seconds:g} s" for seconds in rising)
            raise InputError("a higher quantile can't be smaller", file=file, key=f"p50 to p99 {kind.upper()}", got=got)
    latency_s, words = run.latency_s, "mean E2E" if "e2e_mean_s" in found else "(mean TTFT + gaps)"
    if latency_s is None:
        return
    least, most = 0.0, float(run.completed + run.failed)
    if isinstance(run.load, ClosedLoad):  # fewer are in flight at start and end, which may be all of the run
        clients = min(run.load.concurrency, most)
        least, most = clients / 10 if most >= 2 * clients else 0.0, clients * 2
    in_flight = latency_s * found["requests_per_s"]
    if not least <= in_flight <= most:
        raise InputError(
            "latency and rate contradict the load, by Little's law",
            file=file,
            key=f"{words} × requests/s",
            got=f"{latency_s:g} s × {found['requests_per_s']:g}/s: {in_flight:,.4g} requests in flight",
            allowed=f"{least:g} to {most:,g} ({run.words})",
            hint="check the units of its latencies and its load",
        )


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return names of files that differ: the last part of each path, and as many parts before it as that takes.

    AIPerf gives all its exports the same name, each in a folder of its own.
    """
    parts = [path.absolute().parts for path in paths]
    names = []
    for mine in parts:
        others = {other for other in parts if other != mine}
        length = next(n for n in range(1, len(mine) + 1) if all(other[-n:] != mine[-n:] for other in others))
        names.append(str(Path(*mine[-length:])))
    return names


def _documents(path: Path, raw: bytes) -> list[tuple[Any, str]]:
    """Return the JSON of a file, which may have several on a line each."""
    if not brackets_fit(raw):
        raise InputError("has too many brackets for a result", file=str(path))
    try:
        return [(json.loads(raw), path.name)]
    except RecursionError:
        raise InputError("is nested too deep", file=str(path)) from None
    except ValueError as error:
        first = error
    lines = [line for line in raw.splitlines() if line.strip()]
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append((json.loads(line), f"{path.name}, line {number}"))
        except (ValueError, RecursionError):
            raise InputError(f"is not JSON: {first}", file=str(path), line=number, allowed=KNOWN) from None
    if not found:
        raise InputError("is empty", file=str(path), allowed=KNOWN)
    return found


def _runs(path: Path, data: Any, name: str) -> Iterator[BenchRun]:
    for form, is_form, read in _FORMS:
        if is_form(data):
            return read(JsonFields(str(path), form, data), name)
    got = "a list" if isinstance(data, list) else json.dumps(data)
    if isinstance(data, dict):
        got = f"the fields {', '.join(map(str, list(data)[:8]))}" if data else "no fields"
    raise InputError("is no result of a benchmark that is known", file=str(path), got=got, allowed=KNOWN)


class Latencies:
    """Latencies by metric, and the half-widths of their 95 % intervals: of every request, or as a file sums them up."""

    def __init__(self, completed: int, rows: BenchRequests | None = None) -> None:
        self.completed = completed
        self.measured: dict[str, float] = {}
        self.errors: dict[str, float] = {}
        if rows is not None:
            self.measured, self.errors = measures_of(rows)

    def add(
        self, kind: Kind, mean: float, quantiles: Mapping[int, float | None], spread: float | None, scale: float = 1.0
    ) -> None:
        """Take a summary; None for what a file lacks.

        :param spread: the standard deviation; ``scale``: seconds of the unit.
        """
        self.measured[f"{kind}_mean_s"] = mean * scale
        for percent, value in quantiles.items():
            if value is not None:
                self.measured[f"{kind}_p{percent}_s"] = value * scale
        if spread is not None and self.completed:
            self.errors[f"{kind}_mean_s"] = 1.96 * spread * scale / math.sqrt(self.completed)


def _requests(
    start: Floats, prompt: Floats, output: Floats, ttft: Floats, e2e: Floats, gaps: Sequence[Floats] = ()
) -> BenchRequests:
    """Return requests in the order in which they were sent."""
    order = np.argsort(start, kind="stable")
    return BenchRequests(
        start_s=(start - start.min())[order],
        prompt_tokens=prompt[order].astype(np.int64),
        output_tokens=output[order].astype(np.int64),
        ttft_s=ttft[order],
        e2e_s=e2e[order],
        gaps_s=np.concatenate(gaps) if gaps else np.zeros(0),
    )


def _numbers(rows: Sequence[JsonFields], *paths: str) -> Floats:
    return np.array([row.number(*paths) for row in rows])


def _tokens(fields: JsonFields, tag: str, mean: str, p99: str) -> TokenSummary:
    found = fields.table(tag)
    return TokenSummary(found.number(mean), found.maybe(p99))


def _closed(at_a_time: float) -> ClosedLoad:
    return ClosedLoad(max(1, int(at_a_time)))


def _open(rate_rps: float, shape: float = 1.0, cap: float | None = None) -> OpenLoad:
    return OpenLoad(rate_rps, shape, None if cap is None else int(cap))


# vllm bench serve --save-result, with --save-detailed every request (vllm/benchmarks/serve.py); --append-result puts
# several results into one file, one a line. SGLang's bench_serving, made from it, writes the same fields and some more.

_VLLM_TAGS: dict[Kind, tuple[str, ...]] = {
    "ttft": ("ttft",),
    "tpot": ("tpot",),
    "itl": ("itl",),
    "e2e": ("e2el", "e2e_latency"),
}


def _is_vllm(data: object) -> bool:
    return isinstance(data, dict) and "completed" in data and isinstance(data.get("request_throughput"), int | float)


def _is_sglang(data: object) -> bool:
    return isinstance(data, dict) and _is_vllm(data) and "total_output_tokens_retokenized" in data


def _read_vllm(fields: JsonFields, name: str) -> Iterator[BenchRun]:
    completed, rows = int(fields.number("completed")), _vllm_rows(fields)
    found = Latencies(completed, rows)
    for kind, tags in _VLLM_TAGS.items() if rows is None else ():
        for tag in tags:
            mean, median = fields.maybe(f"mean_{tag}_ms"), fields.maybe(f"median_{tag}_ms")
            if mean is not None and median is not None:
                rest = {percent: fields.maybe(f"p{percent}_{tag}_ms") for percent in QUANTILES[1:]}
                found.add(kind, mean, {50: median, **rest}, fields.maybe(f"std_{tag}_ms"), 1e-3)
                break
    found.measured["requests_per_s"] = fields.number("request_throughput")
    fields.maybe("duration")  # only to refuse a negative one
    if fields.has("output_throughput"):
        found.measured["output_tokens_per_s"] = fields.number("output_throughput")
    yield BenchRun(
        tool="sglang.bench_serving" if _is_sglang(fields.data) else VLLM,
        name=name,
        model=fields.text("model_id"),
        load=_vllm_load(fields, completed),
        completed=completed,
        failed=int(fields.maybe("failed") or 0),
        prompt=TokenSummary(fields.number("total_input_tokens") / max(completed, 1)),
        output=TokenSummary(fields.number("total_output_tokens") / max(completed, 1)),
        measured=found.measured,
        errors=found.errors,
        rows=rows,
        engine="sglang" if (fields.text("backend") or "").startswith("sglang") else None,
        accepted=fields.maybe("spec_decode_acceptance_length", "accept_length"),
    )


def _vllm_load(fields: JsonFields, completed: int) -> ClosedLoad | OpenLoad:
    """Return the load: a rate ``inf`` sends everything at once, up to the concurrency."""
    if fields.has("ramp_up_strategy"):
        raise InputError(
            "a rate that ramps up is no steady load",
            file=fields.file,
            key="ramp_up_strategy",
            got=fields.data["ramp_up_strategy"],
            hint="measure at a fixed --request-rate, or with --request-rate inf and --max-concurrency",
        )
    cap, rate = fields.maybe("max_concurrency"), fields.data.get("request_rate")
    if rate == "inf" or (isinstance(rate, float) and math.isinf(rate)) or (rate is None and cap is not None):
        total = fields.maybe("num_prompts") or completed
        return _closed(min(cap, total) if cap is not None else total)
    return _open(fields.number("request_rate"), fields.maybe("burstiness") or 1.0, cap)


def _vllm_rows(fields: JsonFields) -> BenchRequests | None:
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
    good = np.array([not error for error in errors]) & (output > 0)
    if not good.any():
        return None
    some = [gaps[place] for place in np.flatnonzero(good)]
    return _requests(start[good], prompt[good], output[good], ttft[good], np.maximum(late, ttft)[good], some)


# GuideLLM's benchmarks.json: one run for each rate or number of streams. Version 0.3 has args.strategy and start_time,
# later ones config.strategy and request_start_time (guidellm/benchmark/schemas).

_GUIDELLM: dict[Kind, tuple[str, float]] = {
    "ttft": ("time_to_first_token_ms", 1e-3),
    "tpot": ("inter_token_latency_ms", 1e-3),
    "e2e": ("request_latency", 1.0),
}


def _is_guidellm(data: object) -> bool:
    return isinstance(data, dict) and isinstance(data.get("benchmarks"), list)


def _read_guidellm(fields: JsonFields, name: str) -> Iterator[BenchRun]:
    runs = list(fields.tables("benchmarks"))
    for place, run in enumerate(runs):
        metrics = run.table("metrics")
        latency = metrics.table("request_latency.successful") if metrics.has("request_latency.successful") else None
        if latency is not None and (completed := int(latency.number("count"))):
            yield _guidellm_run(run, completed, f"{name}, run {place + 1} of {len(runs)}" if len(runs) > 1 else name)


def _guidellm_run(run: JsonFields, completed: int, name: str) -> BenchRun:
    metrics, rows = run.table("metrics"), _guidellm_rows(run)
    found = Latencies(completed, rows)
    for kind, (tag, scale) in _GUIDELLM.items() if rows is None else ():
        if metrics.has(f"{tag}.successful"):
            each = metrics.table(f"{tag}.successful")
            quantiles = {percent: each.number(f"percentiles.p{percent}") for percent in QUANTILES}
            found.add(kind, each.number("mean"), quantiles, each.number("std_dev"), scale)
    found.measured["requests_per_s"] = metrics.number("requests_per_second.successful.mean")
    if metrics.has("output_tokens_per_second.successful"):
        found.measured["output_tokens_per_s"] = metrics.number("output_tokens_per_second.successful.mean")
    return BenchRun(
        tool="GuideLLM",
        name=name,
        model=run.text("config.backend.model", "worker.backend_model"),
        load=_guidellm_load(run, completed),
        completed=completed,
        failed=int(metrics.maybe("request_latency.errored.count") or 0),
        prompt=_tokens(metrics, "prompt_token_count.successful", "mean", "percentiles.p99"),
        output=_tokens(metrics, "output_token_count.successful", "mean", "percentiles.p99"),
        measured=found.measured,
        errors=found.errors,
        rows=rows,
    )


def _guidellm_load(run: JsonFields, completed: int) -> ClosedLoad | OpenLoad:
    strategy = run.table("config.strategy") if run.has("config.strategy") else run.table("args.strategy")
    kind, cap = strategy.text("type_"), strategy.maybe("max_concurrency")
    if kind == "synchronous":
        return ClosedLoad(1)
    if kind == "concurrent":
        return _closed(strategy.number("streams"))
    if kind == "throughput":
        return _closed(cap or run.maybe("metrics.request_concurrency.successful.median") or completed)
    if kind in ("constant", "poisson"):
        return _open(strategy.number("rate"), 1.0 if kind == "poisson" else math.inf, cap)
    raise strategy.wrong("type_", kind, "synchronous, concurrent, throughput, constant or poisson")


def _guidellm_rows(run: JsonFields) -> BenchRequests | None:
    """Return every request, unless the report keeps a sample of them, or none."""
    if not isinstance(run.data.get("requests"), dict) or not run.data["requests"].get("successful"):
        return None
    found = list(run.table("requests").tables("successful"))
    if len(found) < int(run.number("metrics.request_latency.successful.count")):
        return None
    if not all(row.has("time_to_first_token_ms") for row in found):
        return None

    def latency(row: JsonFields) -> float:
        if row.has("request_latency"):
            return row.number("request_latency")
        return row.number("request_end_time", "end_time") - row.number("request_start_time", "start_time")

    ttft = _numbers(found, "time_to_first_token_ms") / 1e3
    return _requests(
        _numbers(found, "request_start_time", "start_time"),
        _numbers(found, "prompt_tokens"),
        _numbers(found, "output_tokens"),
        ttft,
        np.maximum(np.array([latency(row) for row in found]), ttft),
    )


# profile_export_aiperf.json of AIPerf and profile_export_genai_perf.json of GenAI-Perf: the same metrics. The load is
# in input_config: AIPerf 0.13 has phases (aiperf/config/phases.py), earlier versions loadgen, GenAI-Perf
# perf_analyzer.stimulus.

_PERF: dict[Kind, str] = {"ttft": "time_to_first_token", "tpot": "inter_token_latency", "e2e": "request_latency"}
_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "seconds": 1.0}


def _is_perf(data: object) -> bool:
    return isinstance(data, dict) and isinstance(data.get("request_throughput"), dict) and "input_config" in data


def _read_perf(fields: JsonFields, name: str) -> Iterator[BenchRun]:
    # GenAI-Perf's count of requests is one of its settings in older versions.
    completed = int(fields.number("request_count.avg", "time_to_first_token.count", "request_latency.count"))
    found = Latencies(completed)
    for kind, tag in _PERF.items():
        if not fields.has(tag):
            continue
        metric = fields.table(tag)
        unit = metric.text("unit")
        if unit not in _SECONDS:
            raise metric.wrong("unit", unit, ", ".join(_SECONDS))
        quantiles = {percent: metric.maybe(f"p{percent}") for percent in QUANTILES}
        found.add(kind, metric.number("avg"), quantiles, metric.maybe("std"), _SECONDS[unit])
    found.measured["requests_per_s"] = fields.number("request_throughput.avg")
    if fields.has("output_token_throughput"):
        found.measured["output_tokens_per_s"] = fields.number("output_token_throughput.avg")
    is_aiperf = fields.has("aiperf_version") or fields.has("schema_version")
    yield BenchRun(
        tool="AIPerf" if is_aiperf else "GenAI-Perf",
        name=name,
        model=_perf_model(fields.table("input_config")),
        load=_perf_load(fields.table("input_config")),
        completed=completed,
        failed=int(fields.maybe("error_request_count.avg") or 0),
        prompt=_tokens(fields, "input_sequence_length", "avg", "p99"),
        output=_tokens(fields, "output_sequence_length", "avg", "p99"),
        measured=found.measured,
        errors=found.errors,
        cut_short=fields.data.get("was_cancelled") is True,
    )


def _perf_model(config: JsonFields) -> str | None:
    """Return the model's name; AIPerf lists models, of which there is one in most runs."""
    listed = (config.data.get("models"), config.data.get("model_names"), config.data.get("endpoint"))
    names: Any = next((each for each in listed if each), None)
    if isinstance(names, dict) and "model_names" in names:
        names = names["model_names"]
    while isinstance(names, dict | list) and names:
        names = names[0] if isinstance(names, list) else names.get("items") or names.get("name")
    return names if isinstance(names, str) else None


def _perf_load(config: JsonFields) -> ClosedLoad | OpenLoad:
    if config.has("phases"):
        listed = config.tables("phases")
        phases = [phase for phase in listed if phase.data.get("kind", phase.data.get("name")) != "warmup"]
        if len(phases) != 1:
            raise config.wrong("phases", f"{len(phases)} phases that count", "one, beside warm-ups")
        (phase,) = phases
        kind, cap = phase.text("type"), phase.maybe("concurrency")
        if kind == "concurrency":
            return _closed(cap or 1)
        shapes = {"poisson": 1.0, "constant": math.inf, "gamma": phase.maybe("smoothness") or 1.0}
        if kind not in shapes:
            raise phase.wrong("type", kind, "concurrency, poisson, gamma or constant")
        return _open(phase.number("rate"), shapes[kind], cap)
    place = next((place for place in ("loadgen", "perf_analyzer.stimulus") if config.has(place)), None)
    if place is None:
        raise config.wrong("phases", None, "phases, loadgen or perf_analyzer.stimulus")
    settings = config.table(place)
    rate, cap = settings.maybe("request_rate"), settings.maybe("concurrency")
    if rate is None:
        return _closed(settings.number("concurrency"))
    pattern = settings.text("arrival_pattern", "request_rate_mode") or "poisson"
    shape = (settings.maybe("arrival_smoothness") or 1.0) if pattern == "gamma" else 1.0
    return _open(rate, math.inf if pattern == "constant" else shape, cap)


# Reports of inference-perf: stage_N_lifecycle_metrics.json, summary_lifecycle_metrics.json, and
# per_request_lifecycle_metrics.json with every request (inference_perf/reportgen/base.py). Only a stage's report names
# its rate or concurrency; of the requests, the times at which they were sent are enough.

_INFERENCE_PERF: dict[Kind, str] = {
    "ttft": "time_to_first_token",
    "tpot": "time_per_output_token",
    "itl": "inter_token_latency",
    "e2e": "request_latency",
}
_TOKEN_TIMES = "info.response_metrics.output_token_times"


def _is_inference_perf(data: object) -> bool:
    if isinstance(data, list):
        return bool(data) and all(isinstance(row, dict) and {"start_time", "end_time"} <= row.keys() for row in data)
    return isinstance(data, dict) and "load_summary" in data and "successes" in data


def _read_inference_perf(fields: JsonFields, name: str) -> Iterator[BenchRun]:
    if isinstance(fields.data, list):
        yield _inference_perf_requests(fields, name)
        return
    successes, load = fields.table("successes"), fields.table("load_summary")
    completed = int(successes.number("count"))
    found = Latencies(completed)
    for kind, tag in _INFERENCE_PERF.items():
        if successes.has(f"latency.{tag}"):
            each = successes.table(f"latency.{tag}")
            quantiles = {percent: each.maybe("median" if percent == 50 else f"p{percent}") for percent in QUANTILES}
            found.add(kind, each.number("mean"), quantiles, None)
    found.measured["requests_per_s"] = successes.number("throughput.requests_per_sec")
    if successes.has("throughput.output_tokens_per_sec"):
        found.measured["output_tokens_per_s"] = successes.number("throughput.output_tokens_per_sec")
    lengths = {
        side: next((tag for tag in (f"{side}_tokens", f"{side}_len") if successes.has(tag)), f"{side}_tokens")
        for side in ("prompt", "output")
    }
    closed = load.has("concurrency")
    yield BenchRun(
        tool="inference-perf",
        name=name,
        model=None,
        load=_closed(load.number("concurrency")) if closed else _open(load.number("achieved_rate", "requested_rate")),
        completed=completed,
        failed=int(fields.maybe("failures.count") or 0),
        prompt=_tokens(successes, lengths["prompt"], "mean", "p99"),
        output=_tokens(successes, lengths["output"], "mean", "p99"),
        measured=found.measured,
    )


def _inference_perf_requests(fields: JsonFields, name: str) -> BenchRun:
    found = [JsonFields(fields.file, fields.form, row, str(place)) for place, row in enumerate(fields.data)]
    good = [row for row in found if not row.has("error")]
    if not good:
        raise fields.wrong("0", f"{len(found)} requests with an error", "a request without one")

    def first(row: JsonFields) -> float:
        if row.has("computed_metrics.time_to_first_token"):
            return row.number("computed_metrics.time_to_first_token")
        times = row.numbers(_TOKEN_TIMES)
        if not len(times):
            raise row.wrong(_TOKEN_TIMES, "none", "times of tokens: a streamed answer")
        return float(times[0]) - row.number("start_time")

    start, end = _numbers(good, "start_time"), _numbers(good, "end_time")
    rows = _requests(
        start,
        _numbers(good, "computed_metrics.input_tokens", "info.request_metrics.text.input_tokens"),
        _numbers(good, "computed_metrics.output_tokens", "info.response_metrics.output_tokens"),
        np.maximum(np.array([first(row) for row in good]), 0.0),
        np.maximum(end - start, 0.0),
        [np.diff(row.numbers(_TOKEN_TIMES)) for row in good if row.has(_TOKEN_TIMES)],
    )
    measured, errors = measures_of(rows)
    span, sending = float(end.max() - start.min()), float(start.max() - start.min())
    measured["requests_per_s"] = len(good) / span if span > 0 else 0.0
    measured["output_tokens_per_s"] = float(rows.output_tokens.sum()) / span if span > 0 else 0.0
    return BenchRun(
        tool="inference-perf",
        name=name,
        model=None,
        load=_open(len(good) / sending if sending > 0 else 1.0),
        completed=len(good),
        failed=len(found) - len(good),
        prompt=TokenSummary(float(rows.prompt_tokens.mean())),
        output=TokenSummary(float(rows.output_tokens.mean())),
        measured=measured,
        errors=errors,
        rows=rows,
    )


_FORMS: tuple[tuple[str, Callable[[object], bool], Callable[[JsonFields, str], Iterator[BenchRun]]], ...] = (
    ("a report of GuideLLM", _is_guidellm, _read_guidellm),
    ("an export of AIPerf or GenAI-Perf", _is_perf, _read_perf),
    ("a report of inference-perf", _is_inference_perf, _read_inference_perf),
    ("a result of sglang.bench_serving", _is_sglang, _read_vllm),
    ("a result of vllm bench serve", _is_vllm, _read_vllm),
)
"""What a file is called in errors, how it is recognised, and what reads it."""
