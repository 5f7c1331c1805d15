"""The terms of a step's cost, as they are fitted, and the profile section that they become."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.spec.profile import LoraCost, StepCost

Floats = NDArray[np.float64]

GRAPH_TOKENS = 512
"""vLLM captures CUDA graphs up to so many tokens; larger steps run eagerly."""
BUDGET_TOKENS = 2048
PASSED_S = 0.44e-6
"""Seconds of the scheduler's scan for each waiting request that it passes: measured apart (vllm_h100 notes)."""

BENDS = (128, 256, 512, 1024)
"""Tokens of a step beyond which each more may cost more."""

TERMS = (
    "step",
    "token",
    *(f"token_beyond_{bend}" for bend in BENDS),
    "eager",
    "sequence",
    "kv_token",
    "prefill_step",
    "lora",
    "slot",
    "slot_token",
    "slot_prefill_token",
    "adapter",
    "adapter_rank",
)
"""Seconds for: every step; every token, and every one beyond each of ``BENDS``; a step that runs eagerly; every
sequence; every KV token attended by decodes; a step with a prefill; a step of a server with LoRA turned on;
every slot; every slot and token, and every slot and prompt token; every distinct adapter, and that times the slots'
rank."""
FACTOR_TERMS = ("lora", "slot", "adapter", "adapter_rank")
"""What the multiplicative rival's factor is linear in: LoRA on, slots, distinct adapters, and those times rank."""
BASE_TERMS = TERMS[: TERMS.index("lora")]
"""What a step costs without LoRA."""


@dataclass(frozen=True, slots=True)
class Steps:
    """Steps to be costed; each array (n,).

    :ivar kv_tokens: KV tokens attended by decoding sequences, the mean over ``steps`` equal ones.
    """

    tokens: Floats
    sequences: Floats
    prefill_tokens: Floats
    kv_tokens: Floats
    distinct: Floats
    slots: float
    max_rank: float

    def features(self) -> Floats:
        """Return what each term is multiplied with, (n, len(TERMS))."""
        one, zero = np.ones_like(self.tokens), np.zeros_like(self.tokens)
        return np.column_stack(
            (
                one,
                self.tokens,
                *(np.maximum(self.tokens - bend, zero) for bend in BENDS),
                self.tokens > GRAPH_TOKENS,
                self.sequences,
                self.kv_tokens,
                self.prefill_tokens > 0,
                one * (self.slots > 0),
                one * self.slots,
                self.slots * self.tokens,
                self.slots * self.prefill_tokens,
                self.distinct,
                self.distinct * self.max_rank,
            )
        ).astype(np.float64)


def step_cost(seconds: Mapping[str, float]) -> StepCost:
    """Return the profile section of fitted terms."""

    def token_s(tokens: int) -> float:
        beyond = sum(seconds[f"token_beyond_{bend}"] * max(tokens - bend, 0) for bend in BENDS)
        return round(seconds["token"] * tokens + beyond + seconds["eager"] * (tokens > GRAPH_TOKENS), 12)

    knots = sorted({0, *BENDS, GRAPH_TOKENS + 1, BUDGET_TOKENS})
    return StepCost(
        fixed_s=seconds["step"],
        tokens=tuple((knot, token_s(knot)) for knot in knots),
        per_sequence_s=seconds["sequence"],
        per_kv_token_s=seconds["kv_token"],
        prefill_step_s=seconds["prefill_step"],
        per_passed_s=PASSED_S,
        lora=LoraCost(
            fixed_s=seconds["lora"],
            per_slot_s=seconds["slot"],
            per_slot_token_s=seconds["slot_token"],
            per_slot_prefill_token_s=seconds["slot_prefill_token"],
            per_adapter_s=seconds["adapter"],
            per_adapter_max_rank_s=seconds["adapter_rank"],
        ),
    )
