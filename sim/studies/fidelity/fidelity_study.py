"""Predict measured runs of a real server."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sim.cells import csv_text, text_cell
from sim.errors import InputError
from sim.results.recording.leaps import gap_bin_edges
from sim.results.records import COMPLETED, Recording
from sim.results.run_directory.result_files import write_text
from sim.spec.profile import bundled_profiles, load_profile
from sim.spec.scenario import Scenario
from sim.studies.backends.pool import unordered
from sim.studies.fidelity.measured_runs import LengthHistograms, MeasuredRun
from sim.studies.study_identity import code_version
from sim.world.build import build_world
from sim.world.replication import simulate

PREDICTED = (
    "req_per_s",
    "output_tok_per_s",
    "tpot_mean_ms",
    "itl_mean_ms",
    "itl_p50_ms",
    "ttft_mean_ms",
    "ttft_p50_ms",
    "ttft_p99_ms",
    "running_mean",
    "loads_per_request",
    "preemptions",
)
"""Columns of a prediction, in the units of the measured table."""

KEPT = "predicted.jsonl"


@dataclass(frozen=True, slots=True)
class RunPrediction:
    """One run and what was predicted for it.

    :ivar calibrated: whether the profile was fitted to this run, so that its errors are left out.
    """

    run: MeasuredRun
    predicted: Mapping[str, float]
    wall_s: float
    calibrated: bool


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """A profile for one base model: where it is, its hash, and the names of the runs it was fitted to."""

    path: str
    sha256: str
    name: str
    calibration_runs: frozenset[str]


def profiles_for(
    models: Sequence[str], folder: Path | None, bundled: str = MeasuredRun.profile
) -> dict[str, ModelProfile]:
    """Return the profile of each base model.

    :param folder: has ``MODEL.json`` or ``MODEL/ENGINE.json``; None: the bundled ones are taken.
    :param bundled: DEVICE/{model}/ENGINE, the name of the bundled profile of a model.
    :raises InputError: where one is missing or can't be read.
    """
    found = {}
    for model in models:
        if folder is None:
            path = bundled.format(model=model)
            if path not in bundled_profiles():
                raise InputError("no bundled profile for this model", got=model, hint="give --profile-dir")
        else:
            places = [folder / f"{model}.json", folder / model / f"{bundled.rpartition('/')[2]}.json"]
            there = [place for place in places if place.exists()]
            if not there:
                raise InputError(
                    "no profile for this model",
                    key="--profile-dir",
                    got=model,
                    allowed=" or ".join(str(place) for place in places),
                )
            path = str(there[0])
        profile, digest = load_profile(path)
        runs = profile.provenance.calibration_runs if profile.provenance else ()
        found[model] = ModelProfile(path, digest, profile.name, frozenset(runs))
    return found


def metrics_of(recording: Recording, duration_s: float) -> dict[str, float]:
    """Return ``PREDICTED``: latencies over the requests that a client saw completed in time, as they were measured."""
    columns = recording.requests
    finished = columns["finished_s"].astype(np.float64)
    done = (columns["status"] == COMPLETED) & (finished <= duration_s)
    first, output = columns["first_token_s"][done], columns["output_tokens"][done].astype(np.float64)
    ttft_ms = (first - columns["arrival_s"][done]) * 1000
    several = output > 1
    tpot_ms = (finished[done] - first)[several] / (output[several] - 1) * 1000
    gaps, gap_s = int(recording.gap_counts.sum()), float(recording.gap_sum_s.sum())
    separate = gaps - recording.facts.get("merged_gaps", 0.0)
    completed = int(done.sum())
    middle = np.searchsorted(np.cumsum(recording.gap_counts.sum(axis=0)), gaps / 2)
    values = (
        completed / duration_s,
        float(output.sum()) / duration_s,
        float(tpot_ms.mean()) if several.any() else np.nan,
        gap_s / separate * 1000 if separate > 0 else np.nan,
        float(gap_bin_edges()[middle]) * 1000 if gaps else np.nan,
        float(ttft_ms.mean()) if completed else np.nan,
        float(np.quantile(ttft_ms, 0.5)) if completed else np.nan,
        float(np.quantile(ttft_ms, 0.99)) if completed else np.nan,
        recording.running_area / recording.stopped_s,
        len(recording.loads["tier"]) / max(completed, 1),
        float(columns["preemptions"].sum()),
    )
    return {name: float(value) for name, value in zip(PREDICTED, values, strict=True)}


def predict_run(run: MeasuredRun, scenario: Scenario, seeds: int = 1) -> dict[str, float]:
    """Simulate a run and return ``PREDICTED``: the mean over seeds, of p99 TTFT the geometric mean."""
    world, duration_s = build_world(scenario), float(scenario.workload.duration or 0)
    recordings = (simulate(world, replication, 1) for replication in range(seeds))
    found = [metrics_of(each, duration_s) | run.counted_otherwise(each, duration_s) for each in recordings]
    means = {name: float(np.mean([values[name] for values in found])) for name in PREDICTED}
    tails = [values["ttft_p99_ms"] for values in found]
    return means | {"ttft_p99_ms": float(np.exp(np.mean(np.log(tails))))}


def predict_all(
    runs: Sequence[MeasuredRun],
    lengths: LengthHistograms | None,
    profiles: Mapping[str, ModelProfile],
    *,
    table: Path,
    jobs: int = -1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[RunPrediction]:
    """Predict every run, in parallel; what was predicted before, in this or another call, is not simulated again.

    :param lengths: of the requests; None: every run knows its own.
    :param table: CSV file, one row a run, written at the end and when the study is interrupted. Next to
        it, ``predicted.jsonl`` keeps every prediction that was ever made in this folder.
    :raises InputError: naming file and line of a run that can't be simulated, before any is simulated.
    """
    keys = [_key(run, lengths, profiles[run.model]) for run in runs]
    kept = table.with_name(KEPT)
    rows = {key: row for key, row in _read_kept(kept).items() if key in set(keys)}
    progress(len(rows), len(runs))
    with tempfile.TemporaryDirectory(prefix="loraplan-") as traces:
        scenarios = [
            run.as_measured(lengths, profiles[run.model].path, Path(traces) / f"{key}.csv")
            for run, key in zip(runs, keys, strict=True)
        ]
        for run, scenario in zip(runs, scenarios, strict=True):
            _check(run, scenario)
        left = [task for task in zip(keys, runs, scenarios, strict=True) if task[0] not in rows]
        # Long runs first: a worker that begins one last would keep the others waiting.
        left.sort(key=lambda task: -task[1].offered_rps)
        try:
            for key, predicted, wall_s in unordered(_predict_task, left, jobs):
                rows[key] = {**predicted, "wall_s": wall_s}
                with open(kept, "a", encoding="utf-8") as lines:
                    lines.write(json.dumps({"key": key, **rows[key]}) + "\n")
                progress(len(rows), len(runs))
        finally:
            _write_table(table, runs, keys, rows, profiles)
    return [
        RunPrediction(
            run,
            {name: float(rows[key][name]) for name in PREDICTED},
            float(rows[key]["wall_s"]),
            run.name in profiles[run.model].calibration_runs,
        )
        for run, key in zip(runs, keys, strict=True)
    ]


def _check(run: MeasuredRun, scenario: Scenario) -> None:
    try:
        build_world(scenario)
    except InputError as error:
        if error.file is None:
            error.file, error.line = run.file, run.line
        raise


def _predict_task(key: str, run: MeasuredRun, scenario: Scenario) -> tuple[str, dict[str, float], float]:
    started = time.perf_counter()
    return key, predict_run(run, scenario, run.seeds), time.perf_counter() - started


def _key(run: MeasuredRun, lengths: LengthHistograms | None, profile: ModelProfile) -> str:
    """Return what a prediction depends on, as a hash: the run's own row, lengths, profile and code."""
    text = repr((*run.simulated, lengths))
    return hashlib.sha256(f"{text}{profile.sha256}{code_version()}".encode()).hexdigest()[:16]


def _read_kept(path: Path) -> dict[str, dict[str, float]]:
    """Return earlier predictions by key; a line that was cut short is no prediction."""
    found = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
            found[str(row["key"])] = {name: float(row[name]) for name in (*PREDICTED, "wall_s")}
        except (ValueError, KeyError, TypeError):
            continue
    return found


def _write_table(
    table: Path,
    runs: Sequence[MeasuredRun],
    keys: Sequence[str],
    rows: Mapping[str, Mapping[str, float]],
    profiles: Mapping[str, ModelProfile],
) -> None:
    head = ["model", "workload_group", "case", "gpu_slots", "adapters", "offered_rps", "regime", "calibrated"]
    measured = list(runs[0].measured)
    columns = [*(f"predicted_{name}" for name in PREDICTED), *(f"measured_{name}" for name in measured)]
    written: list[list[object]] = []
    for run, key in zip(runs, keys, strict=True):
        row = rows.get(key)
        if row is None:
            continue
        written.append(
            [
                run.model,
                text_cell(run.workload_group),
                text_cell(run.case),
                run.gpu_slots,
                run.adapters,
                f"{run.offered_rps:.6g}",
                run.regime,
                int(run.name in profiles[run.model].calibration_runs),
                *(f"{float(row[name]):.8g}" for name in PREDICTED),
                *(f"{run.measured[name]:.8g}" for name in measured),
                f"{float(row['wall_s']):.3f}",
                key,
            ]
        )
    write_text(table, csv_text([*head, *columns, "wall_s", "key"], written))
