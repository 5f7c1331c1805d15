"""Step costs are fitted from what simulated steps are made of: exact, and able to find known costs again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sim.spec.profile import load_profile
from sim.spec.scenario import Scenario
from sim.studies.fidelity.least_squares import Problem, solve
from sim.studies.fidelity.measured_runs import METRICS, MeasuredRun
from sim.studies.fidelity.step_terms import PASSED_S
from sim.world.build import build_world
from sim.world.replication import simulate
from validation.published.step_fit import BENDS, FACTS, TERMS, closed_loop, cost_of, features, join, served_hour
from validation.published.step_log import StepLog

Floats = NDArray[np.float64]

SECONDS = (12e-3, 5e-6, 3e-6, 2e-6, 1e-5, 2e-5, 4e-3, 1.5e-5, 8e-8, 6e-3, 2e-3, 1.5e-5, 1.2e-7, 9e-8, 2.5e-4, 1e-5)
KNOWN = dict(zip(TERMS, SECONDS, strict=True))


def scenario(path: Path, slots: int, rate: float) -> Scenario:
    """Return a small vLLM scenario over a profile with the known costs."""
    profile = load_profile("h100-64gb/llama-3.1-8b/assumed")[0].model_copy(update={"step": cost_of(KNOWN)})
    path.write_text(profile.model_dump_json(), encoding="utf-8")
    return Scenario.model_validate(
        {
            "schema_version": 1,
            "name": "fit",
            "workload": {
                "duration": "2 min",
                "arrivals": {"process": "poisson", "rate": f"{rate}/s"},
                "tokens": {
                    "prompt": {"law": "uniform", "low": 10, "high": 900},
                    "output": {"law": "uniform", "low": 1, "high": 300},
                },
            },
            "adapters": {"count": 40, "rank": 16},
            "fleet": {"profile": str(path), "engine": "vllm-0.8", "max_num_seqs": 512},
            "cache": {"gpu": {"slots": slots}, "host": {"slots": 40}},
            "run": {"replications": 1, "warmup": "0%"},
        }
    )


def run(slots: int, tpot_s: float) -> MeasuredRun:
    measured = dict.fromkeys(METRICS, 1.0) | {"tpot_mean_ms": tpot_s * 1000, "itl_p50_ms": 1.0}
    return MeasuredRun(
        line=2,
        model="llama-3.1-8b",
        workload_group="g",
        case="c",
        gpu_slots=slots,
        host_slots=40,
        adapters=40,
        max_lora_rank=16,
        ranks=(16,),
        rates=((0.1, 40),),
        duration_s=120.0,
        waiting_mean=0.0,
        kv_usage_mean=0.1,
        measured=measured,
    )


@pytest.mark.parametrize(("slots", "rate"), [(4, 6.0), (16, 12.0), (32, 30.0)])
def test_features_times_costs_are_the_simulated_tpot(tmp_path: Path, slots: int, rate: float) -> None:
    world = build_world(scenario(tmp_path / "p.json", slots, rate))
    columns = simulate(world, 0, 1).requests
    done = (columns["status"] == 0) & (columns["output_tokens"] > 1)
    first, last = columns["first_token_s"][done].astype(float), columns["finished_s"][done].astype(float)
    tpot_s = float(np.mean((last - first) / (columns["output_tokens"][done] - 1)))
    equations = served_hour(run(slots, tpot_s), world.scenario)
    assert equations.features[0] @ SECONDS + equations.known[0] == pytest.approx(tpot_s, rel=1e-9)
    ttft_s = columns["first_token_s"].astype(float) - columns["arrival_s"].astype(float)
    ttft_s = np.sort(ttft_s[columns["status"] == 0])
    around = ttft_s[int(0.45 * len(ttft_s)) : int(0.55 * len(ttft_s)) + 1].mean()
    # The same requests but for one at each end of the range.
    assert equations.features[2] @ SECONDS + equations.known[2] == pytest.approx(around, rel=0.01)


def test_the_log_has_every_step(tmp_path: Path) -> None:
    world, log = build_world(scenario(tmp_path / "p.json", 8, 12.0)), StepLog()
    recording = simulate(world, 0, 1, log.watching)
    columns = log.columns()
    assert columns["seconds"].sum() == pytest.approx(float(recording.busy_s.sum()), rel=1e-3)
    assert columns["load_s"].sum() == pytest.approx(
        float(np.sum(recording.loads["ended_s"] - recording.loads["started_s"])), rel=1e-3
    )
    seconds = features(log.facts(8, 16)) @ SECONDS + columns["passed"] * PASSED_S
    assert seconds * columns["steps"] + columns["load_s"] == pytest.approx(columns["seconds"], rel=1e-9)


def features_of(*facts: Floats) -> Floats:
    return features(dict(zip(FACTS, facts, strict=True)))


def problem(made_of: Floats, seconds: Floats) -> Problem:
    return Problem.of(dict(zip(TERMS, made_of.T, strict=True)), seconds)


def test_known_costs_are_found_again() -> None:
    rng = np.random.default_rng(5)
    tokens = rng.integers(1, 2048, 400).astype(float)
    prompts = np.where(rng.random(400) < 0.5, tokens * rng.random(400), 0.0)
    parts = []
    for slots, rank in ((8.0, 8.0), (64.0, 16.0), (300.0, 32.0), (0.0, 0.0)):
        made_of = features_of(
            tokens,
            (tokens - prompts) + 2 * (prompts > 0),
            prompts,
            tokens * rng.integers(50, 900, 400),
            np.minimum(rng.integers(1, 300, 400), slots),
            np.full(400, slots),
            np.full(400, rank),
        )
        parts.append(problem(made_of, made_of @ SECONDS))
    assert solve(join(parts)) == pytest.approx(np.array(SECONDS), rel=1e-4)


def test_a_few_wild_runs_do_not_spoil_the_fit() -> None:
    tokens = np.linspace(1, 500, 200)
    zero = np.zeros(200)
    made_of = features_of(tokens, tokens, zero, zero, zero, zero, zero)
    seconds = 0.012 + 2e-5 * tokens
    seconds[::20] *= 3
    found = solve(problem(made_of, seconds))
    assert made_of @ found == pytest.approx(0.012 + 2e-5 * tokens, rel=0.02)


def test_step_costs_hold_the_terms() -> None:
    cost = cost_of(KNOWN)
    table = dict(cost.tokens)
    each = [KNOWN["token"], *(KNOWN[f"token_beyond_{bend}"] for bend in BENDS)]
    assert table[128.0] == pytest.approx(128 * each[0])
    assert table[256.0] - table[128.0] == pytest.approx(128 * sum(each[:2]))
    assert table[513.0] - table[512.0] == pytest.approx(sum(each[:4]) + KNOWN["eager"])
    assert table[2048.0] - table[1024.0] == pytest.approx(1024 * sum(each))


ROW = {
    "model": "llama-3.1-8b-instruct",
    "max_num_seqs": "100.0",
    "input_len": "200",
    "output_len": "50",
    "lora_enabled": "1",
    "max_loras": "300.0",
    "max_lora_rank": "8.0",
    "adapters_in_use": "10.0",
    "median_tpot_ms": "25.0",
    "total_input_tokens": "20000.0",
    "completed": "100.0",
    "duration": "100",
    "median_ttft_ms": "0",
    "p99_ttft_ms": "0",
}


def test_closed_loops_say_what_a_step_is_made_of() -> None:
    # The engine starts after 4 s and works for 10 s: TTFT rises by 8 s, since sending takes 2 s.
    prefill = ROW | {
        "output_len": "1",
        "lora_enabled": "0",
        "duration": "14",
        "median_ttft_ms": "8000",
        "p99_ttft_ms": "11920",
    }
    equations = closed_loop([ROW, prefill, prefill | {"max_num_seqs": "50"}], "llama-3.1-8b").problem
    decode = dict(zip(TERMS, equations.features[0].tolist(), strict=True))
    assert (decode["token"], decode["sequence"], decode["kv_token"]) == (100, 100, 100 * 225)
    assert (decode["lora"], decode["slot"]) == (1, 300)
    assert decode["adapter"] == pytest.approx(10 * (1 - 0.9**100))
    first = dict(zip(TERMS, equations.features[1].tolist(), strict=True))
    assert first["token"] == 2048
    assert first["token_beyond_512"] == 2048 - 512
    assert first["sequence"] == pytest.approx(10.24)
    assert (first["lora"], first["adapter"]) == (0, 0)
    assert equations.seconds == pytest.approx([0.025, 10 * 2048 / 20000, 10 * 2048 / 20000])
    assert equations.kind == ("LoRA decode steps", "prefill steps", "prefill steps")
    assert equations.configuration[0] != equations.configuration[1] == equations.configuration[2]


def test_closed_loops_that_say_nothing_of_steps_are_left_out_with_the_reason() -> None:
    rows = [ROW, ROW | {"max_num_seqs": ""}, ROW | {"max_num_seqs": "101"}, ROW | {"output_len": "51"}]
    loops = closed_loop(rows, "llama-3.1-8b", lambda slots, rank: 25_000 if (slots, rank) == (300, 8) else 0)
    assert len(loops.problem) == 1
    assert loops.left_out == {
        "no batch size given": 1,
        "fewer requests than the batch holds": 1,
        "sequences outgrow the KV cache and are preempted": 1,
    }
