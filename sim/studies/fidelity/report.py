"""The reports of ``fidelity``: on records of steps, stages of serving benchmarks, results of clients, measured runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from reports.charts.fidelity_charts import scatter_chart, slots_chart
from reports.charts.svg import Chart
from reports.document import File, Heading, Provenance, Report, Section, method
from reports.formatting import measured_value, measured_words
from reports.table import Table
from sim.spec.units import human_seconds
from sim.studies.fidelity.bench_prediction import BenchPrediction
from sim.studies.fidelity.fidelity_study import ModelProfile, RunPrediction
from sim.studies.fidelity.findings import as_json, choice_sentence, compare_peer, headline
from sim.studies.fidelity.record_prediction import ORDERS, RecordCosts
from sim.studies.fidelity.serving_stages import METRICS, Server, ServerErrors, StagePrediction, errors_by_server
from sim.studies.fidelity.sglang_record import SglangRecord
from sim.studies.fidelity.step_record import PairRecord, StepRecord
from sim.studies.fidelity.step_replay import Replay

# On a record of an engine's steps: replayed step by step, and predicted from the costs of another one.

_COST_WORDS = {
    "step": "ms a step",
    "sequence": "a sequence",
    "token": "a token",
    "adapter": "a distinct adapter",
    "storage_load": "a load from storage",
    "kv_token": "a KV token",
}


def replay_report(file: Path, record: StepRecord | SglangRecord | PairRecord, result: Replay) -> Report:
    """Return how many of a record's steps the simulator meets."""
    engine = record.side("d") if isinstance(record, PairRecord) else record
    preempted = sum(len(step.preempted) for step in engine.steps)
    rows = [
        ["engine", record.engine],
        ["preset", engine.preset],
        ["requests", f"{len(record.requests):,}"],
        ["steps", f"{result.steps:,}"],
        ["equal steps", f"{result.equal_steps:,}"],
        ["loads", f"{result.loads:,}"],
        ["predicted loads", f"{result.predicted_loads:,}"],
        ["equal loads", f"{result.equal_loads:,}"],
        ["preemptions", f"{preempted:,}"],
    ]
    met = "tokens, preemptions, loads and evictions"
    if engine.config.prefix_caching:
        rows.append(["cached tokens", f"{result.cached_tokens:,}"])
        rows.append(["predicted cached tokens", f"{result.predicted_cached_tokens:,}"])
        met = "tokens, cached tokens, blocks overwritten, preemptions, loads and evictions"
    if isinstance(record, PairRecord):
        met += ", and what is read, held and sent"
    elif isinstance(record, StepRecord) and record.config.offload is not None:
        met += ", and what is stored, loaded and waited for"
    late = [abs(steps) for steps in result.late_steps.values()]
    if engine.mode == "online":
        close = sum(steps <= 1 for steps in late)
        rows.append(["ends within one step", f"{close:,} of {len(record.requests):,} requests"])
    headline = f"{file}: every step is met: {met}"
    if result.first_difference is not None:
        different = result.steps - result.equal_steps
        headline = f"{file}: {different:,} of {result.steps:,} steps differ; the first: {result.first_difference}"
    data = asdict(result)
    del data["late_steps"]
    data["late_steps_max"] = max(late, default=0)
    return Report("fidelity", str(file), data, [headline, "", Table("", ["", ""], rows)])


def with_prediction(
    replayed: Report, fit_on: Path, costs: RecordCosts, metrics: Mapping[str, Mapping[str, float]], *, itself: bool
) -> Report:
    """Return the report on a replay with what the costs of another record predict.

    :param itself: whether it is the same record.
    """

    def show(name: str, value: float) -> str:
        return human_seconds(value) if name.endswith("_s") else f"{value:,.1f}"

    words = ", ".join(f"{seconds * 1e3:.3g} {_COST_WORDS[name]}" for name, seconds in costs.step_s.items())
    host = float(costs.host_s[len(costs.host_s) // 2])
    rows = [
        [measured_words(name), show(name, one["measured"]), show(name, one["predicted"]), f"{one['error']:+.1%}"]
        for name, one in metrics.items()
    ]
    own = "costs fitted to the record that they predict say little; give --fit-on another one"
    return replace(
        replayed,
        data={**replayed.data, "prediction": {"step_s": costs.step_s, "metrics": metrics}},
        terminal=[
            *replayed.terminal,
            "",
            f"Predicted with costs from {fit_on}: {words}; {host * 1e3:.3g} a load from host memory (median)",
            "",
            Table("", ["metric", "measured", "predicted", "error"], rows),
        ],
        notes=[
            *([own] if itself else []),
            f"predictions are means of {ORDERS} simulations, each with another order of adapters",
        ],
    )


# On the stages of a serving benchmark.

_SHOWN = ("tpot_mean", "tpot_p90", "ttft_mean", "ttft_p99")
"""Metrics of the table of stages, where measured."""


def stage_report(predictions: Sequence[StagePrediction], refused: Mapping[Server, Exception]) -> Report:
    """Return how close the predictions of stages are.

    :param refused: servers without a profile, and why there is none; their stages are left out.
    """
    errors = {
        metric: errors_by_server(predictions, metric)
        for metric in METRICS
        if any(metric in each.stage.measured for each in predictions)
    }
    shown = [metric for metric in _SHOWN if metric in errors] or list(errors)[: len(_SHOWN)]
    heads = [f"{metric.partition('_')[0].upper()} {metric.partition('_')[2]}" for metric in shown]
    rows = [
        [each.stage.name, each.stage.server.words, each.stage.load, *(_beside(each, metric) for metric in shown)]
        for each in predictions
    ]
    servers = Counter(each.stage.server.words for each in predictions)
    counts = [*sorted(servers.items()), *([("all", len(predictions))] if len(servers) > 1 else [])]
    by_server = [
        [words, f"{count:,}", *(_error_words(errors[metric].get(words)) for metric in shown)] for words, count in counts
    ]
    overloaded = [each.stage.name for each in predictions if each.overloaded]
    return Report(
        kind="fidelity",
        name="stages",
        data=_stages_json(predictions, errors),
        terminal=[
            Table("", ["stage", "server", "load", *(f"{head}: measured, predicted, error" for head in heads)], rows),
            "",
            "Errors: median and 90 % quantile of absolute errors, and the median signed one",
            "",
            Table("", ["server", "stages", *heads], by_server),
        ],
        notes=[
            *(f"the stages of {server.words} are left out: {error}" for server, error in refused.items()),
            *(f"stage {name}: the predicted server is overloaded" for name in overloaded),
            *(f"predicted with the profile {name}" for name in sorted({each.profile for each in predictions})),
        ],
    )


def _beside(prediction: StagePrediction, metric: str) -> str:
    if metric not in prediction.stage.measured:
        return ""
    measured, predicted = (values[metric] * 1e3 for values in (prediction.stage.measured, prediction.predicted))
    return f"{measured:,.1f} {predicted:,.1f} ms {prediction.error(metric):+.0%}"


def _error_words(found: ServerErrors | None) -> str:
    if found is None:
        return ""
    _, median, ninety, bias = found
    return f"{median:.1%} {ninety:.1%} {bias:+.1%}"


def _stages_json(
    predictions: Sequence[StagePrediction], errors: Mapping[str, Mapping[str, ServerErrors]]
) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "stages": [
            {
                "name": each.stage.name,
                "server": each.stage.server.words,
                "load": each.stage.load,
                "profile": each.profile,
                "metrics": {
                    f"{name}_s": {"measured": value, "predicted": each.predicted[name], "error": each.error(name)}
                    for name, value in each.stage.measured.items()
                },
            }
            for each in predictions
        ],
        "errors": {
            f"{metric}_s": {
                words: dict(zip(("stages", "median", "p90", "bias"), found, strict=True))
                for words, found in by_server.items()
            }
            for metric, by_server in errors.items()
        },
    }


# On results of benchmark clients.


def bench_report(predictions: Sequence[BenchPrediction]) -> Report:
    """Return what benchmarks measured beside what was predicted."""
    terminal: list[str | Table] = []
    for each in predictions:
        rows = [_bench_cells(name, **values) for name, values in each.metrics.items()]
        terminal += [
            *([""] if terminal else []),
            f"{each.run.name}: {each.run.words}",
            f"  profile {each.profile} ({each.profile_status}), rules of {each.engine}",
            "",
            Table("", ["", "measured", "± 95 %", "predicted", "error"], rows),
        ]
    runs = [
        {
            "name": each.run.name,
            "tool": each.run.tool,
            "model": each.run.model,
            "load": each.run.load.words,
            "requests": each.run.completed,
            "failed": each.run.failed,
            "profile": each.profile,
            "engine": each.engine,
            "metrics": each.metrics,
            "notes": list(each.notes),
        }
        for each in predictions
    ]
    return Report("fidelity", "benchmarks", {"schema_version": 1, "runs": runs}, terminal)


def _bench_cells(
    name: str, measured: float, half_width: float | None, predicted: float, error: float | None
) -> list[str]:
    width = "" if half_width is None or not measured else f"{half_width / measured:.1%}"
    off = "" if error is None else f"{error:+.1%}"
    return [measured_words(name), measured_value(name, measured), width, measured_value(name, predicted), off]


# On measured runs.

TABLE = "predictions.csv"
PEER = "digital_twin_predictions.csv"
METRIC_WORDS = {
    "req_per_s": "completed requests/s",
    "tpot_mean_ms": "mean TPOT",
    "itl_p50_ms": "median ITL",
    "itl_mean_ms": "mean ITL",
    "ttft_p50_ms": "p50 TTFT",
    "ttft_p99_ms": "p99 TTFT",
    "ttft_mean_ms": "mean TTFT",
    "loads_per_request": "loads per request",
    "running_mean": "mean batch size",
}
"""Names of the compared metrics, in the order of the page; a table of runs has some of them."""
_IN_LOGS = ("ttft_p50_ms", "ttft_p99_ms")
_WORST = 25
_MOST_SLOT_CHARTS = 6
_ALWAYS = ("llama-3.1-8b, 128 adapters, 7.5 requests/s", "llama-3.1-8b, 384 adapters, 22.4 requests/s")
"""Workloads that stand first in the charts over slots, where measured: the cliff, and a best slot count in the
middle (docs/validation.md)."""


def runs_report(
    predictions: Sequence[RunPrediction], file: Path, profiles: Mapping[str, ModelProfile], command: str
) -> Report:
    """Return how close the predictions of a table of runs are.

    :param file: the table; a peer's predictions may be next to it.
    :param command: the command that makes the report again.
    """
    errors, peer = as_json(predictions), file.with_name(PEER)
    seconds, first = sum(p.wall_s for p in predictions), predictions[0].run
    provenance = [
        ("Measured runs", f"{file.name}, {len(predictions)} runs"),
        *((f"Profile of {model}", f"{one.name}, sha256 {one.sha256[:12]}") for model, one in profiles.items()),
        ("Calibration", f"{errors['calibration_runs']} runs, named in the profiles, are left out of all errors"),
        ("Model", f"engine {first.engine} behind the front end {first.front_end}; {first.sampling}"),
        ("Cost", f"{seconds:,.0f} core seconds, {seconds / len(predictions):.2f} a run"),
    ]
    rows = compare_peer([p for p in predictions if not p.calibrated], peer) if peer.exists() else []
    return fidelity_report(predictions, errors, rows, provenance, command)


def fidelity_report(
    runs: Sequence[RunPrediction],
    errors: Mapping[str, Any],
    peer: Sequence[tuple[str, int, float, float]],
    provenance: Sequence[tuple[str, str]],
    command: str,
) -> Report:
    """Return the report on runs and the errors of their predictions.

    :param peer: (metric, runs, the peer's median error, ours); empty without a peer.
    """
    compared, against = [run for run in runs if not run.calibrated], peer_table(peer)
    table, choice = error_table(errors), choice_sentence(errors)
    left_out = len(runs) - len(compared)
    further = (
        f"{left_out} further runs calibrated the profiles; on this page they appear only in the charts over slots."
    )
    calibrated = errors["calibration_runs"]
    printed_peer: list[str | Table] = []
    shown_peer: list[str | Table] = []
    if against is not None:
        printed_peer = ["", f"{against.caption}:", replace(against, note="")]
        shown_peer = [Heading("Another simulator on the same runs"), against]
    return Report(
        kind="fidelity",
        name="Predicted and measured",
        lead="Every run of a real server, simulated from its workload and a profile, and compared with what was "
        "measured.",
        headline=headline(errors),
        statements=[choice, *([further] if left_out else [])],
        data=errors,
        terminal=[table, "", choice, *printed_peer],
        sections=lambda: [
            Section("errors", "How far off are predictions?", table, *shown_peer),
            Section("charts", "Predicted against measured", *_charts(compared), listed="Charts"),
            Section("slots", "How many slots? Workloads where it matters most", *_slot_charts(runs), listed="Slots"),
            Section("worst", "Worst cases", worst_table(compared), listed="Worst cases"),
            method(Provenance(provenance), command=command),
        ],
        files=[File("fidelity.json", errors), File(TABLE, None, "table")],
        notes=[f"{calibrated} runs calibrated the profiles and are left out of all errors"] if calibrated else [],
    )


def error_table(errors: Mapping[str, Any]) -> Table:
    """Return median and 90 % errors by metric, over all runs and by regime."""
    regimes = list(errors["by_regime"])
    head = ["metric", "all: median", "all: 90 %", *(f"{regime}: median" for regime in regimes)]
    rows = []
    for name, words in METRIC_WORDS.items():
        of_all = errors["metrics"].get(name)
        if of_all is None:  # not measured in these runs
            continue
        cells = [_error(name, of_all, "p50"), _error(name, of_all, "p90")]
        rows.append([words, *cells, *(_error(name, errors["by_regime"][r].get(name), "p50") for r in regimes)])
    rows.append(["runs", str(errors["runs"]), "", *(_runs(errors["by_regime"][regime]) for regime in regimes)])
    note = "Absolute errors: TTFT as |log10(predicted / measured)| (0.04 is a factor of 1.1), all others relative."
    return Table("Errors of predictions", head, rows, note)


def peer_table(peer: Sequence[tuple[str, int, float, float]]) -> Table | None:
    """Return the peer's median errors next to ours."""
    if not peer:
        return None
    rows = [[words, str(runs), f"{theirs:.1%}", f"{ours:.1%}"] for words, runs, theirs, ours in peer]
    return Table(
        "Compared with the digital twin of the same authors",
        ["metric", "shared runs", "digital twin", "loraplan"],
        rows,
        "Median absolute relative errors over the runs that both predicted and that calibrated no profile here.",
    )


def _runs(regime: Mapping[str, Any]) -> str:
    return str(max((errors["runs"] for errors in regime.values() if errors), default=0))


def _error(name: str, errors: Mapping[str, float] | None, quantile: str) -> str:
    if errors is None:
        return "–"
    if name in _IN_LOGS:
        return f"{errors[f'log10_abs_{quantile}']:.3f}"
    return f"{errors[f'ape_{quantile}']:.1%}"


def show_value(name: str, value: float) -> str:
    """Return a measured or predicted value with its unit."""
    if not math.isfinite(value):
        return "–"
    if not name.endswith("_ms"):
        return f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"
    return human_seconds(value / 1000)


def _off(p: RunPrediction, name: str) -> float:
    measured, predicted = p.run.measured[name], p.predicted[name]
    return abs(math.log10(predicted / measured)) if measured > 0 and predicted > 0 else 0.0


def worst_of_metric_table(name: str, runs: Sequence[RunPrediction]) -> Table:
    """Return the runs with the largest error of one metric."""
    usable = [p for p in runs if p.run.measured[name] > 0]
    order = sorted(usable, key=lambda p: -_off(p, name))[:_WORST]
    rows = [
        [
            p.run.label,
            str(p.run.gpu_slots),
            p.run.regime,
            show_value(name, p.run.measured[name]),
            show_value(name, p.predicted[name]),
            f"{p.predicted[name] / p.run.measured[name]:.2f}",
        ]
        for p in order
    ]
    head = ["workload", "slots", "regime", "measured", "predicted", "ratio"]
    return Table(f"{METRIC_WORDS[name]}: the {len(rows)} largest errors", head, rows, words=(2,))


def worst_table(runs: Sequence[RunPrediction]) -> Table:
    """Return the runs with the largest error of p99 TTFT, with their other metrics."""
    order = sorted(runs, key=lambda p: -_off(p, "ttft_p99_ms"))[:_WORST]
    names = ("ttft_p99_ms", "ttft_p50_ms", "tpot_mean_ms", "req_per_s")
    head = ["workload", "slots", "regime", *(METRIC_WORDS[name] for name in names)]
    rows = [
        [
            p.run.label,
            str(p.run.gpu_slots),
            p.run.regime,
            *(f"{show_value(n, p.predicted[n])} (measured {show_value(n, p.run.measured[n])})" for n in names),
        ]
        for p in order
    ]
    note = "Predicted, and measured in brackets. The largest errors lie at the edge of saturation, where a little more "
    note += "or less capacity decides whether a queue builds up."
    return Table("Worst cases: largest errors of p99 TTFT first", head, rows, note, words=(2,))


def _charts(runs: Sequence[RunPrediction]) -> list[Chart]:
    questions = {
        "ttft_p99_ms": "How close is p99 TTFT?",
        "ttft_p50_ms": "How close is p50 TTFT?",
        "tpot_mean_ms": "How close is mean TPOT?",
        "req_per_s": "How close is throughput?",
    }
    charts = []
    for name, title in questions.items():
        points = [
            (p.run.measured[name], p.predicted[name], p.run.regime, f"{p.run.label}, {p.run.gpu_slots} slots")
            for p in runs
            if p.run.measured[name] > 0 and p.predicted[name] > 0
        ]
        if points:
            charts.append(scatter_chart(name, title, METRIC_WORDS[name], points, worst_of_metric_table(name, runs)))
    return charts


def _slot_charts(runs: Sequence[RunPrediction]) -> list[Chart]:
    name = "ttft_p50_ms"
    groups: dict[str, list[RunPrediction]] = {}
    for p in runs:
        if p.run.measured[name] > 0 and p.predicted[name] > 0:  # else there is none: no request finished
            groups.setdefault(p.run.group, []).append(p)

    def span(group: list[RunPrediction]) -> float:
        values = [p.run.measured[name] for p in group]
        return len(group) * math.log10(max(values) / min(values))

    several = sorted((g for g in groups.values() if len(g) > 2), key=span, reverse=True)
    several.sort(key=lambda group: group[0].run.label not in _ALWAYS)
    several = several[:_MOST_SLOT_CHARTS]
    return [
        slots_chart(
            f"slots-{number}",
            group[0].run.label,
            sorted(((p.run.gpu_slots, p.run.measured, p.predicted) for p in group), key=lambda row: row[0]),
        )
        for number, group in enumerate(several)
    ]
