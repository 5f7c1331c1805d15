"""What engines add to their kernels: the schedule of a closed loop, the fit, and what profiles take from it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from calibrate.kernels.base_models import base_model_of
from calibrate.kernels.cards import card_of
from calibrate.kernels.closed_loop import REQUESTS_EACH, Loop, loop_steps
from calibrate.kernels.engine_overhead import NOT_FITTED, OTHER_MODEL, EngineOverhead, overhead_of, read_overheads
from calibrate.kernels.kernel_tables import Deployment
from calibrate.kernels.overhead_fit import LEAST_POINTS, UNKNOWN_CARD, PredictedPoint, fit_overheads, roles_of
from calibrate.kernels.serving_points import ServingPoint


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


def test_the_schedule_agrees_with_a_plain_one_step_at_a_time() -> None:
    loop = Loop(clients=7, prompt=90, answer=13, spread=(0.8, 1.2), budget=200)
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
    total, firsts, tokens = np.zeros(4), [], []
    active = [Sent(total, *each) for each in lengths[: loop.clients]]
    unsent = lengths[loop.clients :]
    while active:
        running = [each for each in active if each.done == each.prompt]
        left, chunks = loop.budget - len(running), []
        for each in active:
            if each.done < each.prompt and left > 0:
                chunks.append((each, min(left, each.prompt - each.done)))
                left -= chunks[-1][1]
        kernels = 1.0 + len(running) + 10 * bool(chunks)
        total = total + np.array((kernels, 1, len(running) + len(chunks), bool(chunks)))
        for each in running:
            each.out += 1
        for each, chunk in chunks:
            each.done += chunk
            if each.done == each.prompt:
                each.first, each.out = total, 1
        for each in [each for each in active if each.out == each.answer]:
            active.remove(each)
            firsts.append(each.first - each.arrived)
            tokens.append((total - each.first) / (each.answer - 1))
            if unsent:
                active.append(Sent(total, *unsent.pop(0)))
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
    def group(gpus: int) -> tuple[str, str, str, str, int]:
        return "vllm", "h200", "llama-3.1-8b", "fp8", gpus

    roles = roles_of({group(1): 12, group(2): 11, group(4): 30, group(8): 12})
    assert [roles[group(gpus)] for gpus in (1, 2, 4, 8)] == ["calibrates", "listed", "judges", "calibrates"]


def test_profiles_take_the_most_specific_level_and_are_wider_for_another_model() -> None:
    fitted = read_overheads()
    measured = Deployment(card_of("h100"), base_model_of("qwen3-32b"), tensor_parallel=2)
    assert overhead_of(measured) == fitted["vllm/bf16/h100-80gb"]
    other = overhead_of(replace(measured, model=base_model_of("llama-3.1-8b")))
    assert (other.factor, other.spread) == (fitted["vllm/bf16/h100-80gb"].factor, OTHER_MODEL)
    assert other.error.endswith("; measured with qwen3-32b, so more is assumed to be open for llama-3.1-8b")
    assert overhead_of(replace(measured, card=card_of("l40s"))) == fitted["vllm/bf16"]
    assert fitted["vllm/bf16"].spread >= UNKNOWN_CARD, "16-bit weights were measured on one card only"
    assert overhead_of(replace(measured, engine="sglang", weights="fp8")).source == fitted["sglang"].source
    dense = [each for level, each in fitted.items() if level.split("/")[1:2] != ["mxfp4"]]
    assert all(0.5 < each.factor < 1.2 and 0 < each.spread < 0.4 for each in dense)
    mixture = replace(measured, model=base_model_of("gpt-oss-120b"), weights="mxfp4")
    assert overhead_of(mixture) == fitted["vllm/mxfp4/h100-80gb"]
    assert overhead_of(replace(mixture, engine="sglang")) == EngineOverhead(spread=NOT_FITTED), (
        "dense models say little"
    )
    assert EngineOverhead(spread=NOT_FITTED).source == ""
