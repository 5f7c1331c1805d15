"""LoRA's terms, judged by leaving one of the two measured models out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calibrate.kernels.base_models import base_model_of
from calibrate.kernels.cards import MIB, Card
from calibrate.kernels.lora_terms import MEASURED, lora_cost
from calibrate.published.profile_from_runs import closed_loops
from calibrate.published.step_terms import TERMS
from sim.spec.profile import load_profile

H100_64 = Card("h100-64gb", "", "NVIDIA H100 64GB", 65536 * MIB, 2.0e12, 132)
LORA = {
    "lora": "fixed_s",
    "slot": "per_slot_s",
    "slot_token": "per_slot_token_s",
    "slot_prefill_token": "per_slot_prefill_token_s",
    "adapter": "per_adapter_s",
    "adapter_rank": "per_adapter_max_rank_s",
}
BASE = {"sequence": "per_sequence_s", "kv_token": "per_kv_token_s", "prefill_step": "prefill_step_s"}


@pytest.mark.parametrize("model", MEASURED)
def test_lora_decode_steps_of_one_model_follow_from_the_other(shared: Path, model: str) -> None:
    profile = load_profile(MEASURED[model])[0]
    problem = closed_loops(shared / "vllm_h100", model, profile.memory).problem
    chosen = (np.array(problem.kind) == "LoRA decode steps") & (problem.weight > 0)
    column = {term: problem.features[chosen, TERMS.index(term)] for term in TERMS}
    step = profile.step
    base = step.fixed_s + np.interp(column["token"], *zip(*step.tokens, strict=True)) + problem.known[chosen]
    base = base + sum(column[term] * getattr(step, name) for term, name in BASE.items())
    (other,) = (name for name in MEASURED if name != model)
    lora = lora_cost(base_model_of(model), H100_64, measured=(other,))
    predicted = base + sum(column[term] * getattr(lora, name) for term, name in LORA.items())
    errors = np.abs(predicted / problem.seconds[chosen] - 1)
    assert len(errors) >= 22
    assert np.median(errors) < 0.035  # 3.1 % and 2.5 %
    assert np.quantile(errors, 0.9) < 0.05
