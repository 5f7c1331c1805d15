"""Errors of predictions: by metric and regime, of the choice of slots, and compared with another simulator's."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.errors import InputError
from sim.reading import open_text
from sim.studies.fidelity.fidelity_study import RunPrediction
from sim.studies.fidelity.measured_runs import MODELS, MeasuredRun

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class MetricErrors:
    """Errors of one metric over some runs.

    :ivar ape_p50, ape_p90: quantiles of the absolute relative error.
    :ivar log10_abs_p50, log10_abs_p90: quantiles of the absolute logarithm of predicted over measured.
    """

    runs: int
    ape_p50: float
    ape_p90: float
    log10_abs_p50: float
    log10_abs_p90: float


@dataclass(frozen=True, slots=True)
class SlotChoice:
    """Whether predictions choose the slot count with the lowest p99 TTFT.

    :ivar groups: workloads that were measured with two slot counts or more; ``right``: of these, share in which the
        best measured one was chosen; ``within_10pct``: in which the chosen one's measured p99 is within 10 % of the
        best.
    :ivar most_slots_within_10pct: the same for always choosing the most slots.
    """

    groups: int
    right: float
    within_10pct: float
    most_slots_within_10pct: float


def usable(prediction: RunPrediction, metric: str) -> bool:
    """Return whether a metric was measured well enough to be compared."""
    return prediction.run.usable(metric) and prediction.predicted[metric] > 0


def errors_of(predictions: Sequence[RunPrediction], metric: str) -> MetricErrors | None:
    """Return the errors of one metric; None where no run can be compared."""
    compared = [p for p in predictions if usable(p, metric)]
    if not compared:
        return None
    ratio = np.array([p.predicted[metric] / p.run.measured[metric] for p in compared])
    relative, logs = np.abs(ratio - 1), np.abs(np.log10(ratio))
    values = (*np.quantile(relative, (0.5, 0.9)), *np.quantile(logs, (0.5, 0.9)))
    return MetricErrors(len(compared), *(float(value) for value in values))


def by_regime(predictions: Sequence[RunPrediction]) -> dict[str, dict[str, MetricErrors | None]]:
    """Return errors by regime and metric."""
    kind = predictions[0].run if predictions else MeasuredRun
    return {
        regime: {name: errors_of([p for p in predictions if p.run.regime == regime], name) for name in kind.compared}
        for regime in kind.regimes
    }


def slot_choice(predictions: Sequence[RunPrediction]) -> SlotChoice | None:
    """Return how well slots are chosen; None where no workload was measured with two slot counts."""
    groups: dict[tuple[object, ...], list[RunPrediction]] = defaultdict(list)
    for p in predictions:
        groups[p.run.model, p.run.workload_group, p.run.rates, p.run.ranks, p.run.max_lora_rank].append(p)
    several = [group for group in groups.values() if len({p.run.gpu_slots for p in group}) > 1]
    if not several:
        return None

    def p99(p: RunPrediction) -> float:
        return p.run.measured["ttft_p99_ms"]

    best = np.array([min(map(p99, group)) for group in several])
    chosen = np.array([p99(min(group, key=lambda p: p.predicted["ttft_p99_ms"])) for group in several])
    most = np.array([p99(max(group, key=lambda p: p.run.gpu_slots)) for group in several])
    return SlotChoice(
        len(several),
        float(np.mean(chosen == best)),
        float(np.mean(chosen <= 1.1 * best)),
        float(np.mean(most <= 1.1 * best)),
    )


_PEER_COLUMNS = (
    ("requests/s", "finished_requests", "req_per_s"),
    ("tokens/s", "output_throughput", "output_tok_per_s"),
    ("mean ITL", "itl", "itl_mean_ms"),
    ("mean TTFT", "ttft", "ttft_mean_ms"),
)


def compare_peer(predictions: Sequence[RunPrediction], file: Path) -> list[tuple[str, int, float, float]]:
    """Return (metric, runs, its error, our error) for a peer's predictions of the same runs.

    The errors are medians of the absolute relative error.

    :param file: columns model, workload_group, case, output_throughput, itl, ttft, finished_requests.
    :raises InputError: where the file can't be read or lacks a column.
    """
    try:
        with open_text(file) as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError("the peer's predictions can't be read", file=str(file), got=str(error)) from None
    needed = ("model", "workload_group", "case", *(column for _, column, _ in _PEER_COLUMNS))
    missing = [name for name in needed if rows and name not in rows[0]]
    if not rows or missing:
        raise InputError("columns are missing", file=str(file), line=1, got=", ".join(missing) or "no rows")
    theirs = {f"{MODELS.get(row['model'], row['model'])}/{row['workload_group']}/{row['case']}": row for row in rows}
    shared = [p for p in predictions if p.run.name in theirs]
    result = []
    for words, column, name in _PEER_COLUMNS:
        pairs = []
        for p in shared:
            truth = p.run.measured.get(name)
            if not truth:
                continue
            scale = p.run.duration_s if column == "finished_requests" else 1.0
            pairs.append((_number(theirs[p.run.name][column], file) / scale / truth - 1, p.predicted[name] / truth - 1))
        if pairs:
            peer, ours = np.median(np.abs(np.array(pairs)), axis=0)
            result.append((words, len(pairs), float(peer), float(ours)))
    return result


def _number(text: str, file: Path) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        raise InputError("not a number", file=str(file), got=text) from None


def as_json(predictions: Sequence[RunPrediction]) -> dict[str, Any]:
    """Return the error tables as plain data; runs that calibrated the profile are left out."""
    compared = [p for p in predictions if not p.calibrated]
    choice = slot_choice(compared)
    metrics = predictions[0].run.compared if predictions else MeasuredRun.compared
    return {
        "runs": len(compared),
        "calibration_runs": len(predictions) - len(compared),
        "metrics": {name: _plain(errors_of(compared, name)) for name in metrics},
        "by_regime": {
            regime: {name: _plain(errors) for name, errors in rows.items()}
            for regime, rows in by_regime(compared).items()
        },
        "slot_choice": None if choice is None else asdict(choice),
    }


def _plain(errors: MetricErrors | None) -> dict[str, float] | None:
    return None if errors is None else asdict(errors)
