"""The report on a live comparison: what a real server did with a scenario's traffic, and what was predicted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from calibrate.serve.paired_table import METRICS
from reports.charts.axis_ticks import scale_log, seconds_tick, x_title, y_title
from reports.charts.fidelity_charts import BAND, draw_agreement, is_within
from reports.charts.svg import SERIES, Chart, drawing, place, row_tips, spot_tips, to_svg
from reports.document import File, Provenance, Report, Section, method
from reports.table import Table
from sim.spec.units import human_seconds

# Charts of a live server's requests: each against its prediction, and both distributions.

_SIDE, _LEFT, _TOP, _RIGHT, _BOTTOM = 430, 66, 30, 16, 52
_MOST_MARKS = 3000
_MARGIN = 1.2
_WORST = 20
_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)


def request_scatter(ident: str, title: str, what: str, points: Sequence[tuple[int, float, float]]) -> Chart:
    """Draw every request's predicted against its measured time, both on logarithmic axes.

    :param points: request number, measured and predicted seconds, all above 0.
    """
    within = sum(is_within(measured, predicted) for _, measured, predicted in points)
    caption = (
        f"One mark a request. On the line prediction and measurement agree; the band is a factor of {BAND} either way "
        f"and holds {within / len(points):.0%} of {len(points):,} requests."
    )
    desc = f"{what}: {within:,} of {len(points):,} requests lie within a factor of {BAND} of their prediction."
    step = math.ceil(len(points) / _MOST_MARKS)
    shown = points[::step]
    times = [value for _, *pair in points for value in pair]
    low, high = min(times) / _MARGIN, max(times) * _MARGIN
    with drawing(_SIDE, _SIDE + 60) as figure:
        ax = place(figure, _LEFT, _TOP, _RIGHT, _BOTTOM)
        draw_agreement(ax, low, high, seconds_tick)
        _, xs, ys = zip(*shown, strict=True)
        ax.plot(xs, ys, "o", color=SERIES[0], markersize=3.6, alpha=0.5, markeredgewidth=0)
        y_title(ax, f"predicted {what}", _LEFT - 8)
        x_title(ax, f"measured {what}")
        said = [(f"request {n}", f"measured {human_seconds(m)}", f"predicted {human_seconds(p)}") for n, m, p in shown]
        svg = to_svg(figure, ident, title, desc, spot_tips(ax, list(zip(xs, ys, strict=True)), said))
    return Chart(ident, title, caption, desc, svg, _worst(what, points))


def distributions(
    ident: str, title: str, what: str, measured: Sequence[Sequence[float]], predicted: Sequence[float]
) -> Chart:
    """Draw the share of requests that took at most a given time, for each measured run and the prediction.

    :param measured: seconds, one sequence a run.
    """
    values = [value for run in (*measured, predicted) for value in run]
    rows = [
        [f"{q:.0%}", *(human_seconds(float(np.quantile(run, q))) for run in (*measured, predicted))] for q in _QUANTILES
    ]
    names = ["measured", "measured again"][: len(measured)]
    desc = f"{title} " + " ".join(f"{row[0]} of requests: measured {row[1]}, predicted {row[-1]}." for row in rows)
    table = Table(title, ["requests", *names, "predicted"], rows)
    caption = "The share of requests that took at most this long."
    if len(measured) > 1:
        caption += " No prediction can be closer than two measured runs of the same requests are to each other."
    lines = [(run, SERIES[1], 1.8 if number == 0 else 1.0, "-") for number, run in enumerate(measured)]
    with drawing(330) as figure:
        ax = place(figure, 58, _TOP, 24, _BOTTOM)
        for run, colour, width, style in (*lines, (predicted, SERIES[0], 1.8, "--")):
            ordered = sorted(run)
            shares = [(i + 1) / len(ordered) for i in range(len(ordered))]
            ax.plot(ordered, shares, style, color=colour, linewidth=width, drawstyle="steps-post")
        scale_log(ax, "x", min(values) / _MARGIN, max(values) * _MARGIN, seconds_tick)
        ax.set_ylim(0, 1.01)
        ax.set_ticks("y", [0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
        ax.grid(True)
        y_title(ax, "requests")
        x_title(ax, what)
        svg = to_svg(figure, ident, title, desc, row_tips(ax, _QUANTILES, table))
    legend = [(" and ".join(names), "var(--s2)"), ("predicted (dashed)", "var(--s1)")]
    return Chart(ident, title, caption, desc, svg, table, legend, ["line", "dashed"])


def _worst(what: str, points: Sequence[tuple[int, float, float]]) -> Table:
    order = sorted(points, key=lambda point: -abs(math.log(point[2] / point[1])))[:_WORST]
    rows = [[str(n), human_seconds(m), human_seconds(p), f"{p / m:.2f}"] for n, m, p in order]
    return Table(
        f"{what}: the {len(rows)} requests that are furthest off",
        ["request", "measured", "predicted", "ratio"],
        rows,
        "requests.parquet has all of them.",
    )


_UNITS = {"throughput_rps": " requests/s", "output_tokens_per_s": " tokens/s"}
_HEADLINE = ("throughput_rps", "ttft_p50_s", "e2e_p50_s", "loads_per_request")

Times = Mapping[str, Sequence[tuple[int, float, float]]]
"""Of each request of a run: its number, measured and predicted seconds, by ``ttft_s`` and ``e2e_s``; NaN where there is
no such value."""


def serve_report(
    summary: Mapping[str, Any],
    description: str,
    times: Times,
    again: Mapping[str, Sequence[Sequence[float]]],
    command: str,
) -> Report:
    """Return how close the prediction comes.

    :param summary: as ``loraplan calibrate serve --json`` prints it.
    :param again: seconds of further identical runs, by the same names.
    """
    name, table, server = summary["scenario"], metrics_table(summary), server_table(summary)
    cautions = _cautions(summary)
    return Report(
        kind="calibrate serve",
        name=f"{name}: served and predicted",
        title=f"{name}, served and predicted",
        lead=f"{description} Every request was sent to {summary['engine']} at its time, and simulated from the same "
        "time, adapter and lengths.",
        headline=headline(summary),
        statements=[*_findings(summary), *cautions],
        data=summary,
        terminal=[table],
        sections=lambda: [
            Section("metrics", "Measured and predicted", table),
            Section("charts", "Request by request", *_charts(times, again), listed="Charts"),
            Section("server", "What the server reports", server, listed="Server"),
            method(Provenance(_provenance(summary)), command=command),
        ],
        files=[
            File("requests.parquet", None, "requests"),
            *([File("profile.json", None, "profile")] if summary["profile"]["fitted"] else []),
        ],
        notes=cautions,
        margin=10,
    )


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
    return found


def _cautions(summary: Mapping[str, Any]) -> list[str]:
    cautions = []
    if any(summary["failed"]):
        words = "; ".join(summary["problems"])
        cautions.append(f"{sum(summary['failed'])} requests were not served and are in no metric: {words}")
    if summary["late_p99_s"] > 0.01:
        cautions.append(
            f"1 % of the requests were sent more than {human_seconds(summary['late_p99_s'])} late: the client's "
            "machine was busy. Predictions take the times at which they were sent."
        )
    return [*cautions, *summary["notes"]]


def _charts(times: Times, again: Mapping[str, Sequence[Sequence[float]]]) -> list[Chart]:
    charts = []
    for name, what, title in (
        ("ttft", "TTFT", "How close is the first token?"),
        ("e2e", "E2E", "How close is the whole answer?"),
    ):
        points = [point for point in times[f"{name}_s"] if point[1] > 0 and point[2] > 0]
        if not points:
            continue
        others = [[value for value in run if value > 0] for run in again[f"{name}_s"]]
        measured = [[point[1] for point in points], *filter(None, others)]
        charts.append(request_scatter(f"scatter-{name}", title, what, points))
        charts.append(
            distributions(f"cdf-{name}", f"Is {what} spread as predicted?", what, measured, [p[2] for p in points])
        )
    return charts


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
    if name == "miss_ratio" or name.startswith("kv_usage"):
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
        [label, *(show_value(name, run.get(name)) for run in runs)]
        for name, label in words.items()
        if any(name in run for run in runs)
    ]
    if not rows:
        return None
    head = ["metric", *(f"run {number}" for number in range(1, len(runs) + 1))]
    note = "From its metrics page: gauges read every 2 seconds, means of its histograms."
    return Table("Counters of the server", head, rows, note)


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
