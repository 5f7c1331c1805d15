"""Measured runs of S-LoRA, a sample; docs/validation.md has the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sim.policies.front_end import FRONT_ENDS
from sim.studies.fidelity.fidelity_study import RunPrediction, predict_run
from sim.studies.fidelity.findings import errors_of
from sim.studies.fidelity.measured_runs import MeasuredRun
from validation.published.slora_runs import read_slora_runs


def predict(run: MeasuredRun, folder: Path) -> RunPrediction:
    scenario = run.as_measured(None, run.profile.format(model=run.model), folder / "trace.csv")
    return RunPrediction(run, predict_run(run, scenario), 0.0, False)


@pytest.fixture
def runs(shared: Path) -> list[MeasuredRun]:
    table = shared / "slora" / "runs.csv"
    if not table.exists():
        pytest.skip(f"measured runs of S-LoRA are not here: {table}")
    return read_slora_runs(table)


BOUNDS = {"req_per_s": 0.01, "tpot_mean_ms": 0.02, "loads_per_request": 0.02, "ttft_p50_ms": 0.05, "ttft_p99_ms": 0.05}


def check_light(predictions: list[RunPrediction], bounds: dict[str, float]) -> None:
    for name, bound in bounds.items():
        errors = errors_of(predictions, name)
        assert errors["runs"] == len(predictions), name
        assert errors["ape_p50"] < bound, name
    short = [p.run.measured["ttft_p50_ms"] - p.predicted["ttft_p50_ms"] for p in predictions]
    assert abs(np.median(short)) < 1.0, "the front end's constant is their median"
    assert FRONT_ENDS["s-lora"].request_s == 0.03


def test_light_runs_are_predicted(runs: list[MeasuredRun], tmp_path: Path) -> None:
    light = [run for run in runs if run.offered_rps < 5]
    assert len(light) == 8
    check_light([predict(run, tmp_path) for run in light], BOUNDS)


@pytest.mark.slow
def test_all_unsaturated_runs_are_predicted(runs: list[MeasuredRun], tmp_path: Path) -> None:
    """Medians over these 15 (docs/validation.md), half as much again."""
    light = [run for run in runs if run.regime == "unsaturated"]
    assert len(light) == 15
    bounds = {"req_per_s": 0.001, "tpot_mean_ms": 0.018, "loads_per_request": 0.003, "ttft_p50_ms": 0.023}
    check_light([predict(run, tmp_path) for run in light], bounds | {"ttft_p99_ms": 0.012})


@pytest.mark.slow
@pytest.mark.parametrize("case", ["64_adapters_0.4_rps", "320_adapters_0.05_rps"])
def test_saturated_runs_are_predicted(runs: list[MeasuredRun], tmp_path: Path, case: str) -> None:
    [run] = [run for run in runs if run.case == case]
    assert run.regime == "saturated"
    predicted = predict(run, tmp_path).predicted
    for name, bound in {
        "req_per_s": 0.01,
        "tpot_mean_ms": 0.02,
        "loads_per_request": 0.02,
        "ttft_mean_ms": 0.02,
    }.items():
        assert predicted[name] == pytest.approx(run.measured[name], rel=bound), name
