"""What a step may cost seconds for: one table for all fits of step costs, and the profile section that terms become."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sim.arrays import Floats
from sim.spec.profile import LoraCost, StepCost

PASSED_S = 0.44e-6
"""Seconds of vLLM's scheduler for each waiting request that it passes: measured apart (vllm_h100 notes)."""

Facts = Callable[[str], Floats]
"""Returns a fact of steps by its name, (n,): ``tokens``, of which ``prefill_tokens`` of prompts, ``sequences``,
``decode_kv_tokens`` that decoding sequences attend to, ``attended`` pairs of a prompt token and a token it attends to,
``distinct`` adapters, ``slots``, the ``max_rank`` that slots are padded to, ``rank_sum`` over distinct adapters, and
``rank_tokens``, the sum of every token times the rank of its adapter."""


@dataclass(frozen=True, slots=True)
class Term:
    """One term.

    :ivar field: of a profile's ``StepCost``, or of its ``LoraCost``.
    :ivar times: what its seconds are multiplied with in every step.
    """

    name: str
    field: str
    times: Callable[[Facts], ArrayLike]


BASE = (
    Term("step", "fixed_s", lambda steps: np.ones_like(steps("sequences"))),
    Term("sequence", "per_sequence_s", lambda steps: steps("sequences")),
    Term("kv_token", "per_kv_token_s", lambda steps: steps("decode_kv_tokens")),
    Term("attended", "per_attended_token_s", lambda steps: steps("attended")),
    Term("prefill_step", "prefill_step_s", lambda steps: steps("prefill_tokens") > 0),
)
LORA = (
    Term("lora", "fixed_s", lambda steps: steps("slots") > 0),
    Term("slot", "per_slot_s", lambda steps: steps("slots")),
    Term("slot_token", "per_slot_token_s", lambda steps: steps("slots") * steps("tokens")),
    Term("slot_prefill_token", "per_slot_prefill_token_s", lambda steps: steps("slots") * steps("prefill_tokens")),
    Term("adapter", "per_adapter_s", lambda steps: steps("distinct")),
    Term("adapter_max_rank", "per_adapter_max_rank_s", lambda steps: steps("distinct") * steps("max_rank")),
    Term("adapter_rank", "per_adapter_rank_s", lambda steps: steps("rank_sum")),
    Term("token_rank", "per_token_rank_s", lambda steps: steps("rank_tokens")),
)
_TIMES = {term.name: term.times for term in (*BASE, *LORA)}


def columns(names: Sequence[str], steps: Facts, more: Mapping[str, ArrayLike]) -> dict[str, ArrayLike]:
    """Return what each term is multiplied with, (n,), in the order of the names.

    :param more: of the terms that are not in the table: of tokens, and of what only one fit knows.
    """
    return {name: more[name] if name in more else _TIMES[name](steps) for name in names}


def step_cost(seconds: Mapping[str, float], tokens: Sequence[tuple[float, float]] | None = None) -> StepCost:
    """Return the profile section of fitted terms; those without a place in it are left out.

    :param tokens: the table over tokens; by default, every token costs the term ``token``.
    """
    return StepCost.model_validate(
        {
            "tokens": tokens or ((0, 0.0), (1, seconds.get("token", 0.0))),
            "lora": LoraCost(**{term.field: seconds[term.name] for term in LORA if term.name in seconds}),
            **{term.field: seconds[term.name] for term in BASE if term.name in seconds},
        }
    )


_PROMPT_TERMS = ("per_attended_token_s", "prefill_step_s", "per_slot_prefill_token_s")


def anchored_step(step: StepCost, decode: float, prompt: float, *, lora: bool) -> StepCost:
    """Return step costs with a factor on what decoding takes, and one on what prompts take.

    The tokens of a step are divided where computing takes as long as reading the weights: the two overlap and add up as
    squares (``calibrate/kernels/roofline.py``), so that the step takes √2 times as long there as without tokens.

    :param lora: whether the terms of LoRA change too.
    """

    def changed(values: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: value * (prompt if name in _PROMPT_TERMS else decode)
            for name, value in values.items()
            if isinstance(value, float)
        }

    tokens, seconds = (np.asarray(axis, dtype=np.float64) for axis in zip(*step.tokens, strict=True))
    read_s = (math.sqrt(2) - 1) * step.fixed_s
    knots = np.unique([*tokens, np.interp(read_s, seconds, tokens)])
    taken = np.interp(knots, tokens, seconds)
    table = decode * np.minimum(taken, read_s) + prompt * np.maximum(taken - read_s, 0.0)
    more = {"lora": step.lora.model_copy(update=changed(step.lora.model_dump()))} if lora else {}
    pairs = tuple(zip(knots.tolist(), table.tolist(), strict=True))
    return step.model_copy(update={**changed(step.model_dump()), "tokens": pairs, **more})
