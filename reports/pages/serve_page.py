"""The page of a live comparison: what a real server did with a scenario's traffic, beside what was predicted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reports.charts.serve_charts import distributions, request_scatter
from reports.charts.svg import Chart
from reports.pages.run_page import template
from reports.table import Table
from sim.results.run_directory.result_files import write_text
from sim.spec.units import human_seconds

METRICS = {
    "throughput_rps": "throughput", "output_tokens_per_s": "output tokens", "in_flight_mean": "requests in the server",
    "ttft_p50_s": "p50 TTFT", "ttft_p90_s": "p90 TTFT", "ttft_p99_s": "p99 TTFT", "ttft_mean_s": "mean TTFT",
    "itl_p50_s": "p50 ITL", "itl_mean_s": "mean ITL", "itl_p99_s": "p99 ITL",
    "e2e_p50_s": "p50 E2E", "e2e_p90_s": "p90 E2E", "e2e_p99_s": "p99 E2E", "e2e_mean_s": "mean E2E",
    "loads_per_request": "loads per request", "miss_ratio": "miss ratio", "preemptions": "preemptions",
}  # fmt: skip
"""Names of the compared metrics, in the order of the page."""

_UNITS = {"throughput_rps": " requests/s", "output_tokens_per_s": " tokens/s"}
_HEADLINE = ("throughput_rps", "ttft_p50_s", "e2e_p50_s", "loads_per_request")


@dataclass(frozen=True)
class Shown:
    """One request of the first run, in seconds; NaN where it was not served or not predicted."""

    index: int
    ttft_s: float
    e2e_s: float
    predicted_ttft_s: float
    predicted_e2e_s: float


@dataclass(frozen=True)
class ServePage:
    """What the page shows.

    :ivar summary: as ``loraplan calibrate serve --json`` prints it.
    :ivar again: TTFT and E2E of a second identical run, if there was one.
    """

    summary: Mapping[str, Any]
    requests: Sequence[Shown]
    description: str
    again: Sequence[tuple[Sequence[float], Sequence[float]]]
    command: str


def write_page(page: ServePage, path: Path) -> Path:
    """Write the page; a reader never sees half a file."""
    write_text(path, template("serve.html.j2").render(**_context(page)))
    return path


def metrics_table(summary: Mapping[str, Any]) -> Table:
    """Return measured beside predicted, the error, the noise of identical runs and the error that is aimed at."""
    rows = []
    for name, words in METRICS.items():
        row = summary["metrics"].get(name)
        if row is None or (row["measured"] is None and row["predicted"] is None):
            continue
        wanted = row["wanted"]
        rows.append([
            words, show_value(name, row["measured"]), show_value(name, row["predicted"]), _percent(row["error"]),
            _percent(row["noise"], sign=False), "–" if wanted is None else f"{wanted:.0%}",
        ])  # fmt: skip
    runs = summary["repeat"]
    note = (
        f"Measured: mean of {runs} identical runs. Noise: what they differ by." if runs > 1 else
        "One run: --repeat 2 would tell how much of the error is noise."
    )  # fmt: skip
    note += f" Loads: {_loads_from(summary)}."
    return Table("Measured and predicted", ["metric", "measured", "predicted", "error", "noise", "aim"], rows, note)


def show_value(name: str, value: float | None) -> str:
    """Return a measured or predicted value with its unit."""
    if value is None or not math.isfinite(value):
        return "–"
    if name.endswith("_s") and name not in _UNITS:
        return human_seconds(value)
    if name == "miss_ratio":
        return f"{value:.1%}"
    return f"{value:,.3g}{_UNITS.get(name, '')}" if value < 1000 else f"{value:,.0f}{_UNITS.get(name, '')}"


def _percent(value: float | None, *, sign: bool = True) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    if not sign:
        return f"{value:.1%}"
    return "0.0%" if abs(value) < 0.0005 else f"{value:+.1%}".replace("-", "−")


def _loads_from(summary: Mapping[str, Any]) -> str:
    words = str(summary["loads_from"])
    return f"counted by {words}" if words.startswith("an observer") else f"not measured, {words}"


def headline(summary: Mapping[str, Any]) -> str:
    """Return the answer in a sentence."""
    metrics = summary["metrics"]
    known = [name for name in _HEADLINE if metrics.get(name, {}).get("error") is not None]
    if not known:
        return "Nothing was served that could be compared."
    parts = [f"{METRICS[name]} {_percent(metrics[name]['error'])}" for name in known]
    return f"Predicted against measured: {', '.join(parts)}."


def _findings(summary: Mapping[str, Any]) -> list[str]:
    metrics = summary["metrics"]
    aimed = [name for name, row in metrics.items() if row["wanted"] is not None and row["error"] is not None]
    missed = [name for name in aimed if abs(metrics[name]["error"]) > metrics[name]["wanted"]]
    found = []
    if aimed:
        found.append(f"{len(aimed) - len(missed)} of {len(aimed)} errors lie within what is aimed at on a quiet machine"
                     + (f"; not so: {', '.join(METRICS[name] for name in missed)}." if missed else "."))  # fmt: skip
    noisy = [
        METRICS[name] for name in missed if metrics[name]["noise"] and metrics[name]["noise"] >= metrics[name]["wanted"]
    ]
    if noisy:
        found.append(f"Identical runs differed by as much in: {', '.join(noisy)}.")
    if any(summary["failed"]):
        total = summary["requests"] * summary["repeat"]
        words = "; ".join(summary["problems"])
        found.append(f"{sum(summary['failed'])} of {total:,} requests were not served and count nowhere: {words}")
    if summary["late_p99_s"] > 0.01:
        found.append(
            f"1 % of the requests were sent more than {human_seconds(summary['late_p99_s'])} late: the client's "
            "machine was busy. Predictions take the times at which they were sent."
        )
    return [*found, *summary["notes"]]


def _context(page: ServePage) -> dict[str, Any]:
    summary = page.summary
    return {
        "name": summary["scenario"], "engine": summary["engine"], "description": page.description,
        "headline": headline(summary), "findings": _findings(summary), "metrics": metrics_table(summary),
        "charts": _charts(page), "server": _server_table(summary), "provenance": _provenance(summary),
        "command": page.command,
    }  # fmt: skip


def _charts(page: ServePage) -> list[Chart]:
    charts = []
    for number, (name, what, title) in enumerate(
        (("ttft", "TTFT", "How close is the first token?"), ("e2e", "E2E", "How close is the whole answer?"))
    ):
        points = [
            (shown.index, getattr(shown, f"{name}_s"), getattr(shown, f"predicted_{name}_s")) for shown in page.requests
        ]
        points = [point for point in points if point[1] > 0 and point[2] > 0]
        if not points:
            continue
        again = [[value for value in run[number] if value > 0] for run in page.again]
        measured = [[point[1] for point in points], *(run for run in again if run)]
        charts.append(request_scatter(f"scatter-{name}", title, what, points))
        charts.append(
            distributions(f"cdf-{name}", f"Is {what} spread as predicted?", what, measured, [p[2] for p in points])
        )
    return charts


def _server_table(summary: Mapping[str, Any]) -> Table | None:
    words = {
        "running_mean": "running requests (mean)", "running_max": "running requests (most)",
        "waiting_mean": "waiting requests (mean)", "waiting_max": "waiting requests (most)",
        "kv_usage_mean": "KV cache in use (mean)", "kv_usage_max": "KV cache in use (most)",
        "preemptions": "preemptions", "ttft_mean_s": "mean TTFT", "e2e_mean_s": "mean E2E",
    }  # fmt: skip
    told = summary["server"]
    rows = [
        [label, *(_told(name, run.get(name)) for run in told)]
        for name, label in words.items()
        if any(name in run for run in told)
    ]
    if not rows:
        return None
    head = ["metric", *(f"run {number}" for number in range(1, len(told) + 1))]
    note = "As its metrics page says: gauges every 2 seconds, means of its own histograms."
    return Table("What the server says of itself", head, rows, note)


def _told(name: str, value: float | None) -> str:
    if value is not None and name.startswith("kv_usage"):
        return f"{value:.1%}"
    return show_value(name, value)


def _provenance(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    profile = summary["profile"]
    fitted = "fitted to this server over the API, before the runs" if profile["fitted"] else profile["status"]
    kv = summary["kv"]
    return [
        ("Server", summary["engine"]),
        ("Traffic", f"{summary['requests']:,} requests, open loop, streamed, {summary['repeat']} times; before each "
                    "run every adapter was asked for once"),
        ("Profile", f"{profile['name']}, {fitted}, sha256 {profile['sha256'][:12]}"),
        *([("Outside", f"{human_seconds(profile['front_end_s'])} a request between client and engine")]
          if profile["front_end_s"] else []),
        ("KV cache", f"{kv['kv_tokens']:,} tokens, as the server says" if kv else "as the profile's memory gives it"),
        ("Loads", _loads_from(summary)),
    ]  # fmt: skip
