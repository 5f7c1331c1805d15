"""Read a server's metrics page and, for a server that we started, the rows of the observer inside it."""

from __future__ import annotations

import math
import re
import time
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from calibrate.serve.connection import Host
from calibrate.serve.http_answer import Broken

PAGE_BYTES = 8 << 20
"""Bytes of a metrics page, at most."""

PAGE_LIMIT_S = 10.0
"""Seconds that a page may take before and after the traffic, at most."""

MOST_KV_TOKENS = 2**31 - 1
"""Tokens of KV cache that are believed, at most."""

LINE_LETTERS = 64 << 10
"""Characters of a line of it, at most; longer ones are left out."""

_MOST = 1e15
_LINE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*+)(?:\{(.*)\})?\s+(\S+)")
_LABEL = re.compile(r'(?<!\w)(\w+)="((?:[^"\\]|\\.)*+)"')
_COUNT = re.compile(r"[0-9]{1,10}")
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


async def read_page(host: Host, limit_s: float) -> MetricsPage | None:
    """Return what the metrics page says; None for a server without one, or one that takes longer than ``limit_s``."""
    now = time.monotonic()
    try:
        status, body = await host.get("/metrics", limit_s, PAGE_BYTES)
    except (Broken, OSError):
        return None
    return parse_page(body.decode("utf-8", errors="replace"), now) if status == 200 else None


def parse_page(text: str, at: float) -> MetricsPage:
    """Read a metrics page in Prometheus' format; a metric of several series is their sum.

    Lines that are none, and values that can't be meant, are left out.
    """
    page = MetricsPage(at)
    known = {theirs: ours for names in (_GAUGES, _COUNTERS) for ours, all_ in names.items() for theirs in all_}
    for line in text.splitlines():
        found = _LINE.match(line) if len(line) <= LINE_LETTERS else None
        if found is None:
            continue
        name, labels, value = found.groups()
        if name in known:
            _add(page.values, known[name], value)
        elif name == "vllm:cache_config_info":
            info = dict(_LABEL.findall(labels or ""))
            size, blocks = info.get("block_size", ""), info.get("num_gpu_blocks", "")
            if _COUNT.fullmatch(size) and _COUNT.fullmatch(blocks):
                tokens = int(size) * int(blocks)
                if 0 < tokens <= MOST_KV_TOKENS:
                    page.block_size, page.kv_tokens = int(size), tokens
    return page


def _add(values: dict[str, float], name: str, text: str) -> None:
    try:
        value = float(text)
    except ValueError:
        return
    if math.isfinite(value) and 0 <= value <= _MOST:
        values[name] = values.get(name, 0.0) + value


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
        if grown.get(f"{name}_count") and f"{name}_sum_s" in grown:
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
