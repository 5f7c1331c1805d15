"""Memory and load costs from published measurements, compared with every cell of their tables."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sim.errors import InputError, ScenarioError
from sim.policies.costs import load_seconds, mean_residual
from sim.spec.profile import LoadCost, Memory, load_profile
from sim.spec.scenario import Scenario
from sim.studies.fidelity.measured_runs import MODELS, TARGETS, read_runs
from sim.traffic.adapters import populate
from sim.world.build import build_world
from validation.published.profile_from_runs import calibration_subset, fit_profile
from validation.published.published_costs import fit_loads, fit_memory, read_rows

LENGTHS = {"llama-3.1-8b": 131072, "qwen2.5-7b": 32768}
"""max_model_len: the models' own, unchanged in these runs."""


def kv_tokens(model: str, slots: int, rank: int) -> int:
    """Return the KV cache that a scenario with so many slots gets, from the bundled profile."""
    scenario = Scenario.model_validate(
        {
            "schema_version": 1,
            "name": "kv",
            "workload": {"requests": 1, "arrivals": {"process": "poisson", "rate": "1/s"}},
            "adapters": {"count": 1, "rank": rank, "dtype": "bf16"},
            "fleet": {
                "profile": f"h100-64gb/{model}/vllm-0.8.5",
                "engine": "vllm-0.8",
                "max_model_len": LENGTHS[model],
                "reserved_kv_blocks": 0,
            },
            "cache": {"gpu": {"slots": slots}},
        }
    )
    tokens = build_world(scenario).pools[0].kv_tokens
    assert tokens is not None
    return tokens


def test_all_measured_kv_caches_and_all_refusals_are_met(shared: Path) -> None:
    met = refused = 0
    with open(shared / "vllm_h100" / "kv_capacity.csv", newline="") as lines:
        for row in csv.DictReader(lines):
            model, slots, rank = MODELS[row["model"]], int(row["max_loras"]), int(row["max_lora_rank"])
            if row["status"] == "ok":
                assert kv_tokens(model, slots, rank) == pytest.approx(float(row["kv_cache_tokens"]), rel=0.002), row
                met += 1
            else:
                with pytest.raises(ScenarioError, match=r"cache.gpu.slots: .* leaves too little GPU memory"):
                    kv_tokens(model, slots, rank)
                refused += 1
    assert (met, refused) == (65, 19)


def _numbers(section: LoadCost) -> dict[str, float]:
    """Return every number of a profile's section by its place."""
    flat = pd.json_normalize(section.model_dump()).iloc[0].explode().dropna()
    return {f"{name}[{place}]": float(value) for place, (name, value) in enumerate(flat.items())}


@pytest.mark.parametrize("model", LENGTHS)
def test_the_bundled_profile_has_what_the_tables_say(shared: Path, model: str) -> None:
    folder = shared / "vllm_h100"
    profile, _ = load_profile(f"h100-64gb/{model}/vllm-0.8.5")
    assert profile.memory == fit_memory(read_rows(folder / "kv_capacity.csv", ("model",)), model).section
    fitted = fit_loads(read_rows(folder / "load_samples.csv", ("model",)), model).section
    # The last digit of a least-squares fit depends on the processor's matrix kernels.
    assert _numbers(profile.load) == pytest.approx(_numbers(fitted), rel=1e-12)
    runs = read_runs(folder / "runs.csv")
    subset = [run.name for run in calibration_subset(runs) if run.model == model]
    assert list(profile.provenance.calibration_runs) == subset


def test_no_more_than_15_percent_of_the_runs_calibrate(shared: Path) -> None:
    runs = read_runs(shared / "vllm_h100" / "runs.csv")
    subset = calibration_subset(runs)
    assert len(subset) <= 0.15 * len(runs)
    assert {run.regime for run in subset} == {run.regime for run in runs}
    assert {run.max_lora_rank for run in subset} == {run.max_lora_rank for run in runs}


@pytest.mark.parametrize("model", LENGTHS)
def test_loads_from_host_are_met_in_every_cell(shared: Path, model: str) -> None:
    rows = read_rows(shared / "vllm_h100" / "load_samples.csv", ("model",))
    loads = fit_loads(rows, model).section
    assert isinstance(loads, LoadCost)
    cells: dict[tuple[int, int], list[float]] = defaultdict(list)
    for row in rows:
        if MODELS[row["model"]] == model and row["tier"] == "host_to_gpu" and int(row["nth_load"]) > 50:
            cells[int(row["adapter_rank"]), int(row["max_lora_rank"])].append(float(row["load_ms"]) / 1000)
    for (rank, top), seconds in cells.items():
        mix = [{"share": "50%", "rank": each, "targets": TARGETS.get(model, "all-linear")} for each in (rank, top)]
        adapters = Scenario.model_validate(
            {
                "schema_version": 1,
                "name": "x",
                "adapters": {"count": 2, "mix": mix, "dtype": "bf16"},
                "workload": {"requests": 1, "arrivals": {"process": "poisson", "rate": "1/s"}},
            }
        ).adapters
        population = populate(adapters, model, 2)
        mean = load_seconds(loads.host, population)[population.rank == rank][0] * mean_residual(loads.host)
        assert mean == pytest.approx(float(np.mean(seconds)), rel=0.035), (rank, top)


def test_a_fitted_memory_is_exact_where_it_was_made() -> None:
    rows = [
        {
            "model": "qwen-2.5-7b-instruct",
            "max_loras": "8",
            "max_lora_rank": "8",
            "kv_cache_tokens": "700816.0",
            "status": "ok",
        }
    ]
    fitted = fit_memory(rows, "qwen2.5-7b")
    assert isinstance(fitted.section, Memory)
    assert fitted.residuals["kv_tokens"] == pytest.approx(0, abs=1e-12)


def test_a_missing_table_or_column_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("model,tier\nllama-3.1-8b-instruct,x\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"t.csv:1: columns are missing \(got load_ms\)"):
        read_rows(tmp_path / "t.csv", ("model", "load_ms"))
    with pytest.raises(InputError, match=r"t.csv: no rows of this model \(got qwen2.5-7b\)"):
        read_rows(tmp_path / "t.csv", ("model", "tier"))
    (tmp_path / "t.csv").write_text("model,load_ms\nllama-3.1-8b-instruct,x\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"t.csv:2: load_ms: not a value \(got x, allowed: a number\)"):
        read_rows(tmp_path / "t.csv", ("model", "load_ms"))
    with pytest.raises(InputError, match=r"no.csv: the table can't be read"):
        read_rows(tmp_path / "no.csv", ("model",))
    with pytest.raises(InputError, match=r"--model: no measurements of this model \(got gpt, allowed: llama-3.1-8b"):
        fit_profile(tmp_path, "gpt", "loraplan")
