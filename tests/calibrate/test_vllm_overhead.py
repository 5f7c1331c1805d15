"""What vLLM adds to its kernels: the fit of the GPU's and the host's side, and the spread of profiles."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calibrate.kernels.around_kernels import EngineOverhead, read_overheads
from calibrate.kernels.base_models import base_model_of
from calibrate.kernels.cards import card_of
from calibrate.kernels.kernel_tables import Deployment, KernelTables
from sim.spec.profile import StepCost
from sim.studies.fidelity.measured_runs import read_table
from sim.studies.fidelity.serving_stages import stages_of
from validation.overheads.overhead_fit import covered
from validation.overheads.serving_points import DeploymentGroup
from validation.overheads.vllm_overhead import MeasuredGap, fit_vllm, gaps_of

GPU, HOST = np.array((4e-4, 1.5e-5)), np.array((9e-4, 6e-6))


def gaps(model: str, card: str, *, is_async: bool, off: float = 0.0, count: int = 16) -> list[MeasuredGap]:
    """Loads whose steps take exactly what the form says, but for the kernels, which are off alternately."""
    found = []
    for number in range(count):
        sums = np.array((0.006 + 1e-4 * number, 1.0, 1.0 + 4 * number))
        token_s = float(sums @ (1.0, *(GPU if is_async else GPU + HOST)))
        found.append(
            MeasuredGap(
                DeploymentGroup("vllm", card, model, "bf16", 1), is_async, sums, token_s * (1 + off * (-1) ** number)
            )
        )
    return found


def test_the_host_is_what_synchronous_steps_take_longer() -> None:
    measured = [
        *gaps("llama-3.1-8b", "h100-80gb", is_async=True),
        *gaps("qwen3-8b", "h100-80gb", is_async=True),
        *gaps("qwen3-32b", "h100-80gb", is_async=False),
        *gaps("qwen3-8b", "h100-80gb", is_async=False),
    ]
    found = fit_vllm(measured).overheads["vllm/bf16/h100-80gb"]
    assert (found.step_s, found.per_sequence_s) == pytest.approx(GPU, rel=1e-3)
    assert (found.host_s, found.host_per_sequence_s) == pytest.approx(HOST, rel=1e-3)


def test_the_spread_is_that_of_models_that_were_left_out() -> None:
    measured = [
        *gaps("llama-3.1-8b", "h100-80gb", is_async=True, off=0.02),
        *gaps("qwen3-8b", "h100-80gb", is_async=True, off=0.02),
        *gaps("qwen3-14b", "l40s", is_async=True, off=0.2, count=2),
        *gaps("qwen3-32b", "h100-80gb", is_async=False),
        *gaps("qwen3-8b", "h100-80gb", is_async=False),
    ]
    fit = fit_vllm(measured)
    narrow, wide = fit.overheads["vllm/bf16/h100-80gb"], fit.overheads["vllm/bf16/l40s"]
    assert 0.02 / 1.645 * 0.9 < narrow.spread < 0.06
    assert wide.spread > 0.1
    assert fit.overheads["vllm/bf16"].spread == wide.spread, "another card may be like the worst that was measured"
    assert fit.overheads["vllm"].models == ()
    errors = np.concatenate(
        [each.token for each in fit.errors if each.group.card == "h100-80gb" and each.role == "held out"]
    )
    assert covered(errors, narrow.spread) >= 0.85


def test_a_stage_decodes_as_many_sequences_as_arrive_meanwhile(shared: Path) -> None:
    stages = [s for s in stages_of(read_table(shared / "measured" / "serving_runs.csv")) if s.name == "iter36-16.1"]
    (gap,) = gaps_of([], stages)
    stage = stages[0]
    assert (stage.rate_per_s, stage.answer, stage.cached) == (20, 248, True)
    sequences = 20 * 248 * stage.measured["tpot_mean"] + 20 * stage.measured["tpot_mean"]
    assert gap.sums[1:] == pytest.approx((1.0, sequences))
    tables = KernelTables(Deployment(card_of("h100"), base_model_of("llama-3.1-8b")))
    assert tables.step_s(45, 672) < gap.sums[0] < tables.step_s(46, 672, 1, 548)
    assert gap.is_async
    assert gaps_of([], [replace(stage, measured={**stage.measured, "ttft_mean": 3.0})]) == [], "it was overloaded"


def test_intervals_hold_the_loads_of_their_class(shared: Path) -> None:
    """Each model is predicted from the others. A card with few loads can't be between the bounds alone."""
    names = ("serving_runs.csv", "residency_runs.csv")
    stages = [stage for name in names for stage in stages_of(read_table(shared / "measured" / name))]
    hosts = [gap for model in ("qwen3-8b", "qwen3-32b") for gap in gaps(model, "h100-80gb", is_async=False)]
    held_out: dict[str, list[float]] = defaultdict(list)
    for each in fit_vllm([*gaps_of([], stages), *hosts]).errors:
        if each.role == "held out":
            held_out[each.group.card] += each.token.tolist()
    assert {card: len(errors) for card, errors in held_out.items()} == {"a100-80gb": 4, "h100-80gb": 24, "l40s": 2}
    stated = read_overheads()
    within = {card: covered(np.array(errors), stated[f"vllm/bf16/{card}"].spread) for card, errors in held_out.items()}
    assert np.median(np.abs(held_out["h100-80gb"])) < 0.04
    assert 0.85 <= within["h100-80gb"] <= 0.97
    assert 0.85 <= sum(within[card] * len(errors) for card, errors in held_out.items()) / 30 <= 0.97


def test_profiles_know_the_hosts_side_apart() -> None:
    kernels = StepCost(fixed_s=0.006, tokens=((1, 0), (100, 0.01)))
    overhead = EngineOverhead(step_s=4e-4, per_sequence_s=2e-5, host_s=9e-4, host_per_sequence_s=3e-5)
    found = overhead.added_to(kernels, factor=2.0)
    assert (found.host_s, found.host_per_sequence_s) == pytest.approx((1.8e-3, 6e-5))
    assert (found.fixed_s, found.per_sequence_s) == pytest.approx((2 * 0.0064, 4e-5))
