"""What engines add to their kernels: the schedule of a closed loop, the fit, and what profiles take from it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from strategies import write_profile

from calibrate.kernels.around_kernels import NOT_FITTED, OTHER_MODEL, EngineOverhead, overhead_of, read_overheads
from calibrate.kernels.base_models import base_model_of
from calibrate.kernels.cards import card_of
from calibrate.kernels.kernel_tables import Deployment
from sim.errors import InputError
from validation.overheads.loop_schedule import REQUESTS_EACH, Loop, loop_steps
from validation.overheads.overhead_fit import (
    LEAST_POINTS,
    UNKNOWN_CARD,
    PredictedPoint,
    covered,
    fit_overheads,
    roles_of,
    widened,
)
from validation.overheads.overheads import refused_of
from validation.overheads.replayed_points import ReplayedPoint, replay, replay_points
from validation.overheads.serving_points import DeploymentGroup, ServingPoint, point_of


def seconds(decoding: int, context: int, prompts: int, tokens: int, before: int) -> float:
    return 0.01 + 1e-4 * decoding + 1e-6 * decoding * context + 2e-5 * prompts * tokens


def test_one_client_alternates_between_its_prompt_and_its_answer() -> None:
    found = loop_steps(Loop(clients=1, prompt=100, answer=11), seconds)
    assert found.first.tolist() == pytest.approx([0.01 + 2e-5 * 100, 1, 1, 1])
    # Ten steps of one sequence each; contexts are means over the answer, rounded to 16 tokens.
    assert found.token.tolist() == pytest.approx([0.01 + 1e-4 + 1e-6 * 112, 1, 1, 0], rel=0.01)


def test_a_prompt_beyond_the_budget_takes_several_steps() -> None:
    found = loop_steps(Loop(clients=1, prompt=1000, answer=5, budget=300), seconds)
    assert found.first[1:].tolist() == [4, 4, 4]
    assert found.first[0] == pytest.approx(4 * 0.01 + 2e-5 * 1000)


@pytest.mark.parametrize(
    "setup",
    [
        {},
        {"chunked": False},
        {"batch_slots": 6},
        {"batch_slots": 1},
        {"wait_steps": 4, "wait_tokens": 180.0},
        {"wait_steps": 3, "chunked": False, "budget": 110},
    ],
)
def test_the_schedule_agrees_with_a_plain_one_step_at_a_time(setup: dict[str, Any]) -> None:
    loop = replace(Loop(clients=7, prompt=90, answer=13, spread=(0.8, 1.2), budget=200), **setup)
    found = loop_steps(loop, lambda decoding, context, prompts, tokens, before: 1.0 + decoding + 10 * (prompts > 0))
    firsts, tokens = plain_loop(loop)
    assert found.first[:4] == pytest.approx(np.mean(firsts, axis=0))
    assert found.token[:4] == pytest.approx(np.mean(tokens, axis=0))


def plain_loop(loop: Loop) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Every step a pass over every request; the same lengths in the same order."""
    from sim.rng import stream

    count = loop.clients * REQUESTS_EACH
    shares = loop.spread[0] + (loop.spread[1] - loop.spread[0]) * stream(0, 0, "closed-loop").random((count, 2))
    lengths = [(round(p * loop.prompt), round(a * loop.answer)) for p, a in shares.tolist()]
    total, firsts, tokens, waited = np.zeros(4), [], [], 0
    active, on_the_way = [], [Sent(total, *each) for each in lengths[: loop.clients]]
    unsent = lengths[loop.clients :]
    while active or on_the_way:
        if not active:
            active, on_the_way = on_the_way[:1], on_the_way[1:]
        running = [each for each in active if each.done == each.prompt]
        left, chunks = loop.budget - len(running), []
        for each in active:
            rest = each.prompt - each.done
            if rest > 0:
                if left <= 0 or len(running) + len(chunks) == (loop.batch_slots or loop.clients):
                    break
                if rest > left and not loop.chunked:
                    break
                chunks.append((each, min(left, rest)))
                left -= chunks[-1][1]
        together = len(running) + sum(chunk for _, chunk in chunks)
        if running and chunks and waited < loop.wait_steps and together < loop.wait_tokens:
            waited, chunks = waited + 1, []
        elif chunks:
            waited = 0
        kernels = 1.0 + len(running) + 10 * bool(chunks)
        total = total + np.array((kernels, 1, len(running) + len(chunks), bool(chunks)))
        for each in running:
            each.out += 1
        for each, chunk in chunks:
            each.done += chunk
            if each.done == each.prompt:
                each.first, each.out = total, 1
        ended = [each for each in active if each.out == each.answer]
        active, on_the_way = [*active, *on_the_way], []
        for each in ended:
            active.remove(each)
            firsts.append(each.first - each.arrived)
            tokens.append((total - each.first) / (each.answer - 1))
            if unsent:
                on_the_way.append(Sent(total, *unsent.pop(0)))
    return firsts, tokens


class Sent:
    def __init__(self, arrived: np.ndarray, prompt: int, answer: int) -> None:
        self.arrived, self.prompt, self.answer = arrived, prompt, answer
        self.first, self.done, self.out = arrived, 0, 0


def points_of(coefficients: tuple[float, ...], card: str, gpus: int, noise: float = 0.0) -> list[PredictedPoint]:
    deployment = Deployment(card_of(card), base_model_of("llama-3.1-8b"), tensor_parallel=gpus)
    found = []
    for number in range(LEAST_POINTS):
        loop = Loop(clients=1 + 5 * number, prompt=100 + 300 * (number % 3), answer=40)
        steps = loop_steps(loop, lambda *step: seconds(*step) / gpus)
        off = 1 + noise * ((number + number // 3) % 3 - 1)  # a Latin square, so that no feature explains it
        token = float(steps.token @ coefficients[:4]) * off
        first = float(steps.first @ coefficients[:4]) + coefficients[4]
        found.append(PredictedPoint(ServingPoint(number, deployment, loop, first, token), steps))
    return found


def test_the_fit_finds_the_coefficients_that_made_the_points() -> None:
    true = (1.1, 0.002, 1e-5, 0.004, 0.05)
    points = [each for gpus in (1, 2, 4, 8) for each in points_of(true, "h100", gpus)]
    fit = fit_overheads(points)
    assert set(fit.overheads) == {"vllm/bf16/h100-80gb", "vllm/bf16", "vllm"}
    found = fit.overheads["vllm/bf16/h100-80gb"]
    fitted = (found.factor, found.step_s, found.per_sequence_s, found.prefill_step_s, found.outside_s)
    assert fitted == pytest.approx(true, rel=1e-3)
    assert [each.role for each in fit.errors] == ["calibrates", "judges", "calibrates", "judges"]
    for each in fit.errors:
        assert np.abs(each.token).max() < 1e-3
        assert np.abs(each.first).max() < 1e-3


def test_the_spread_is_what_held_out_points_show() -> None:
    points = [each for gpus in (1, 2, 4, 8) for each in points_of((1.0, 0.001, 0, 0, 0), "h100", gpus, noise=0.1)]
    spread = fit_overheads(points).overheads["vllm/bf16/h100-80gb"].spread
    assert 0.1 / 1.645 * 0.8 < spread < 0.1 / 1.645 * 1.4


def test_another_card_is_judged_by_leaving_each_card_out() -> None:
    one = [each for gpus in (1, 2) for each in points_of((1.0, 0.001, 0, 0, 0), "h100", gpus)]
    other = [each for gpus in (1, 2) for each in points_of((1.3, 0.0013, 0, 0, 0), "h200", gpus)]
    fit = fit_overheads([*one, *other])
    assert fit.overheads["vllm/bf16/h100-80gb"].spread < 0.01
    assert fit.overheads["vllm/bf16"].spread > 0.1
    assert "each card predicted from the others" in fit.overheads["vllm/bf16"].error


def test_small_deployments_neither_calibrate_nor_judge() -> None:
    def group(gpus: int) -> DeploymentGroup:
        return DeploymentGroup("vllm", "h200", "llama-3.1-8b", "fp8", gpus)

    roles = roles_of({group(1): 12, group(2): 11, group(4): 30, group(8): 12})
    assert [roles[group(gpus)] for gpus in (1, 2, 4, 8)] == ["calibrates", "listed", "judges", "calibrates"]


def test_profiles_take_the_most_specific_level_and_are_wider_for_another_model() -> None:
    fitted = read_overheads()
    measured = Deployment(card_of("h100"), base_model_of("llama-3.1-8b"), "trtllm")
    assert overhead_of(measured) == fitted["trtllm/bf16/h100-80gb"]
    other = overhead_of(replace(measured, model=base_model_of("qwen3-32b")))
    assert (other.factor, other.spread) == (fitted["trtllm/bf16/h100-80gb"].factor, OTHER_MODEL)
    assert other.error.endswith("; measured with llama-3.1-8b, so more is assumed to be open for qwen3-32b")
    assert overhead_of(replace(measured, card=card_of("l40s"))) == fitted["trtllm/bf16"]
    assert fitted["trtllm/bf16"].spread >= UNKNOWN_CARD, "16-bit weights were measured on one card only"
    assert overhead_of(replace(measured, engine="sglang", weights="fp8")).source == fitted["sglang"].source
    vllm = replace(measured, engine="vllm")
    assert overhead_of(vllm) == fitted["vllm/bf16/h100-80gb"], "its spread is of models that were left out"
    assert overhead_of(replace(vllm, card=card_of("h200"))) == fitted["vllm/bf16"]
    dense = [each for level, each in fitted.items() if level.split("/")[1:2] != ["mxfp4"]]
    assert all(0.5 < each.factor < 1.2 and 0 < each.spread < 0.4 for each in dense)
    mixture = replace(vllm, model=base_model_of("gpt-oss-120b"), weights="mxfp4", tensor_parallel=2)
    assert overhead_of(mixture) == fitted["vllm/mxfp4/h100-80gb"]
    assert overhead_of(replace(mixture, weights="fp8")) == EngineOverhead(spread=NOT_FITTED), "dense models say little"
    assert overhead_of(replace(mixture, engine="sglang")) == EngineOverhead(spread=NOT_FITTED)
    assert EngineOverhead(spread=NOT_FITTED).source == ""


@pytest.mark.parametrize("engine", ["vllm", "trtllm"])
@pytest.mark.parametrize(
    "loop",
    [
        Loop(clients=1, prompt=1000, answer=9),
        Loop(clients=8, prompt=1024, answer=128),
        Loop(clients=64, prompt=700, answer=40, budget=2048),
        Loop(clients=16, prompt=300, answer=60, batch_slots=15),
    ],
)
def test_simulator_and_schedule_agree(engine: str, loop: Loop) -> None:
    per_token_s = 2e-5
    loop = replace(loop, chunked=engine == "vllm")
    costs = {
        "fixed_s": 0.01,
        "tokens": [[0, 0.0], [8192, 8192 * per_token_s]],
        "per_sequence_s": 1e-4,
        "prefill_step_s": 0.003,
    }

    def step_s(decoding: int, context: int, prompts: int, tokens: int, before: int) -> float:
        return 0.01 + 1e-4 * (decoding + prompts) + 0.003 * (prompts > 0) + per_token_s * (decoding + prompts * tokens)

    deployment = Deployment(card_of("h100"), base_model_of("llama-3.1-8b"), engine)
    version = "0.12.0" if engine == "vllm" else ""  # one that schedules synchronously, as the plain schedule does
    found = replay(ServingPoint(2, deployment, loop, 1.0, 1.0, version=version), write_profile(costs))
    steps = loop_steps(loop, step_s)
    # The schedule takes chunks of one step as equally long, in whole tokens.
    assert found.token_s == pytest.approx(steps.token[0], rel=2e-4)
    assert found.first_s - overhead_of(deployment).outside_s == pytest.approx(steps.first[0], rel=2e-4)


def test_servers_are_set_up_as_their_benchmarks_did() -> None:
    row = {
        "silicon_data_source": "source_file=2026-04-06.csv",
        "backend": "trtllm",
        "model_path": "meta-llama/Llama-3.1-70B",
        "system": "h200_sxm",
        "mode": "agg",
        "isl": "1024",
        "osl": "1024",
        "gemm_quant_mode": "fp8",
        "batch_size": "64.0",
        "tp_size": "4.0",
        "pp_size": "1.0",
        "silicon_ttft_ms": "529.0",
        "silicon_tpot_ms": "20.0",
    }

    def loop_of(**changes: str) -> Loop:
        point = point_of(2, row | changes)
        return point.loop

    both = Loop(64, 1024, 1024, (0.8, 1.0), budget=2248, chunked=False, wait_steps=20, wait_tokens=0.9 * 2248)
    assert loop_of() == both
    assert loop_of(tp_size="8.0") == replace(both, wait_steps=0, wait_tokens=math.inf)
    assert loop_of(osl="8192") == Loop(64, 1024, 8192, (0.8, 1.0), budget=9416, chunked=False)
    assert loop_of(backend="vllm") == Loop(64, 1024, 1024, (0.8, 1.0))
    other = {"silicon_data_source": "source_file=/aic-auto-gap-analysis/", "model_path": "Qwen/Qwen3-32B"}
    assert loop_of(**other) == Loop(64, 1024, 1024, (0.8, 1.2))
    small = {**other, "model_path": "meta-llama/Llama-3.1-8B-Instruct", "gemm_quant_mode": ""}
    assert loop_of(**small) == Loop(64, 1024, 1024, (0.8, 1.2), batch_slots=63)
    assert loop_of(**small, backend="vllm") == Loop(64, 1024, 1024, (0.8, 1.2))


def test_points_that_outgrow_the_kv_cache_do_not_calibrate() -> None:
    points = [each for gpus in (1, 2) for each in points_of((1.1, 0.002, 1e-5, 0.004, 0.05), "h100", gpus)]
    assert all(each.point.fits for each in points)
    waits = [
        PredictedPoint(replace(each.point, loop=replace(each.point.loop, clients=10_000), first_s=60.0), each.steps)
        for each in points[:4]
    ]
    assert not any(each.point.fits for each in waits)
    assert replace(waits[0].point, loop=replace(waits[0].point.loop, clients=2900), kv_bytes=1).fits
    fit, without = fit_overheads([*points, *waits]), fit_overheads(points)
    assert fit.overheads["vllm/bf16/h100-80gb"].factor == without.overheads["vllm/bf16/h100-80gb"].factor
    assert [len(each.token) for each in fit.errors] == [len(each.token) for each in without.errors]


def test_the_split_the_other_way_round_swaps_the_roles() -> None:
    points = [each for gpus in (1, 2, 4) for each in points_of((1.0, 0.001, 0, 0, 0), "h100", gpus, noise=0.1)]
    fit, swapped = fit_overheads(points), fit_overheads(points, swapped=True)
    assert [each.role for each in fit.errors] == ["calibrates", "judges", "calibrates"]
    assert [each.role for each in swapped.errors] == ["judges", "calibrates", "judges"]
    assert "fitted on 24 measured points of 2 deployments" in fit.overheads["vllm"].source
    assert "fitted on 12 measured points of 1 deployment" in swapped.overheads["vllm"].source


def test_what_an_interval_covers() -> None:
    errors = np.array([-0.2, -0.05, 0.0, 0.05, 0.2])
    assert covered(errors, 0.1) == 0.6  # 1.645 standard deviations reach from -15 to +18 %
    assert covered(errors, 0.2) == 1.0


def test_an_interval_is_widened_to_the_simulators_errors_and_never_narrowed() -> None:
    points = [each for gpus in (1, 2) for each in points_of((1.0, 0.001, 0, 0, 0), "h100", gpus, noise=0.1)]
    fit = fit_overheads(points)
    level, judging = "vllm/bf16/h100-80gb", next(each.group for each in fit.errors if each.role == "judges")
    errors = np.linspace(-0.3, 0.3, 100)
    wider = widened(fit.overheads, {judging: errors})
    assert covered(errors, wider[level].spread) == pytest.approx(0.9, abs=0.01)
    assert wider["vllm"] == fit.overheads["vllm"], "of another card, each card predicted from the others says more"
    assert widened(fit.overheads, {judging: errors / 100}) == fit.overheads


def test_points_without_a_profile_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(deployment: Deployment, command: str) -> None:
        raise InputError("no kernels", key="--weights")

    monkeypatch.setattr("validation.overheads.replayed_points.build_profile", refuse)
    deployment = Deployment(card_of("h100"), base_model_of("llama-3.1-8b"))
    assert replay_points([ServingPoint(2, deployment, Loop(1, 10, 10), 1.0, 1.0)]) == []


def test_only_deployments_with_points_are_refused() -> None:
    """Some are known by their serving stages alone, and have nothing to replay."""
    one, other = (
        ServingPoint(2, Deployment(card_of(card), base_model_of("llama-3.1-8b"), "vllm"), Loop(1, 9, 9), 1.0, 1.0)
        for card in ("h100", "h200")
    )
    assert refused_of([one, one, other], [ReplayedPoint(other, 1.0, 1.0, 0.1)]) == [one.group]
    assert refused_of([], []) == []
