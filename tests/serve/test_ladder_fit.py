"""Costs that are known come back from a ladder made of them."""

from __future__ import annotations

import numpy as np
import pytest

from calibrate.serve.client import PlannedRequest, SentRequest
from calibrate.serve.http_answer import ServerError
from calibrate.serve.ladder import (
    DecodeBatch,
    JoiningRequest,
    Ladder,
    TimedLoad,
    fit_profile,
    fit_steps,
    held_up,
    public_command,
    resampled,
)
from sim.spec.profile import Profile
from sim.spec.scenario import Scenario
from sim.traffic.generate import Traffic

FIXED, SEQUENCE, TOKEN, ADAPTER, KV, PREFILL, OUTSIDE = 6e-3, 3e-4, 1e-4, 2e-4, 1e-7, 2e-3, 1.5e-3


def ladder(noise: float = 0.0) -> Ladder:
    rng = np.random.default_rng(1)

    def about(seconds: float) -> float:
        return seconds * float(1 + noise * rng.standard_normal())

    result = Ladder()
    for size in (1, 2, 4, 8, 16):
        for distinct in {1, size // 2 or 1, min(size, 8)}:
            for prompt in (8, 200):
                kv = size * (prompt + 32.0)
                step = FIXED + (SEQUENCE + TOKEN) * size + ADAPTER * distinct + KV * kv
                result.batches.append(DecodeBatch(size, distinct, prompt, kv, about(step)))
    for tokens in (8, 40, 120, 400):
        alone = OUTSIDE + FIXED + SEQUENCE + ADAPTER + PREFILL + TOKEN * tokens
        result.prefill += [(tokens, about(alone)) for _ in range(9)]
        held = SEQUENCE + PREFILL + TOKEN * tokens
        step = FIXED + SEQUENCE + TOKEN + ADAPTER
        waits = np.linspace(0, step, 9)
        result.joins += [
            JoiningRequest(tokens, about(held), OUTSIDE + float(wait) + step + about(held), step) for wait in waits
        ]
    result.loads = [
        TimedLoad(a % 4, number < 20, about(5e-3 if number < 20 else 1e-3)) for number, a in enumerate(range(60))
    ]
    return result


def test_costs_come_back() -> None:
    found = fit_steps(ladder())
    assert found == pytest.approx(
        {
            "step": FIXED,
            "sequence": SEQUENCE,
            "token": TOKEN,
            "adapter": ADAPTER,
            "kv_token": KV,
            "attended": 0.0,
            "prefill_step": PREFILL,
            "front_end": OUTSIDE,
        },
        rel=1e-3,
        abs=1e-9,
    )


def test_a_profile_says_what_it_is_from() -> None:
    scenario = Scenario.model_validate(
        {
            "schema_version": 1,
            "name": "x",
            "workload": {
                "requests": 10,
                "arrivals": {"process": "poisson", "rate": "1/s"},
                "popularity": {"law": "uniform"},
                "tokens": {"prompt": {"law": "fixed", "value": 9}, "output": {"law": "fixed", "value": 9}},
            },
            "adapters": {"base_model": "tiny", "count": 4, "rank": 8},
            "fleet": {"engine": "vllm-0.32"},
            "cache": {"gpu": {"slots": 2}, "host": {"slots": 4}},
        }
    )
    population = Traffic(scenario, "tiny").population

    def measured(rungs: Ladder, engine: str = "x", kv_tokens: int | None = None) -> Profile:
        known = {"base_model": "tiny", "population": population}
        return fit_profile(rungs, scenario, "cmd", engine=engine, kv_tokens=kv_tokens, **known)

    profile = measured(ladder(noise=0.02), "vllm 0.32.0 (cpu)", 4096)
    assert profile.status == "measured"
    assert profile.load.storage.open_s == pytest.approx(5e-3, rel=0.05)
    assert profile.load.host.open_s == pytest.approx(1e-3, rel=0.05)
    assert profile.conditions.engine == "vllm 0.32.0 (cpu)"
    assert profile.name == "vllm-0.32.0-cpu/tiny/fitted"
    assert profile.hold_out[0].mean < 0.05
    assert profile.front_end_s == pytest.approx(OUTSIDE, abs=1e-3)
    assert profile.memory.total_bytes > 4096 * profile.memory.kv_bytes_per_token
    assert len(profile.draws) == 16
    for pick in (
        lambda costs: costs.step.fixed_s,
        lambda costs: costs.step.per_sequence_s,
        lambda costs: costs.step.tokens[1][1],
        lambda costs: costs.load.storage.open_s,
        lambda costs: costs.load.host.open_s,
    ):
        drawn = [pick(draw) for draw in profile.draws]
        assert min(drawn) < pick(profile) < max(drawn)
        assert all(float(f"{value:.6g}") == value for value in drawn)
    assert measured(ladder(noise=0.02)).draws == profile.draws
    few = Ladder(
        batches=[DecodeBatch(1, 1, 8, 40.0, 6e-3), DecodeBatch(2, 1, 8, 80.0, 7e-3), DecodeBatch(4, 1, 8, 160.0, 8e-3)]
    )
    few.prefill = [(8, 0.01)]
    assert len(measured(few).draws) == 16
    assert measured(few, "/home/me/model").name == "model/tiny/fitted"
    with pytest.raises(ServerError, match="too few"):
        measured(Ladder())


def test_no_draw_lacks_a_kind() -> None:
    whole = ladder()
    for number in range(50):
        drawn = resampled(whole, np.random.default_rng(number))
        assert {batch.sequences for batch in drawn.batches} == {1, 2, 4, 8, 16}
        assert {tokens for tokens, _ in drawn.prefill} == {8, 40, 120, 400}
        assert len(drawn.joins) == len(whole.joins)
        assert sum(load.storage for load in drawn.loads) == 20


def test_a_command_without_paths_and_hosts() -> None:
    settings = ["workload.arrivals.rate=5/s", "x.file=/home/me/t.csv", "y={file: ../d/u.csv}", "z=http://me:key@h"]
    assert public_command("short", launched=False, settings=settings) == (
        "loraplan calibrate serve short --fit --set workload.arrivals.rate=5/s --set x.file=t.csv "
        "--set 'y={file: u.csv}'"
    )
    assert public_command("s", launched=True, settings=[]) == "loraplan calibrate serve s --launch vllm --fit"


def test_what_joins_hold_up() -> None:
    gaps = [0.01] * 60
    gaps[20], gaps[40] = 0.013, 0.015  # each with a prefill in it
    stamps = np.concatenate([[0.0], np.cumsum(gaps)])
    stream = SentRequest(PlannedRequest(0, 0.0, 0, 8, 61), stamps=[(float(at), n) for n, at in enumerate(stamps, 1)])

    def joined(place: int) -> SentRequest:
        end = float(stamps[place + 1])
        return SentRequest(PlannedRequest(1, 0.0, 0, 8, 1), sent=float(stamps[place]) - 0.004, stamps=[(end, 1)])

    joins = held_up(stream, [joined(20), joined(40)])
    assert [join.held_s for join in joins] == pytest.approx([0.003, 0.005])
    assert [join.step_s for join in joins] == pytest.approx([0.01, 0.01])
    assert joins[0].ttft_s == pytest.approx(0.017)
    assert held_up(stream, []) == []
