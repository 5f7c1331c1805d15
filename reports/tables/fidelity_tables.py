"""Tables of a fidelity study: errors of predictions, and the runs that are farthest off."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from reports.answers.fidelity_findings import METRICS, Compared
from reports.table import Table
from sim.spec.units import human_seconds

_IN_LOGS = ("ttft_p50_ms", "ttft_p99_ms")

_WORST = 25


def error_table(errors: Mapping[str, Any]) -> Table:
    """Return median and 90 % errors by metric, over all runs and by regime."""
    regimes = list(errors["by_regime"])
    head = ["metric", "all: median", "all: 90 %", *(f"{regime}: median" for regime in regimes)]
    rows = []
    for name, words in METRICS.items():
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


def _off(run: Compared, name: str) -> float:
    measured, predicted = run.measured[name], run.predicted[name]
    return abs(math.log10(predicted / measured)) if measured > 0 and predicted > 0 else 0.0


def worst_of_metric_table(name: str, runs: Sequence[Compared]) -> Table:
    """Return the runs with the largest error of one metric."""
    usable = [run for run in runs if run.measured[name] > 0]
    order = sorted(usable, key=lambda run: -_off(run, name))[:_WORST]
    rows = [
        [
            run.label,
            str(run.slots),
            run.regime,
            show_value(name, run.measured[name]),
            show_value(name, run.predicted[name]),
            f"{run.predicted[name] / run.measured[name]:.2f}",
        ]
        for run in order
    ]
    head = ["workload", "slots", "regime", "measured", "predicted", "ratio"]
    return Table(f"{METRICS[name]}: the {len(rows)} largest errors", head, rows, words=(2,))


def worst_table(runs: Sequence[Compared]) -> Table:
    """Return the runs with the largest error of p99 TTFT, with their other metrics."""
    order = sorted(runs, key=lambda run: -_off(run, "ttft_p99_ms"))[:_WORST]
    names = ("ttft_p99_ms", "ttft_p50_ms", "tpot_mean_ms", "req_per_s")
    head = ["workload", "slots", "regime", *(METRICS[name] for name in names)]
    rows = [
        [
            run.label,
            str(run.slots),
            run.regime,
            *(f"{show_value(n, run.predicted[n])} (measured {show_value(n, run.measured[n])})" for n in names),
        ]
        for run in order
    ]
    note = "Predicted, and measured in brackets. The largest errors lie at the edge of saturation, where a little more "
    note += "or less capacity decides whether a queue builds up."
    return Table("Worst cases: largest errors of p99 TTFT first", head, rows, note, words=(2,))
