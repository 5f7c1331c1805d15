"""Read a server's metrics page and, for a server that we started, the rows of the observer inside it."""

from __future__ import annotations

import re
import time
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from calibrate.serve.connection import ConnectionBroken, Host

_LINE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_GAUGES = {
    "running": ("vllm:num_requests_running", "sglang:num_running_reqs"),
    "waiting": ("vllm:num_requests_waiting", "sglang:num_queue_reqs"),
    "kv_usage": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "sglang:token_usage"),
}
_COUNTERS = {
    "preemptions": ("vllm:num_preemptions_total",),
    "ttft_sum_s": ("vllm:time_to_first_token_seconds_sum", "sglang:time_to_first_token_seconds_sum"),
    "ttft_count": ("vllm:time_to_first_token_seconds_count", "sglang:time_to_first_token_seconds_count"),
    "e2e_sum_s": ("vllm:e2e_request_latency_seconds_sum", "sglang:e2e_request_latency_seconds_sum"),
    "e2e_count": ("vllm:e2e_request_latency_seconds_count", "sglang:e2e_request_latency_seconds_count"),
}


@dataclass(slots=True)
class MetricsPage:
    """One reading of a metrics page.

    :ivar at: when it was read, monotonic seconds.
    :ivar values: by our names, those the server has.
    :ivar kv_tokens, block_size: of vLLM's KV cache, where the page has them.
    """

    at: float
    values: dict[str, float] = field(default_factory=dict)
    kv_tokens: int | None = None
    block_size: int | None = None


async def read_page(host: Host) -> MetricsPage | None:
    """Return what the metrics page says; None for a server without one."""
    now = time.monotonic()
    try:
        status, body = await host.get("/metrics")
    except (ConnectionBroken, OSError):
        return None
    return parse_page(body.decode("utf-8", errors="replace"), now) if status == 200 else None


def parse_page(text: str, at: float) -> MetricsPage:
    """Read a metrics page in Prometheus' format; a metric of several series is their sum."""
    page = MetricsPage(at)
    known = {theirs: ours for names in (_GAUGES, _COUNTERS) for ours, all_ in names.items() for theirs in all_}
    for line in text.splitlines():
        found = _LINE.match(line)
        if found is None:
            continue
        name, labels, value = found.groups()
        if name in known:
            try:
                page.values[known[name]] = page.values.get(known[name], 0.0) + float(value)
            except ValueError:
                continue
        elif name == "vllm:cache_config_info":
            info = dict(_LABEL.findall(labels or ""))
            size, blocks = info.get("block_size", ""), info.get("num_gpu_blocks", "")
            if size.isdigit() and blocks.isdigit():
                page.block_size, page.kv_tokens = int(size), int(size) * int(blocks)
    return page


def over_run(pages: list[MetricsPage]) -> dict[str, float]:
    """Return means of gauges and growth of counters between the first and the last page."""
    result: dict[str, float] = {}
    if len(pages) < 2:
        return result
    for name in _GAUGES:
        values = [page.values[name] for page in pages[1:-1] or pages if name in page.values]
        if values:
            result[f"{name}_mean"] = float(np.mean(values))
            result[f"{name}_max"] = max(values)
    first, last = pages[0].values, pages[-1].values
    grown = {name: last[name] - first.get(name, 0.0) for name in _COUNTERS if name in last}
    if "preemptions" in grown:
        result["preemptions"] = grown["preemptions"]
    for name in ("ttft", "e2e"):
        if grown.get(f"{name}_count"):
            result[f"{name}_mean_s"] = grown[f"{name}_sum_s"] / grown[f"{name}_count"]
    return result


@dataclass(frozen=True, slots=True)
class ObservedRun:
    """What the observer inside a server saw during a run.

    :ivar loads: loads into slots, those of cascades too; ``reads``: adapter files read.
    :ivar misses: requests that found their adapter in no slot and were the first of their step to need it.
    """

    steps: int
    loads: int
    reads: int
    evictions: int
    misses: int
    preemptions: int
    load_s: float


def observed_between(rows: Iterable[Mapping[str, Any]], start: float, end: float) -> ObservedRun | str:
    """Count what an observer wrote between two monotonic times; a sentence where it observed nothing."""
    rows = list(rows)
    for row in rows:
        if "unable" in row:
            return f"the observer does not know this version of vLLM ({row['unable']})"
    steps = sorted((row for row in rows if start <= row.get("step", -1.0) <= end), key=lambda row: row["step"])
    loads = [row for row in rows if start <= row.get("load", -1.0) <= end]
    if not steps:
        return "the observer saw no step"
    begins = [row["step"] for row in steps]
    missed = set()
    for load in loads:
        place = bisect_right(begins, load["load"]) - 1
        if place >= 0 and load["adapter"] in steps[place]["new"]:
            missed.add((place, load["adapter"]))
    return ObservedRun(
        steps=len(steps),
        loads=len(loads),
        reads=sum(start <= row.get("read", -1.0) <= end for row in rows),
        evictions=sum(start <= row.get("eviction", -1.0) <= end for row in rows),
        misses=len(missed),
        preemptions=sum(row["preempted"] for row in steps),
        load_s=float(sum(row["seconds"] for row in loads)),
    )
