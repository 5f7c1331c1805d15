"""Reads result files of benchmark clients, whichever form they have."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sim.errors import InputError
from sim.reading import brackets_fit, read_regular
from sim.studies.benchmarks import guidellm_report, inference_perf, perf_export, vllm_bench
from sim.studies.benchmarks.bench_run import BenchRun, JsonFields

BENCH_BYTES = 64 << 20
"""Bytes of a result, at most. With every gap between tokens, 1,000 requests of 250 tokens have 5 MB."""

KNOWN = (
    "vllm bench serve --save-result (completed, request_throughput), GuideLLM's benchmarks.json (benchmarks), "
    "profile_export_aiperf.json or profile_export_genai_perf.json (request_throughput.avg, input_config), "
    "inference-perf's stage_N_lifecycle_metrics.json (load_summary, successes) or per_request_lifecycle_metrics.json "
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
    if not runs:
        raise InputError("has no run with a completed request", file=str(path))
    return runs


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
            raise InputError("is not JSON", file=str(path), line=number, got=str(first), allowed=KNOWN) from None
    if not found:
        raise InputError("is empty", file=str(path), allowed=KNOWN)
    return found


def _runs(path: Path, data: Any, name: str) -> list[BenchRun]:
    file = str(path)
    if guidellm_report.is_guidellm_report(data):
        return list(guidellm_report.read_guidellm_report(JsonFields(file, guidellm_report.FORM, data), name))
    if perf_export.is_perf_export(data):
        return [perf_export.read_perf_export(JsonFields(file, perf_export.FORM, data), name)]
    if inference_perf.is_inference_perf(data):
        fields = JsonFields(file, inference_perf.FORM, data)
        read = (
            inference_perf.read_inference_perf_requests
            if isinstance(data, list)
            else inference_perf.read_inference_perf
        )
        return [read(fields, name)]
    if vllm_bench.is_vllm_bench(data):
        return [vllm_bench.read_vllm_bench(JsonFields(file, vllm_bench.FORM, data), name)]
    has = ", ".join(map(str, list(data)[:8])) if isinstance(data, dict) else type(data).__name__
    raise InputError("is no result of a benchmark that is known", file=file, got=f"the fields {has}", allowed=KNOWN)
