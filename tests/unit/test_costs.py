"""What loads take and what is left of GPU memory, for numbers that can be added up by hand (docs/model.md)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from sim.policies.costs import StepCosts, load_seconds, mean_residual, residual
from sim.policies.kv.kv_rules import kv_tokens_left
from sim.spec.profile import Memory, StepCost, TierCost
from sim.traffic.adapters import Population


def tier(**fields: Any) -> TierCost:
    return TierCost.model_validate({"bandwidth_bytes_per_s": 1e9, **fields})


def population(*adapters: tuple[int, int, int]) -> Population:
    """Rank, tensors and bytes of each adapter."""
    rank, tensors, size = (np.array(column) for column in zip(*adapters, strict=True))
    return cast(Population, SimpleNamespace(rank=rank, slot_rank=int(rank.max()), tensors=tensors, size_bytes=size))


def test_a_load_is_opened_read_tensor_by_tensor_padded_and_transferred() -> None:
    three = population((8, 100, 500_000_000), (16, 100, 1_000_000_000), (16, 20, 1_000_000_000))
    assert load_seconds(tier(), three) == pytest.approx([0.5, 1.0, 1.0])
    assert load_seconds(tier(open_s=0.25), three) == pytest.approx([0.75, 1.25, 1.25])
    assert load_seconds(tier(per_tensor_s=0.01), three) == pytest.approx([1.5, 2.0, 1.2])
    # Half of the tensors are B tensors; only the first adapter has a rank below that of its slot.
    assert load_seconds(tier(per_padded_tensor_s=0.01), three) == pytest.approx([1.0, 1.0, 1.0])
    bus = tier(bandwidth_bytes_per_s=1e15, per_tensor_s=0.007, bus_bytes_per_s=1e9)
    assert load_seconds(bus, three) == pytest.approx([0.7, 1.0, 1.0], rel=1e-4), "bytes are copied while calls are made"


def test_a_step_pays_for_decoding_and_for_prompts_only_where_it_has_them() -> None:
    costs = StepCosts(StepCost(fixed_s=1.0, decode_step_s=0.25, prefill_step_s=0.5), slots=0, max_tokens=100)
    assert costs.step(8, 0, 0, 0, (8, 0, 0.0, 0, 0)) == 1.25
    assert costs.step(8, 0, 0, 0, (1, 8, 0.0, 0, 0)) == 1.5
    assert costs.step(8, 0, 0, 0, (2, 7, 0.0, 0, 0)) == 1.75


def test_the_mean_factor_is_the_mean_of_the_factors_of_all_uniform_numbers() -> None:
    uneven = tier(residual=(0.5, 1.0, 4.0))
    assert residual(uneven, np.array([0.0, 0.25, 0.5, 0.75])) == pytest.approx([0.5, 0.75, 1.0, 2.5])
    assert mean_residual(uneven) == pytest.approx((0.75 + 2.5) / 2)
    every = (np.arange(10_000) + 0.5) / 10_000
    assert mean_residual(uneven) == pytest.approx(float(residual(uneven, every).mean()))
    assert mean_residual(tier(residual=(1.5,))) == 1.5


def test_the_kv_cache_gets_what_weights_overhead_and_adapters_leave() -> None:
    memory = Memory(
        total_bytes=80_000, utilization=0.9, weights_bytes=16_000, overhead_bytes=4_000, kv_bytes_per_token=100
    )
    assert kv_tokens_left(memory, 0) == (72_000 - 16_000 - 4_000) // 100
    assert kv_tokens_left(memory, 2_050) == 499, "half a token is none"
    assert kv_tokens_left(memory, 0, utilization=0.5) == 200
    assert kv_tokens_left(memory, 60_000) == -80
