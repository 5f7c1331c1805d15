"""Prometheus rules and a Grafana dashboard that compare servers with a finished run, to see reality leave the plan."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reports.formatting import interval, metric_words, read_terms, show
from reports.text.setup_text import setup_line
from sim.errors import InputError
from sim.results.point import Metric, Point
from sim.results.run_directory.store import RunData, blamed_on, read_run
from sim.results.slo_terms import is_tail, quantile_of
from sim.results.verdict import is_overloaded
from sim.studies.deploy.deployment import yaml_documents
from sim.studies.observe.engine_metrics import Role, counter_name, gauge_name, histogram_name
from sim.studies.observe.readings import Readings
from sim.studies.observe.study import ObservedService

RULES, DASHBOARD = "loraplan-rules.yaml", "loraplan-dashboard.json"
AFTER = "15m"
"""How long a condition must hold before Prometheus alerts."""

_LATENCIES: tuple[Role, ...] = ("ttft", "itl", "e2e")
_ENOUGH = 1_000
"""Requests behind a measured p99, if an hour has so many."""
_SHORTEST_MIN, _LONGEST_MIN = 5, 60
_COLUMNS, _SIDE = 3, 8
"""Panels in a row, and their width and height on Grafana's grid."""


@dataclass(frozen=True, slots=True)
class Watched:
    """A quantity: what rules record of it, and what a panel shows.

    :ivar series: PromQL by what it gives: ``measured``, ``predicted``, ``limit`` and the like.
    :ivar unit: Grafana's name of it.
    :ivar alerts: name, condition and sentence of each; a condition names a series as ``{measured}``.
    """

    name: str
    title: str
    about: str
    series: dict[str, str]
    unit: str = "short"
    alerts: tuple[tuple[str, str, str], ...] = ()


def dashboard_files(run: Path, readings: Readings, service: ObservedService) -> dict[str, str]:
    """Return the texts of both files by name.

    :param run: the directory of a finished run of one design.
    :raises InputError: if it predicts nothing that these metrics can be compared with.
    """
    data = read_run(run)
    with blamed_on(run):
        point, name = _point(data, service), re.sub(r"[^A-Za-z0-9._-]+", "-", str(data.manifest["name"]))[:64]
        watched = list(_watched(data, point, readings, service))
        head = [
            f"Written by loraplan observe from the run in {run}. Predictions are of the traffic and the design of",
            f"{name}; write new files when either changes. {setup_line([point])}",
        ]
        rules = yaml_documents(head, [{"groups": [{"name": f"loraplan-{name}", "rules": [*_rules(watched, name)]}]}])
        return {RULES: rules, DASHBOARD: json.dumps(_dashboard(watched, name, " ".join(head)), indent=2) + "\n"}


def _point(data: RunData, service: ObservedService) -> Point:
    """Return the point of a run, if it can be compared with these servers."""
    status, points = data.manifest.get("status"), data.points
    setup = points[0].setup if points else None
    engine = "none" if setup is None else setup.engine
    for wrong, problem, got, allowed in (
        (status != "finished", "this run is not finished", status, "finished"),
        (
            len(points) != 1,
            "this run has several designs, or none",
            len(points),
            "one, such as a run of a plan's recommended.yaml",
        ),
        (engine.partition("-")[0] != service.engine, "the run simulated another engine", engine, service.engine),
    ):
        if wrong:
            raise InputError(problem, key="--dashboard", file=str(data.path), got=got, allowed=allowed)
    ttft = points[0].metrics["ttft_p99_s"]
    if is_overloaded(points[0]) or ttft.lo is None or "ttft" not in service.histograms:
        hint = "it needs a run without overload that is long enough for an interval, and metrics with a TTFT histogram"
        raise InputError("p99 TTFT can't be compared", key="--dashboard", file=str(data.path), hint=hint)
    return points[0]


def _watched(data: RunData, point: Point, readings: Readings, service: ObservedService) -> Iterator[Watched]:
    names, metrics, targets = readings.names, point.metrics, read_terms(data.slo)
    finished = counter_name("finished", names)
    assert finished is not None, "there is no service without"
    models = {dict(labels).get("model_name") for labels in readings.labels_of(finished)}
    model = models.pop() if len(models) == 1 else None
    where = "" if model is None else f"{{model_name={json.dumps(model, ensure_ascii=False)}}}"
    rate = metrics["throughput_rps"].value or 0.0
    minutes = min(max(math.ceil(_ENOUGH / max(rate, 1e-9) / 60), _SHORTEST_MIN), _LONGEST_MIN)
    for role in _LATENCIES:
        histogram = service.histograms.get(role)
        if histogram is None:
            continue
        buckets = f"{histogram_name(role, names)}_bucket{where}[{minutes}m]"
        asked = [name for name in targets if name.startswith(f"{role}_") and is_tail(name)]
        for name in dict.fromkeys([f"{role}_p99_s", *asked]):
            metric = metrics.get(name)
            if metric is not None and metric.lo is not None:
                measured = f"histogram_quantile({quantile_of(name):g}, sum by (le) (rate({buckets})))"
                yield _latency(name, metric, histogram.bounds, measured, targets.get(name))
    load = {"measured": f"sum(rate({finished}{where}[{minutes}m]))", "predicted": _vector(rate)}
    gone = ("LoraplanNoMetrics", "absent({measured})", f"Prometheus has no {finished} of these servers")
    multiple = None if data.headroom is None else data.headroom.multiple
    if multiple is None:
        yield Watched("requests_per_second", "Requests/s", "Predicted: of the run.", load, "reqps", (gone,))
    else:
        about = f"Limit: {multiple:.3g} times the run's traffic, where its SLO fails."
        load["limit"] = _vector(rate * multiple)
        beyond = ("LoraplanNoHeadroom", "{measured} > {limit}", "more traffic than the SLO allows")
        yield Watched("requests_per_second", "Requests/s", about, load, "reqps", (gone, beyond))
        share = {"measured": f"{load['measured']} / {rate * multiple:.6g}", "predicted": _vector(1 / multiple)}
        yield Watched("headroom_used", "Headroom: share of the limit in use", about, share, "percentunit")
    running, waiting = gauge_name("running", names), gauge_name("waiting", names)
    if (stay_s := metrics["e2e_mean_s"].value) is not None and running and waiting:
        queue = f"sum({waiting}{where})"
        series = {"measured": f"sum({running}{where}) + {queue}", "waiting": queue, "predicted": _vector(rate * stay_s)}
        yield Watched("requests_in_flight", "Requests in flight", "Predicted: requests/s times mean E2E.", series)
    if (misses := metrics["miss_ratio"]).value is not None:
        about = "Engines don't export misses; slow loads show in p99 TTFT and in the requests that wait."
        yield Watched("miss_ratio", "Adapter misses", about, {"predicted": _vector(misses.value)}, "percentunit")


def _vector(value: float) -> str:
    return f"vector({value:.6g})"


def _latency(name: str, metric: Metric, bounds: tuple[float, ...], measured: str, target: float | None) -> Watched:
    """Return a percentile with its interval, widened to bounds of buckets: what lies between is a guess."""
    short, ends = name.removesuffix("_s"), (metric.lo, metric.hi, metric.calibration_lo, metric.calibration_hi)
    low, high = min(end for end in ends if end is not None), max(end for end in ends if end is not None)
    series = {"measured": measured, "predicted": _vector(metric.value or 0.0)}
    series["low"] = _vector(max((bound for bound in bounds if bound <= low), default=0.0))
    condition, outer = "{measured} <= {low}", min(bound for bound in bounds if bound >= high)
    if math.isfinite(outer):  # above the last bound, no measured value is too slow
        series["high"], condition = _vector(outer), f"{{measured}} >= {{high}} or {condition}"
    if target is not None:
        series["SLO"] = _vector(target)
    known = f"{show(name, metric.value, metric.unit)} ({interval(name, replace(metric, lo=low, hi=high))})"
    said = f"{metric_words(name)} is {{{{ $value | humanizeDuration }}}}, and the run predicts {known}"
    about = f"Predicted: {known}. An alert fires beyond low and high, the next bounds of the engine's histogram."
    word = short.removesuffix("_p99").replace("_", "").upper()
    alert = (f"Loraplan{word}OutsidePrediction", condition, said)
    return Watched(f"{short}_seconds", metric_words(name), about, series, "s", (alert,))


def _recorded(each: Watched, scenario: str) -> dict[str, str]:
    return {kind: f'loraplan:{each.name}:{kind}{{scenario="{scenario}"}}' for kind in each.series}


def _rules(watched: list[Watched], scenario: str) -> Iterator[dict[str, Any]]:
    labels = {"scenario": scenario}
    for each in watched:
        for kind, expr in each.series.items():
            yield {"record": f"loraplan:{each.name}:{kind}", "expr": expr, "labels": labels}
    for each in watched:
        for alert, condition, said in each.alerts:
            expr = condition.format(**_recorded(each, scenario))
            more = {"labels": {"severity": "warning"} | labels, "annotations": {"summary": f"{scenario}: {said}"}}
            yield {"alert": alert, "expr": expr, "for": AFTER, **more}


def _dashboard(watched: list[Watched], scenario: str, about: str) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    dashes = {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [6, 6]}}
    band = [dashes, {"id": "custom.fillBelowTo", "value": "low"}, {"id": "custom.fillOpacity", "value": 10}]
    styles = {"predicted": [dashes], "low": [dashes], "high": band, "limit": [dashes], "SLO": [dashes]}
    overrides = [{"matcher": {"id": "byName", "options": kind}, "properties": style} for kind, style in styles.items()]
    return {
        "uid": f"loraplan-{scenario}"[:40],
        "title": f"loraplan: {scenario}, predicted and measured",
        "description": about,
        "tags": ["loraplan"],
        "schemaVersion": 39,
        "refresh": "1m",
        "time": {"from": "now-6h", "to": "now"},
        "annotations": {"list": []},
        "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}]},
        "panels": [
            {
                "id": number + 1,
                "type": "timeseries",
                "title": each.title,
                "description": each.about,
                "datasource": source,
                "gridPos": {"x": number % _COLUMNS * _SIDE, "y": number // _COLUMNS * _SIDE, "w": _SIDE, "h": _SIDE},
                "fieldConfig": {"defaults": {"unit": each.unit, "min": 0}, "overrides": overrides},
                "targets": [
                    {"refId": kind, "datasource": source, "legendFormat": kind, "expr": expr}
                    for kind, expr in _recorded(each, scenario).items()
                ],
            }
            for number, each in enumerate(watched)
        ],
    }
