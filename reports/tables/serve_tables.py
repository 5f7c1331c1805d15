"""Tables of a live comparison: measured and predicted values, and what the server reports."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from reports.table import Table
from sim.spec.units import human_seconds

METRICS = {
    "throughput_rps": "throughput",
    "output_tokens_per_s": "output tokens",
    "in_flight_mean": "requests in the server",
    "ttft_p50_s": "p50 TTFT",
    "ttft_p90_s": "p90 TTFT",
    "ttft_p99_s": "p99 TTFT",
    "ttft_mean_s": "mean TTFT",
    "itl_p50_s": "p50 ITL",
    "itl_mean_s": "mean ITL",
    "itl_p99_s": "p99 ITL",
    "e2e_p50_s": "p50 E2E",
    "e2e_p90_s": "p90 E2E",
    "e2e_p99_s": "p99 E2E",
    "e2e_mean_s": "mean E2E",
    "loads_per_request": "loads per request",
    "miss_ratio": "miss ratio",
    "preemptions": "preemptions",
}
"""Names of the compared metrics, in the order of the page."""

_UNITS = {"throughput_rps": " requests/s", "output_tokens_per_s": " tokens/s"}


def metrics_table(summary: Mapping[str, Any]) -> Table:
    """Return measured and predicted values, the error, the noise of identical runs and the aim for the error."""
    rows = []
    for name, words in METRICS.items():
        row = summary["metrics"].get(name)
        if row is None or (row["measured"] is None and row["predicted"] is None):
            continue
        wanted = row["wanted"]
        rows.append(
            [
                words,
                show_value(name, row["measured"]),
                show_value(name, row["predicted"]),
                error_percent(row["error"]),
                error_percent(row["noise"], sign=False),
                "–" if wanted is None else f"{wanted:.0%}",
            ]
        )
    runs = summary["repeat"]
    note = (
        f"Measured: mean of {runs} identical runs. Noise: how much they differ."
        if runs > 1
        else "One run: use --repeat 2 to see how much of the error is noise."
    )
    note += f" Loads: {loads_from(summary)}."
    return Table(
        "Metrics, measured and predicted", ["metric", "measured", "predicted", "error", "noise", "aim"], rows, note
    )


def show_value(name: str, value: float | None) -> str:
    """Return a measured or predicted value with its unit."""
    if value is None or not math.isfinite(value):
        return "–"
    if name.endswith("_s") and name not in _UNITS:
        return human_seconds(value)
    if name == "miss_ratio":
        return f"{value:.1%}"
    return f"{value:,.3g}{_UNITS.get(name, '')}" if value < 1000 else f"{value:,.0f}{_UNITS.get(name, '')}"


def error_percent(value: float | None, *, sign: bool = True) -> str:
    """Return an error as a percentage, with its sign unless that says nothing."""
    if value is None or not math.isfinite(value):
        return "–"
    if not sign:
        return f"{value:.1%}"
    return "0.0%" if abs(value) < 0.0005 else f"{value:+.1%}".replace("-", "−")


def loads_from(summary: Mapping[str, Any]) -> str:
    """Return where the counts of adapter loads come from."""
    words = str(summary["loads_from"])
    return f"counted by {words}" if words.startswith("an observer") else f"not measured, {words}"


def server_table(summary: Mapping[str, Any]) -> Table | None:
    """Return what the server's metrics page said during each run; None where it has none."""
    words = {
        "running_mean": "running requests (mean)",
        "running_max": "running requests (most)",
        "waiting_mean": "waiting requests (mean)",
        "waiting_max": "waiting requests (most)",
        "kv_usage_mean": "KV cache in use (mean)",
        "kv_usage_max": "KV cache in use (most)",
        "preemptions": "preemptions",
        "ttft_mean_s": "mean TTFT",
        "e2e_mean_s": "mean E2E",
    }
    runs = summary["server"]
    rows = [
        [label, *(_reported(name, run.get(name)) for run in runs)]
        for name, label in words.items()
        if any(name in run for run in runs)
    ]
    if not rows:
        return None
    head = ["metric", *(f"run {number}" for number in range(1, len(runs) + 1))]
    note = "From its metrics page: gauges read every 2 seconds, means of its histograms."
    return Table("Counters of the server", head, rows, note)


def _reported(name: str, value: float | None) -> str:
    if value is not None and name.startswith("kv_usage"):
        return f"{value:.1%}"
    return show_value(name, value)
