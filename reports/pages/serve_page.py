"""The page of a live comparison: what a real server did with a scenario's traffic, and what was predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reports.charts.serve_charts import distributions, request_scatter
from reports.charts.svg import Chart
from reports.pages.page import Page
from reports.tables.serve_tables import METRICS, error_percent, loads_from, metrics_table, server_table
from sim.spec.units import human_seconds

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
    """Write the page and return its path."""
    summary = page.summary
    content = {
        "engine": summary["engine"],
        "description": page.description,
        "headline": headline(summary),
        "findings": _findings(summary),
        "metrics": metrics_table(summary),
        "charts": _charts(page),
        "server": server_table(summary),
    }
    return Page("serve.html.j2", summary["scenario"], page.command, content, _provenance(summary)).write(path)


def headline(summary: Mapping[str, Any]) -> str:
    """Return the answer in a sentence."""
    metrics = summary["metrics"]
    known = [name for name in _HEADLINE if metrics.get(name, {}).get("error") is not None]
    if not known:
        return "Nothing was served that could be compared."
    parts = [f"{METRICS[name]} {error_percent(metrics[name]['error'])}" for name in known]
    return f"Predicted against measured: {', '.join(parts)}."


def _findings(summary: Mapping[str, Any]) -> list[str]:
    metrics = summary["metrics"]
    aimed = [name for name, row in metrics.items() if row["wanted"] is not None and row["error"] is not None]
    missed = [name for name in aimed if abs(metrics[name]["error"]) > metrics[name]["wanted"]]
    found = []
    if aimed:
        within = f"{len(aimed) - len(missed)} of {len(aimed)} errors are within the aim for a quiet machine"
        found.append(f"{within}; not so: {', '.join(METRICS[name] for name in missed)}." if missed else f"{within}.")
    noisy = [
        METRICS[name] for name in missed if metrics[name]["noise"] and metrics[name]["noise"] >= metrics[name]["wanted"]
    ]
    if noisy:
        found.append(f"Identical runs differed as much in: {', '.join(noisy)}.")
    if any(summary["failed"]):
        total = summary["requests"] * summary["repeat"]
        words = "; ".join(summary["problems"])
        found.append(f"{sum(summary['failed'])} of {total:,} requests were not served and are left out: {words}")
    if summary["late_p99_s"] > 0.01:
        found.append(
            f"1 % of the requests were sent more than {human_seconds(summary['late_p99_s'])} late: the client's "
            "machine was busy. Predictions take the times at which they were sent."
        )
    return [*found, *summary["notes"]]


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


def _provenance(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    profile = summary["profile"]
    fitted = "fitted to this server over the API, before the runs" if profile["fitted"] else profile["status"]
    kv = summary["kv"]
    sent = f"{summary['requests']:,} requests, open loop, streamed, {summary['repeat']} times"
    rows = [
        ("Server", summary["engine"]),
        ("Traffic", f"{sent}; every adapter was requested once before each run"),
        ("Profile", f"{profile['name']}, {fitted}, sha256 {profile['sha256'][:12]}"),
        ("KV cache", f"{kv['kv_tokens']:,} tokens, as the server reports" if kv else "from the profile's memory"),
        ("Loads", loads_from(summary)),
    ]
    if profile["front_end_s"]:
        rows.insert(3, ("Outside", f"{human_seconds(profile['front_end_s'])} a request between client and engine"))
    return rows
