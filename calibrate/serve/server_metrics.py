"""Read a server's metrics page and, for a server that we started, the rows of the observer inside it."""

from __future__ import annotations

import re
import time
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from calibrate.serve.connection import Host
from calibrate.serve.http_answer import Broken
from sim.studies.dashboards import metrics_text

PAGE_BYTES = 8 << 20
"""Bytes of a metrics page, at most."""

PAGE_LIMIT_S = 10.0
"""Seconds that a page may take before and after the traffic, at most."""

LINE_LETTERS = metrics_text.LINE_LETTERS
"""Characters of a line of it, at most; longer ones are left out."""

MOST_KV_TOKENS = 2**31 - 1
"""Tokens of KV cache that are believed, at most."""

_MOST = 1e15
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
    for sample in metrics_text.read_metrics(text):
        name, labels = sample.key
        if name in known and sample.value <= _MOST:
            page.values[known[name]] = page.values.get(known[name], 0.0) + sample.value
        elif name == "vllm:cache_config_info":
            info = dict(labels)
            size, blocks = info.get("block_size", ""), info.get("num_gpu_blocks", "")
            if _COUNT.fullmatch(size) and _COUNT.fullmatch(blocks):
                tokens = int(size) * int(blocks)
                if 0 < tokens <= MOST_KV_TOKENS:
                    page.block_size, page.kv_tokens = int(size), tokens
    return page


async def fetch_page(url: str, limit_s: float, most: int) -> tuple[str, int, bytes]:
    """Read an address once, and return which it was, the status and the body.

    :param url: with a path and a query, or a server's, of which ``/metrics`` is read.
    :param limit_s: seconds for all of it; ``most``: bytes of body.
    :raises InputError: where that is no URL.
    :raises Broken, OSError: where the server can't be reached, or sends what is not HTTP, or too much.
    """
    parts = urlsplit(url)
    path = parts.path if parts.path not in ("", "/") else "/metrics"
    host = Host(f"{parts.scheme}://{parts.netloc}")
    try:
        status, body = await host.get(f"{path}?{parts.query}" if parts.query else path, limit_s, most)
    finally:
        await host.close()
    return f"{host.url}{path}", status, body


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
