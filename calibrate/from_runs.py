"""Fit a whole profile from published measurements: five tables of vLLM 0.8.5 runs on an H100 (docs/validation.md)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from calibrate.published import KV_COLUMNS, LOAD_COLUMNS, fit_loads, fit_memory, read_rows
from calibrate.step_fit import STEP_COLUMNS, closed_loop, fit_steps
from sim.errors import InputError
from sim.results.files import digest_file, write_json
from sim.spec.profile import Envelope, LoadCost, Memory, Profile, Provenance, StepCost
from sim.studies.measured_runs import MODELS, MeasuredRun, read_lengths, read_runs

FILES = ("runs.csv", "step_runs.csv", "load_samples.csv", "kv_capacity.csv", "sharegpt_lengths.json")
RULE = (
    "all runs sorted by model, workload group, slots and adapters; every 7th of them, from the 4th on: light and "
    "saturated ones of all slot counts and ranks"
)
_EVERY, _FROM = 7, 3
_PUBLISHED = "Agullo et al. 2025 (arXiv 2508.08343), vLLM 0.8.5, bf16, one H100 with 64 GB"


def calibration_subset(runs: Sequence[MeasuredRun]) -> list[MeasuredRun]:
    """Return the runs that calibrate; the others are left to be predicted."""
    order = sorted(runs, key=lambda run: (run.model, run.workload_group, run.gpu_slots, run.adapters, run.line))
    return order[_FROM::_EVERY]


def fit_profile(
    folder: Path, model: str, command: str, jobs: int = -1, progress: Callable[[int, int], None] = lambda d, t: None
) -> Profile:
    """Fit the profile of one base model.

    :param folder: has the five ``FILES``.
    :param model: one of those in the tables, such as ``llama-3.1-8b``.
    :param command: how to repeat it, for the profile's provenance.
    :raises InputError: where a table or a column is missing.
    """
    if model not in MODELS.values():
        raise InputError("no measurements of this model", key="--model", got=model, allowed=", ".join(MODELS.values()))
    runs = read_runs(folder / "runs.csv")
    lengths = read_lengths(folder / "sharegpt_lengths.json")
    loops = closed_loop(read_rows(folder / "step_runs.csv", STEP_COLUMNS, model), model)
    loads = fit_loads(read_rows(folder / "load_samples.csv", LOAD_COLUMNS), model)
    memory = fit_memory(read_rows(folder / "kv_capacity.csv", KV_COLUMNS, model), model)
    subset = [run for run in calibration_subset(runs) if run.model == model]
    if not subset:
        raise InputError(
            "too few runs of this model to calibrate with", file=str(folder / "runs.csv"), got=len(runs),
            allowed="every seventh run calibrates",
        )  # fmt: skip
    profile = Profile(
        schema_version=1, name=f"h100-64gb/{model}/vllm-0.8.5", status="derived",
        description=f"{model} in bf16 on one H100 with 64 GB under vLLM 0.8.5, fitted from published measurements.",
        device="NVIDIA H100 64GB", model=model, dtype="bf16",
        step=StepCost(), load=cast(LoadCost, loads.section), memory=cast(Memory, memory.section),
        envelope=Envelope(sequences=1000, distinct_adapters=384, rank=32, slots=384), sources=_sources(len(subset)),
        error="see docs/validation.md: predictions of the runs that did not calibrate, by metric and regime",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder_of_rounds:
        path = Path(folder_of_rounds) / "profile.json"

        def write(now: Profile) -> str:
            path.write_text(now.model_dump_json(), encoding="utf-8")
            return str(path)

        fitted, residuals = fit_steps(subset, lengths, loops, profile, write=write, jobs=jobs, progress=progress)
    provenance = Provenance(
        command=command,
        data={name: digest_file(folder / name) for name in FILES},
        calibration=RULE,
        calibration_runs=tuple(run.name for run in subset),
        residuals={
            name: round(error, 4) for name, error in {**residuals, **loads.residuals, **memory.residuals}.items()
        },
    )
    return fitted.model_copy(update={"provenance": provenance})


def write_profile(profile: Profile, path: Path) -> None:
    """Write a profile's JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, profile.model_dump(mode="json"))


def _sources(runs: int) -> dict[str, str]:
    return {
        "step": f"step_runs.csv and {runs} of runs.csv ({_PUBLISHED}): non-negative least squares, four rounds",
        "step.per_passed_s": "0.44 us for each waiting request that the scheduler passes (vllm_h100 notes)",
        "load": f"load_samples.csv ({_PUBLISHED}): medians of cells; residuals hold every sample but first reads",
        "memory": f"kv_capacity.csv ({_PUBLISHED}) for overhead_bytes; the rest is computed",
        "envelope": "largest values in step_runs.csv and runs.csv",
    }
