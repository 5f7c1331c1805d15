"""How reports name and show what was measured on a server and what is predicted for it."""

from __future__ import annotations

from reports.formatting import number
from sim.spec.units import human_seconds

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
