"""Measured runs of S-LoRA: what is read of their table, the requests that were sent, and how a snapshot counts them."""

from __future__ import annotations

import random
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from measured_rows import SLORA_ROW
from strategies import build

from sim.errors import InputError
from sim.results.records import COMPLETED
from sim.studies.fidelity.fidelity_study import predict_run
from sim.world.build import build_world
from sim.world.replication import simulate
from validation.published.slora_runs import SLoraRun, read_slora_runs, sent_requests

PROFILE = "unnamed-64gb/llama-2-7b/s-lora"


def read(folder: Path, **changes: str) -> SLoraRun:
    row = SLORA_ROW | changes
    path = folder / "runs.csv"
    path.write_text(f"{','.join(row)}\n{','.join(row.values())}\n", encoding="utf-8")
    [run] = read_slora_runs(path)
    assert isinstance(run, SLoraRun)
    return run


def test_a_row_becomes_a_scenario(tmp_path: Path) -> None:
    run = read(tmp_path)
    assert (run.offered_rps, run.regime) == (1.6, "unsaturated")
    scenario = run.as_measured(None, PROFILE, tmp_path / "trace.csv")
    fleet = scenario.fleet
    assert (fleet.engine, fleet.front_end, fleet.kv_tokens) == ("s-lora", "s-lora", 82528)
    assert (fleet.max_num_batched_tokens, fleet.max_num_seqs, fleet.admission_interval) == (13754, 1000, 10)
    world = build_world(scenario)
    assert set(world.pools[0].adapter_blocks) == {4 * 32}, "an adapter of rank r takes 4 r tokens of the pool"
    assert world.traffic.total == 60


def test_preset_and_profile_alone_give_the_server_s_pool_and_budget() -> None:
    scenario = build(
        workload={"requests": 1, "arrivals": {"process": "poisson", "rate": "1/s"}},
        adapters={"count": 1, "rank": 32, "targets": ["q", "k", "v", "o"], "base_model": "llama-2-7b"},
        fleet={"engine": "s-lora", "profile": PROFILE},
    )
    world = build_world(scenario)
    assert (world.pools[0].kv_tokens, world.pools[0].batched_tokens) == (82_528, 13_754)


def test_requests_are_those_that_the_seeded_client_sent(tmp_path: Path) -> None:
    run = read(tmp_path)
    times, adapters = sent_requests(run)
    random.seed(0)
    dataset = list(range(94145))
    random.shuffle(dataset)
    pairs = [(str(i % 32), i % 32) for i in range(60)]
    random.shuffle(pairs)
    gaps = np.random.RandomState(0).exponential(1 / (32 * 0.05), 60) + 0.7376e-3
    assert adapters == [adapter for _, adapter in pairs]
    assert times[0] == 0
    assert np.allclose(np.diff(times), gaps[:-1], rtol=1e-12)


def test_empty_quantiles_are_not_compared(tmp_path: Path) -> None:
    run = read(tmp_path, ttft_p50_ms="", ttft_p99_ms="", unfinished="300", batch_max="200")
    assert run.regime == "saturated"
    assert [name for name in run.compared if not run.usable(name)] == [
        "itl_mean_ms",
        "ttft_p50_ms",
        "ttft_p99_ms",
        "running_mean",
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "llama-3.1-8b"}, r"runs.csv:2: model: not a value \(got llama-3.1-8b, allowed: llama-2-7b\)"),
        ({"sent": "0"}, r"runs.csv:2: sent: not a value \(got 0, allowed: a whole number, 1 or more\)"),
        ({"sent": "94146"}, r"runs.csv:2: sent: more requests than prompts \(got 94146, allowed: up to 94,145\)"),
        ({"adapter_rate_rps": "0"}, r"runs.csv:2: adapter_rate_rps: this rate can't be simulated \(got 0, "),
        ({"tpot_mean_ms": "-1"}, r"runs.csv:2: tpot_mean_ms: not a value \(got -1, allowed: a number, 0 or more\)"),
        ({"client_extra_ms": ""}, r"runs.csv:2: client_extra_ms: not a value"),
    ],
)
def test_a_bad_value_is_named_with_its_line(tmp_path: Path, changes: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read(tmp_path, **changes)


def test_missing_columns_are_named(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    row = {name: value for name, value in SLORA_ROW.items() if name not in ("sent", "rank")}
    path.write_text(f"{','.join(row)}\n{','.join(row.values())}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"runs.csv:1: columns are missing \(got rank, sent\)"):
        read_slora_runs(path)


def test_a_snapshot_counts_what_has_not_ended(tmp_path: Path) -> None:
    """The run ends 20 s in, with requests in the batch: they wait to the end, and their loads count."""
    run = read(tmp_path, sent="31", duration_s="20")
    scenario = run.as_measured(None, PROFILE, tmp_path / "trace.csv")
    recording = simulate(build_world(scenario), 0, 1)
    columns = recording.requests
    done = columns["status"] == COMPLETED
    assert 0 < np.count_nonzero(~done) < 15
    found = run.counted_otherwise(recording, 20.0)
    assert found["ttft_p99_ms"] == 20_000.0
    seen_s = (columns["first_token_s"] - columns["arrival_s"])[done].tolist()
    unseen_s = [20.0] * int(np.count_nonzero(~done))
    assert found["ttft_p50_ms"] == pytest.approx(median(seen_s + unseen_s) * 1000)
    joined = np.count_nonzero(columns["admitted_s"] >= 0)
    assert joined > np.count_nonzero(done)
    assert found["loads_per_request"] == pytest.approx(len(recording.loads["tier"]) / joined)


def test_the_front_end_delays_every_request_by_a_constant(tmp_path: Path) -> None:
    run = read(tmp_path)
    scenario = run.as_measured(None, PROFILE, tmp_path / "trace.csv")
    behind = predict_run(run, scenario)
    bare = scenario.model_copy(update={"fleet": scenario.fleet.model_copy(update={"front_end": "none"})})
    direct = predict_run(run, bare)
    for name in ("ttft_p50_ms", "ttft_mean_ms"):
        assert behind[name] - direct[name] == pytest.approx(30.0, abs=1e-6)
    assert behind["tpot_mean_ms"] == pytest.approx(direct["tpot_mean_ms"], rel=1e-9)
