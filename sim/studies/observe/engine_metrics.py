"""What vLLM and SGLang call their metrics, and how their text format is read.

vLLM's names come from ``vllm/engine/metrics.py`` (V0) and ``vllm/v1/metrics/loggers.py`` (V1): V1 renamed
``gpu_cache_usage_perc`` to ``kv_cache_usage_perc``, ``gpu_prefix_cache_*`` to ``prefix_cache_*`` and
``time_per_output_token_seconds`` to ``inter_token_latency_seconds``, and some versions export both. SGLang's are those
of ``python/sglang/srt/metrics/collector.py``; its histograms of lengths are there with
``--collect-tokens-histogram`` alone. A counter has the ending ``_total`` in the text format, but pipelines may drop it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

# Reads the text format of Prometheus, as ``/metrics`` of an engine and ``/federate`` of a Prometheus server give it.
#
# https://prometheus.io/docs/instrumenting/exposition_formats/. Only samples matter here: ``# HELP`` and ``# TYPE`` are
# comments, and what they say of the few metrics that loraplan knows is fixed by their names.

Labels = tuple[tuple[str, str], ...]
"""Labels of a series, by name."""

Key = tuple[str, Labels]
"""A series: the metric's name and its labels."""

LINE_LETTERS = 64 << 10
"""Characters of a line, at most; longer ones are left out."""

_LINE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*+)[ \t]*+(?:\{(.*)\})?[ \t]*+([^\s{}]+)(?:[ \t]+(-?[0-9]{1,16}))?[ \t]*")
_LABEL = re.compile(r'\s*+([a-zA-Z_]\w*+)\s*+=\s*+"((?:[^"\\]|\\.)*+)"\s*+(?:,|$)')
_ESCAPED = re.compile(r"\\(.)")
_UNESCAPED = {"n": "\n"}


@dataclass(frozen=True, slots=True)
class MetricSample:
    """One line of the text format.

    :ivar at_s: seconds since 1970, where the line has a time stamp; engines write none, ``/federate`` does.
    """

    key: Key
    value: float
    at_s: float | None = None


def read_metrics(text: str) -> Iterator[MetricSample]:
    """Yield the samples of a page; lines that are none are left out."""
    for line in text.splitlines():
        if len(line) > LINE_LETTERS or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line.strip())
        if found is None:
            continue
        name, inner, number, stamp = found.groups()
        labels = _labels(inner or "")
        value = _number(number)
        if labels is not None and value is not None:
            yield MetricSample((name, labels), value, None if stamp is None else int(stamp) / 1000)


def _number(text: str) -> float | None:
    """Return a value that counts and measures can have: finite and not negative; None for others."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _labels(text: str) -> Labels | None:
    """Return the labels between the braces, in the order of their names; None where they are cut short."""
    found: dict[str, str] = {}
    place = 0
    while place < len(text):
        label = _LABEL.match(text, place)
        if label is None:
            return None if text[place:].strip() else tuple(sorted(found.items()))
        name, value = label.groups()
        found[name] = _ESCAPED.sub(lambda escaped: _UNESCAPED.get(escaped[1], escaped[1]), value)
        place = label.end()
    return tuple(sorted(found.items()))


Role = Literal[
    "finished",
    "prompt_total",
    "output_total",
    "prefix_queries",
    "prefix_hits",
    "preemptions",
    "running",
    "waiting",
    "kv_usage",
    "prompt_tokens",
    "output_tokens",
    "ttft",
    "itl",
    "tpot",
    "e2e",
]

COUNTERS: dict[Role, tuple[str, ...]] = {
    "finished": ("vllm:request_success", "sglang:num_requests"),
    "prompt_total": ("vllm:prompt_tokens", "sglang:prompt_tokens"),
    "output_total": ("vllm:generation_tokens", "sglang:generation_tokens"),
    "prefix_queries": ("vllm:prefix_cache_queries", "vllm:gpu_prefix_cache_queries", "sglang:prompt_tokens"),
    "prefix_hits": ("vllm:prefix_cache_hits", "vllm:gpu_prefix_cache_hits", "sglang:cached_tokens"),
    "preemptions": ("vllm:num_preemptions", "sglang:num_retracted_requests"),
}
"""Counters without their ending; of several names the first that is there counts."""

GAUGES: dict[Role, tuple[str, ...]] = {
    "running": ("vllm:num_requests_running", "sglang:num_running_reqs"),
    "waiting": ("vllm:num_requests_waiting", "sglang:num_queue_reqs"),
    "kv_usage": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "sglang:token_usage"),
}

HISTOGRAMS: dict[Role, tuple[str, ...]] = {
    "prompt_tokens": ("vllm:request_prompt_tokens", "sglang:prompt_tokens_histogram"),
    "output_tokens": ("vllm:request_generation_tokens", "sglang:generation_tokens_histogram"),
    "ttft": ("vllm:time_to_first_token_seconds", "sglang:time_to_first_token_seconds"),
    "itl": (
        "vllm:inter_token_latency_seconds",
        "vllm:time_per_output_token_seconds",
        "sglang:inter_token_latency_seconds",
        "sglang:time_per_output_token_seconds",
    ),
    "tpot": ("vllm:request_time_per_output_token_seconds",),
    "e2e": ("vllm:e2e_request_latency_seconds", "sglang:e2e_request_latency_seconds"),
}

LORA_INFO = "vllm:lora_requests_info"
"""A gauge whose labels name the adapters of running and waiting requests; its value is when that was so. Every
combination that ever was keeps a series of its own."""

CACHE_CONFIG = "vllm:cache_config_info"
PROCESS_START = "process_start_time_seconds"
CREATED = ("vllm:request_success_created", "sglang:num_requests_created")
"""When counters began, which is after the model was loaded; vLLM V0 and multi-process pages don't have it."""
SGLANG_KV_TOKENS, SGLANG_SLOTS = "sglang:max_total_num_tokens", "sglang:lora_pool_slots_total"

MOST_KV_TOKENS = 2**31 - 1
"""Tokens of KV cache that are believed, at most."""

_DIGITS = 10


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """The KV cache of a server, as ``vllm:cache_config_info`` has it; None for what it lacks.

    :ivar tokens: blocks times their size.
    """

    tokens: int | None = None
    block_size: int | None = None
    prefix_caching: bool | None = None


def cache_config(labels: Labels) -> CacheConfig:
    """Read the labels of ``vllm:cache_config_info``; values that can't be meant are left out."""
    info = dict(labels)
    size, blocks = (
        int(text) if (text := info.get(key, "")).isascii() and text.isdigit() and len(text) <= _DIGITS else 0
        for key in ("block_size", "num_gpu_blocks")
    )
    tokens = size * blocks
    caching = {"True": True, "False": False}.get(info.get("enable_prefix_caching", ""))
    return CacheConfig(tokens if 0 < tokens <= MOST_KV_TOKENS else None, size or None, caching)


def counter_name(role: Role, names: Collection[str]) -> str | None:
    """Return the metric that counts something, of those that are there."""
    return next((full for name in COUNTERS[role] for full in (f"{name}_total", name) if full in names), None)


def gauge_name(role: Role, names: Collection[str]) -> str | None:
    """Return the gauge of something, of those that are there."""
    return next((name for name in GAUGES[role] if name in names), None)


def histogram_name(role: Role, names: Collection[str]) -> str | None:
    """Return the histogram of something, of those that are there."""
    return next((name for name in HISTOGRAMS[role] if f"{name}_bucket" in names or f"{name}_count" in names), None)


def engine_of(names: Collection[str]) -> str | None:
    """Return whose metrics these are: ``vllm``, ``sglang`` or None."""
    for engine in ("vllm", "sglang"):
        if any(name.startswith(f"{engine}:") for name in names):
            return engine
    return None


def is_of_interest(name: str) -> bool:
    """Return whether a metric may matter; others are not kept."""
    return name.startswith(("vllm:", "sglang:")) or name == PROCESS_START
