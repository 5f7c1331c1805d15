"""How numbers, metrics and swept keys read: units, three digits, intervals.

Plain text only, no markup, so that the terminal's tables and the report say the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sim.results.catalogue import CATALOGUE, SHARES
from sim.results.point import COUNTS, Metric
from sim.results.slo_terms import split_term
from sim.spec.units import human_bytes, human_seconds, parse_seconds, parse_share

KEY_WORDS = {
    "workload.arrivals.rate": "arrival rate",
    "workload.arrivals.concurrency": "concurrent requests",
    "workload.arrivals.think": "think time",
    "workload.arrivals.cv": "burstiness (cv of the gaps)",
    "workload.trace.time_scale": "playback speed",
    "workload.client.time_scale": "times the client's traffic",
    "workload.client.max_concurrency": "requests at a time",
    "workload.client.num_prompts": "requests, all at once",
    "workload.popularity.exponent": "Zipf exponent",
    "workload.requests": "requests",
    "workload.tokens.prompt.mean": "mean prompt length",
    "workload.tokens.output.mean": "mean output length",
    "adapters.base_model": "base model",
    "adapters.count": "adapters",
    "adapters.rank": "adapter rank",
    "adapters.size": "adapter size",
    "fleet.replicas": "replicas",
    "fleet.autoscale.min": "autoscaler minimum",
    "fleet.autoscale.max": "autoscaler maximum",
    "fleet.autoscale.target": "autoscaler target",
    "fleet.autoscale.policy": "autoscaler policy",
    "fleet.autoscale.cold_start.warm": "adapters loaded at start",
    "fleet.max_num_seqs": "batch slots (max_num_seqs)",
    "fleet.max_num_batched_tokens": "token budget of a step (max_num_batched_tokens)",
    "fleet.kv_tokens": "KV tokens",
    "fleet.kv_offload": "KV offload",
    "fleet.kv_offload.size": "KV offload",
    "fleet.kv_offload.host_memory": "host memory",
    "fleet.speculation": "speculation",
    "fleet.speculation.tokens": "drafted tokens",
    "fleet.engine": "engine",
    "fleet.profile": "profile",
    "fleet.gpu": "GPU",
    "fleet.full_models": "full models",
    "fleet.price": "price of a GPU hour",
    "fleet.tensor_parallel": "GPUs per replica",
    "fleet.fully_sharded_loras": "fully sharded LoRA",
    "fleet.gpu_memory_utilization": "GPU memory utilization",
    "fleet.admission": "admission policy",
    "fleet.scheduling": "scheduling",
    "cache.gpu.slots": "GPU slots",
    "cache.gpu.size": "GPU cache",
    "cache.host.slots": "host slots",
    "cache.host.size": "host cache",
    "cache.eviction": "eviction policy",
    "storage.loaders": "loaders",
    "storage.mode": "load mode",
    "router.policy": "router policy",
    "run.seed": "seed",
    "rollouts.0.strategy": "strategy",
    "rollouts.0.spread": "spread of the rollout",
    "rollouts.0.dwell": "dwell of a stage",
    "rollouts.0.share": "share rolled out",
    "rollouts.0.stages": "stages",
    "rollouts.0.at": "start of the rollout",
    "rollouts.0.adapter": "adapter rolled out",
    "rollouts.0.propagation": "propagation",
    "rollouts.0.keep_old": "keep old versions",
    "rollouts.0.require": "gate before the rollout",
    "rollouts.0.sticky": "sticky sessions",
    "faults.0.at": "start of the fault",
    "faults.0.factor": "slowdown",
    "faults.0.delay": "network delay",
    "faults.0.share": "affected share",
    "faults.0.backoff": "pause before a retry",
    "faults.0.retries": "retries of a load",
    "faults.0.replica": "affected replica",
    "faults.0.lifetime": "lifetime of old prefixes",
    "faults.0.to": "adapter reached",
    "faults.0.propagation": "propagation of the map",
    "faults.0.detector.delay": "pause before a retry",
    "router.instances": "router instances",
    "faults.0.requests": "requests in flight",
    "faults.0.detected": "time to notice",
    "faults.0.down": "downtime",
    "faults.0.lasts": "length of the fault",
    "faults.0.probability": "fault probability",
    "faults.0.detector.checks": "answers checked",
    "faults.0.detector.retries": "retries",
    "fleet.prefix_caching": "prefix caching",
    "workload.prefix.texts": "texts per sharer",
    "router.staleness": "staleness of the router",
    "router.bound": "load bound",
    "router.placement": "placement",
    "router.controller.policy": "placement policy",
    "router.controller.period": "placement period",
    "router.controller.history": "placement history",
    "router.controller.copies": "copies of an adapter",
    "router.controller.tolerance": "tolerated imbalance",
    "router.controller.slots": "adapters placed on a replica",
    "router.controller.move": "who loads moved adapters",
}
"""Swept keys in words; any other key reads as it is written in the scenario."""

COUNTED = frozenset(
    {
        "requests",
        "concurrent requests",
        "adapters",
        "adapters loaded at start",
        "replicas",
        "KV tokens",
        "drafted tokens",
        "GPU slots",
        "host slots",
        "loaders",
    }
)
"""Words that follow their number: ``64 GPU slots``, but ``arrival rate 25/s``."""

_OF_POOL = re.compile(r"fleet\.pools\.([A-Za-z0-9_-]+)\.(.+)")
_OF_TENANT = re.compile(r"tenants\.([^.]+)\.(.+)")
_TENANT_WORDS = {"rate": "arrival rate", "share": "share of the requests", "bucket.rate": "token rate"}
_PLURAL = re.compile(r"s(?= of |$)")
_TINY = 1e-4
"""A ratio closer to 0 than this says no more than that."""
_SECONDS = ((7200.0, 3600.0), (600.0, 60.0), (0.9995, 1.0), (0.9995e-3, 1e-3))
"""Times from which hours, minutes, seconds and milliseconds are shown, and how long these are; less are µs."""


def key_words(key: str) -> str:
    """Return a swept key in words, or the key itself where there are none."""
    tenant, pool = _OF_TENANT.fullmatch(key), _OF_POOL.fullmatch(key)
    if tenant is not None and not tenant[1].isdigit():
        return f"{_TENANT_WORDS.get(tenant[2], tenant[2].replace('.', ' '))} of {tenant[1]}"
    if key.startswith("slo."):
        return f"target of {metric_words(next((n for n in (f'{key[4:]}_s', key[4:]) if n in CATALOGUE), key))}"
    if pool is None:
        return KEY_WORDS.get(key, key)
    own = pool[2] if pool[2].startswith(("cache.", "storage.")) else f"fleet.{pool[2]}"
    name = f"pool {pool[1]}" if pool[1].isdigit() else pool[1]
    return f"{KEY_WORDS.get(own, own)} of {name}"


def is_counted(words: str) -> bool:
    """Return whether a key in words follows its value: ``64 GPU slots``, but ``arrival rate 25/s``."""
    return words in COUNTED or words.startswith("replicas of ")


def singular(words: str) -> str:
    """Return the words of a counted key for one of them: ``GPU slot``, ``replica of big``."""
    return _PLURAL.sub("", words, count=1)


def metric_words(name: str) -> str:
    """Return a metric's name in words; of a term of a tenant with the tenant: ``p99 TTFT of chat``."""
    tenant, name = split_term(name)
    words = CATALOGUE[name].words if name in CATALOGUE else name.replace("_", " ")
    return f"{words} of {tenant}" if tenant else words


def popular_words(effective: str) -> str:
    """Return over how many equally popular adapters traffic is spread, to follow ``as spread out as``.

    :param effective: how many, as shown.
    """
    return "traffic to a single adapter" if effective == "1" else f"{effective} equally popular adapters"


def number(value: float) -> str:
    """Return a number with three digits, whole from 1,000 on: ``1234.5`` → ``"1,234"``."""
    if abs(value) >= 999.5 or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= _TINY else f"below {_TINY:g}"


def plural(count: float, word: str) -> str:
    """Return a count with its word: ``1 slot``, ``1,808 sessions``."""
    return f"{number(count)} {word}{'' if count == 1 else 's'}"


def likelihood(probability: float) -> str:
    """Return a probability with two digits; one near an end as a bound."""
    if probability < 0.005:
        return "< 0.01"
    return "> 0.99" if probability > 0.995 else f"{probability:.2f}"


def with_p(probability: float) -> str:
    """Return a probability as words have it: ``p = 0.87``, ``p > 0.99``."""
    words = likelihood(probability)
    return f"p {words}" if words[0] in "<>" else f"p = {words}"


def money(amount: float) -> str:
    """Return US dollars, whole from 100 on, cents from 1 on, else three digits: ``"$1,825"``, ``"$0.412"``."""
    size = abs(amount)
    if size >= 99.995 or size == 0:
        text = f"{size:,.0f}"
    else:
        text = f"{size:.2f}" if size >= 0.9995 else f"{size:.{2 - math.floor(math.log10(size))}f}"
    return f"{'−' if amount < 0 else ''}${text}"


def percent(share: float) -> str:
    """Return a share as a percentage of three digits: ``0.7991`` → ``"79.9 %"``."""
    text = f"{share * 100:.3g}"
    return f"{float(text):,.0f} %" if "e+" in text else f"{0 if 'e-' in text else text} %"


def show(name: str, value: float | None, unit: str | None = None, like: float | None = None) -> str:
    """Return a metric's value with its unit, or ``not enough data``.

    :param unit: as in the catalogue of metrics; taken from there where it isn't given.
    :param like: a time next to it, whose unit it has.
    """
    if value is None:
        return "not enough data"
    _, name = split_term(name)
    unit = unit or (CATALOGUE[name].unit if name in CATALOGUE else "1")
    if unit == "s":
        return human_seconds(value, like)
    if unit == "1/s":
        return f"{number(value)}/s"
    if unit == "B":
        return human_bytes(value)
    if unit == "USD":
        return money(value)
    return percent(value) if name in SHARES else number(value)


def _scaled(value: float, like: float) -> str:
    """Return a bound with the decimals that three digits of the estimate have, so that both line up."""
    decimals = min(8, max(0, 2 - math.floor(math.log10(abs(like))))) if like else 2
    return f"{value:,.{decimals}f}"


def interval(name: str, metric: Metric) -> str:
    """Return the 95 % interval alone, in the unit of the value: ``"295 to 305"``; empty if there is none.

    Counts that can't vary have an interval without width, which says nothing.
    """
    return _between(name, metric, metric.lo, metric.hi)


def calibration(name: str, metric: Metric) -> str:
    """Return the calibration interval alone, like ``interval``: empty without draws, or where they change no digit."""
    text = _between(name, metric, metric.calibration_lo, metric.calibration_hi)
    lower, _, upper = text.partition(" to ")
    return "" if lower == upper else text


def _between(name: str, metric: Metric, lower: float | None, upper: float | None) -> str:
    if metric.value is None or lower is None or upper is None or lower == upper:
        return ""
    _, name = split_term(name)
    factor = 0.01 if name in SHARES else 1.0
    if metric.unit == "s":
        factor = next((size for least, size in _SECONDS if abs(metric.value) >= least), 1e-6)
    low, high, like = lower / factor, upper / factor, metric.value / factor
    if name in SHARES:  # Student's t doesn't know that a share ends at 0 and at 1.
        low, high = max(low, 0.0), min(high, 100.0)
    # A bound many times the value says more in its own unit: "87 ms to 1.9 s".
    if metric.unit == "B":
        return f"{human_bytes(lower)} to {human_bytes(upper)}"
    if metric.unit in COUNTS:
        return f"{lower:,.0f} to {upper:,.0f}"
    if metric.unit == "USD":
        return f"{money(lower)} to {money(upper)}"
    if metric.unit != "s" and abs(like) < _TINY:
        return f"{number(low)} to {number(high)}" if high >= _TINY else ""
    if metric.unit == "s" and low <= 0 < high and metric.value > 0:
        return f"up to {human_seconds(upper)}"
    if metric.unit == "s" and (high > 1000 or (low and abs(low) < 0.1)):
        return f"{human_seconds(lower)} to {human_seconds(upper)}"
    if name in SHARES and like >= _NEARLY_ALL:  # "100 to 100" would hide that a few were late
        return f"{_near_all(low)} to {_near_all(high)}"
    return f"{_scaled(low, like)} to {_scaled(high, like)}"


_NEARLY_ALL = 99.5
"""Percent from which on both ends of a share keep enough digits to differ from 100."""

_ROUNDING = 1e-9
"""Percent below 100 that come from floating-point arithmetic alone."""


def _near_all(percentage: float) -> str:
    missing = 100.0 - percentage
    if missing < _ROUNDING or missing >= 0.1:
        return f"{percentage:.3g}"
    return f"{percentage:.{-math.floor(math.log10(missing))}f}"


def read_terms(slo: Mapping[str, Any] | None) -> dict[str, float]:
    """Return the terms of a scenario's ``slo`` block by metric name: ``{"ttft_p99_s": 1.0}``.

    :param slo: as in the YAML, ``{"ttft_p99": "1 s", "miss_ratio": "20%"}``; terms of None are left out.
    """
    terms = {}
    for name, value in (slo or {}).items():
        if value is None:
            continue
        if name == "miss_ratio":
            terms[name] = parse_share(value)
        else:
            terms[f"{name}_s"] = float(value) if isinstance(value, float) else parse_seconds(value)
    return terms


def size_words(value: object) -> str:
    """Return a size for people, or a dash where there is none."""
    return human_bytes(float(value)) if isinstance(value, (int, float)) else "–"


def listed(words: Sequence[str]) -> str:
    """Return words as a list in a sentence: ``a, b and c``."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else ""


# How reports name and show what was measured on a server and what is predicted for it.

_WORDS = {
    "requests_per_s": "requests/s",
    "output_tokens_per_s": "output tokens/s",
    "in_flight": "requests in flight",
    "running": "running requests",
    "waiting": "waiting requests",
    "prefix_hits": "prompt tokens cached",
}
_LATENCIES = ("ttft", "itl", "tpot", "e2e")


def measured_words(name: str) -> str:
    """Return a measured metric in words: ``ttft_p50_s`` is p50 TTFT."""
    latency, _, rest = name.partition("_")
    return f"{rest.removesuffix('_s')} {latency.upper()}" if latency in _LATENCIES else _WORDS.get(name, name)


def measured_value(name: str, value: float) -> str:
    """Return a value of it with its unit."""
    if name.partition("_")[0] in _LATENCIES:
        return human_seconds(value)
    return f"{value:.1%}" if name == "prefix_hits" else number(value)
