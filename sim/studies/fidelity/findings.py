"""How far off predictions of measured runs are: by metric and regime, in the choice of slots, and beside a peer's."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sim.errors import InputError
from sim.reading import open_text
from sim.studies.fidelity.fidelity_study import RunPrediction
from sim.studies.fidelity.measured_runs import MODELS, MeasuredRun


def as_json(predictions: Sequence[RunPrediction]) -> dict[str, Any]:
    """Return the errors as plain data; runs that calibrated the profile are left out."""
    compared = [p for p in predictions if not p.calibrated]
    kind = predictions[0].run if predictions else MeasuredRun
    return {
        "runs": len(compared),
        "calibration_runs": len(predictions) - len(compared),
        "metrics": {name: errors_of(compared, name) for name in kind.compared},
        "by_regime": {
            regime: {name: errors_of([p for p in compared if p.run.regime == regime], name) for name in kind.compared}
            for regime in kind.regimes
        },
        "slot_choice": slot_choice(compared),
    }


def errors_of(predictions: Sequence[RunPrediction], metric: str) -> dict[str, float] | None:
    """Return the errors of one metric; None where no run was measured well enough to be compared.

    ``ape`` is the absolute relative error, ``log10_abs`` the absolute logarithm of predicted over measured.
    """
    compared = [p for p in predictions if p.run.usable(metric) and p.predicted[metric] > 0]
    if not compared:
        return None
    ratio = np.array([p.predicted[metric] / p.run.measured[metric] for p in compared])
    found: dict[str, float] = {"runs": len(compared)}
    for name, errors in (("ape", np.abs(ratio - 1)), ("log10_abs", np.abs(np.log10(ratio)))):
        found |= {f"{name}_p50": float(np.quantile(errors, 0.5)), f"{name}_p90": float(np.quantile(errors, 0.9))}
    return found


def slot_choice(predictions: Sequence[RunPrediction]) -> dict[str, float] | None:
    """Return how often the slot count with the lowest p99 TTFT is chosen; None where none has two slot counts.

    ``groups``: workloads that were measured with two slot counts or more; ``right``: of these, the share in which the
    best measured one was chosen; ``within_10pct``: in which the chosen one's measured p99 is within 10 % of the best;
    ``most_slots_within_10pct``: the same for always choosing the most slots.
    """
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
    return {
        "groups": len(several),
        "right": float(np.mean(chosen == best)),
        "within_10pct": float(np.mean(chosen <= 1.1 * best)),
        "most_slots_within_10pct": float(np.mean(most <= 1.1 * best)),
    }


def headline(errors: Mapping[str, Any]) -> str:
    """Return the answer in a sentence: the median errors of the metrics that matter most."""
    found = errors["metrics"]
    parts = []
    if found.get("req_per_s"):
        parts.append(f"{found['req_per_s']['ape_p50']:.1%} in throughput")
    if found.get("tpot_mean_ms"):
        parts.append(f"{found['tpot_mean_ms']['ape_p50']:.1%} in TPOT")
    if found.get("ttft_p99_ms"):
        parts.append(f"a factor of {10 ** found['ttft_p99_ms']['log10_abs_p50']:.2f} in p99 TTFT")
    if not parts:
        return "No run is left to compare: all of them calibrated the profiles, or measured nothing."
    return f"Half of {errors['runs']} measured runs are predicted within {', '.join(parts)}."


def choice_sentence(errors: Mapping[str, Any]) -> str:
    """Return how well the best slot count is found, in words."""
    choice = errors["slot_choice"]
    if choice is None:
        return "No workload was measured with two slot counts."
    return (
        f"Of {choice['groups']} workloads measured with several slot counts, the one predicted best is within 10 % of "
        f"the best measured p99 TTFT in {choice['within_10pct']:.0%}, and is the best itself in {choice['right']:.0%}."
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
