"""Read a server's metrics page and, for a server that we started, the rows of the observer inside it."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from calibrate.serve.connection import Host
from calibrate.serve.http_answer import Broken
from sim.studies.observe import engine_metrics
from sim.studies.observe.engine_metrics import (
    CACHE_CONFIG,
    Role,
    cache_config,
    counter_name,
    gauge_name,
    histogram_name,
    is_of_interest,
)

PAGE_BYTES = 8 << 20
"""Bytes of a metrics page, at most."""

PAGE_LIMIT_S = 10.0
"""Seconds that a page may take before and after the traffic, at most."""

_MOST = 1e15
_GAUGES: tuple[Role, ...] = ("running", "waiting", "kv_usage")
_COUNTERS: tuple[Role, ...] = ("preemptions",)
_HISTOGRAMS: tuple[Role, ...] = ("ttft", "e2e")
_GROWING = ("preemptions", "ttft_sum_s", "ttft_count", "e2e_sum_s", "e2e_count")


@dataclass(slots=True)
class MetricsPage:
    """One reading of a metrics page.

    :ivar at: when it was read, monotonic seconds.
    :ivar values: by our names, those the server has.
    :ivar kv_tokens, block_size, prefix_caching: of vLLM's KV cache, where the page has them.
    """

    at: float
    values: dict[str, float] = field(default_factory=dict)
    kv_tokens: int | None = None
    block_size: int | None = None
    prefix_caching: bool | None = None


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

    Of several names for one metric the first counts. Lines that are none, and values that can't be meant, are left out.
    """
    page = MetricsPage(at)
    sums: dict[str, float] = {}
    for sample in engine_metrics.read_metrics(text):
        name, labels = sample.key
        if name == CACHE_CONFIG:
            config = cache_config(labels)
            page.prefix_caching = config.prefix_caching
            if config.tokens is not None:
                page.block_size, page.kv_tokens = config.block_size, config.tokens
        elif is_of_interest(name) and sample.value <= _MOST:
            sums[name] = sums.get(name, 0.0) + sample.value
    page.values = {ours: sums[theirs] for ours, theirs in _names(sums) if theirs in sums}
    return page


def _names(there: Collection[str]) -> Iterator[tuple[str, str]]:
    for roles, find in ((_GAUGES, gauge_name), (_COUNTERS, counter_name)):
        for role in roles:
            name = find(role, there)
            if name is not None:
                yield role, name
    for role in _HISTOGRAMS:
        name = histogram_name(role, there)
        if name is not None:
            yield f"{role}_sum_s", f"{name}_sum"
            yield f"{role}_count", f"{name}_count"


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
    grown = {name: last[name] - first.get(name, 0.0) for name in _GROWING if name in last}
    if "preemptions" in grown:
        result["preemptions"] = grown["preemptions"]
    for name in ("ttft", "e2e"):
        if grown.get(f"{name}_count") and f"{name}_sum_s" in grown:
            result[f"{name}_mean_s"] = grown[f"{name}_sum_s"] / grown[f"{name}_count"]
    return result


@dataclass(frozen=True, slots=True)
class ObservedRun:
    """What the observer inside a server saw during a run.

    :ivar loads: into slots, those of cascades too.
    :ivar misses: requests that found their adapter in no slot and were the first of their step to need it.
    """

    loads: int
    misses: int


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
    return ObservedRun(loads=len(loads), misses=len(missed))
