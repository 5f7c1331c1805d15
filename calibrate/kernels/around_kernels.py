"""What a server's steps and loads have that kernel tables don't: the engine's own work, LoRA, and loads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from calibrate.kernels.base_models import BaseModel
from calibrate.kernels.cards import SCALED, Card
from calibrate.kernels.kernel_tables import Deployment
from sim.spec.profile import PCIE_4_BYTES_PER_S, LoadCost, LoraCost, StepCost, TierCost, load_profile
from sim.studies.fidelity.least_squares import significant
from sim.traffic.adapters import SHAPES, ModelShape, parameters_per_rank, tensor_count

# What an engine adds to its kernels in every step: launches that no table has, and the host's work.
#
# On the GPU a step takes ``factor`` · kernels + ``step_s`` + ``per_sequence_s`` · sequences + ``prefill_step_s``, the
# last where it has a prompt; on the host ``host_s`` + ``host_per_sequence_s`` · sequences. The two are known apart for
# vLLM (``validation/overheads/vllm_overhead.py``). For other engines all is on the GPU's side.

FILE = Path(__file__).with_name("overheads.json")
"""Written by ``validation/overheads/overheads.py``."""
OTHER_MODEL = 0.1
"""Least spread for a model that was not among the measured ones: an assumption."""
NOT_FITTED = 0.2
"""Spread of steps where no overhead was fitted: kernels alone are 5 to 25 % too fast."""


@dataclass(frozen=True, slots=True)
class EngineOverhead:
    """Coefficients of one engine.

    :ivar outside_s: of a request before its first token, outside of steps: front end, client and their queues. Profiles
        leave it out, since scenarios have a front end of their own.
    :ivar models: that were measured; empty: the spread is of models that were left out of the fit, and so of any.
    :ivar spread: standard deviation of the logarithm of measured over predicted times of whole deployments.
    :ivar error: what held-out measurements say, in words.
    """

    factor: float = 1.0
    step_s: float = 0.0
    per_sequence_s: float = 0.0
    prefill_step_s: float = 0.0
    host_s: float = 0.0
    host_per_sequence_s: float = 0.0
    outside_s: float = 0.0
    models: tuple[str, ...] = ()
    spread: float = 0.0
    error: str = ""
    source: str = ""

    def added_to(self, kernels: StepCost, factor: float = 1.0) -> StepCost:
        """Return the costs of whole steps.

        :param factor: further factor on whole steps, for draws.
        """
        scale = self.factor * factor
        costs = {
            "fixed_s": kernels.fixed_s * scale + self.step_s * factor,
            "per_sequence_s": kernels.per_sequence_s * scale + self.per_sequence_s * factor,
            "per_kv_token_s": kernels.per_kv_token_s * scale,
            "per_attended_token_s": kernels.per_attended_token_s * scale,
            "prefill_step_s": kernels.prefill_step_s * scale + self.prefill_step_s * factor,
            "decode_step_s": kernels.decode_step_s * scale,
            "host_s": self.host_s * factor,
            "host_per_sequence_s": self.host_per_sequence_s * factor,
        }
        tokens = tuple((tokens, round(seconds * scale, 9)) for tokens, seconds in kernels.tokens)
        return kernels.model_copy(update={**_rounded(costs), "tokens": tokens})


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return dict(zip(values, significant(list(values.values())), strict=True))


def overhead_of(deployment: Deployment) -> EngineOverhead:
    """Return what the engine of a deployment adds: as fitted on its card, else with its format of weights, else at all.

    Without any fit there is none, and draws are as wide as if kernels were all that is known.
    """
    engine, weights, card = deployment.engine, deployment.weights, deployment.card.name
    fitted = read_overheads()
    for level in (f"{engine}/{weights}/{card}", f"{engine}/{weights}", engine):
        if level in fitted:
            found = fitted[level]
            if deployment.model.shape.experts and not any(SHAPES[name].experts for name in found.models):
                break
            if not found.models or deployment.model.name in found.models:
                return found
            note = f"measured with {', '.join(found.models)}, so more is assumed to be open for {deployment.model.name}"
            return replace(found, spread=max(found.spread, OTHER_MODEL), error=f"{found.error}; {note}")
    return EngineOverhead(spread=NOT_FITTED)  # dense models say little about experts: they were off by 26 to 57 %


def was_measured(deployment: Deployment) -> bool:
    """Return whether servers with this engine, this format of weights and this card were measured."""
    return f"{deployment.engine}/{deployment.weights}/{deployment.card.name}" in read_overheads()


@lru_cache(maxsize=1)
def read_overheads() -> dict[str, EngineOverhead]:
    """Return the fitted overheads by level."""
    return {
        level: EngineOverhead(**{**values, "models": tuple(values["models"])})
        for level, values in json.loads(FILE.read_text()).items()
    }


# LoRA's share of a step on a card where it was not measured.
#
# Measured are two models on one card, an H100 with 64 GB under vLLM 0.8.5. Each term is explained by what bounds it and
# scaled by that:
#
# - *launches*: every layer has four groups of linear modules (q, k and v; o; gate and up; down), each with a kernel
#   that
# shrinks and one that expands; a mixture of experts has adapters on the first two alone. ``fixed`` (*on*) is the time
# to start them, ``per_adapter`` (*launches*) that of the blocks that each distinct adapter adds to every one of them.
# Both go with the number of kernels, and no property of the card shortens them: 0.26 ms for a distinct adapter is a
# hundred times what reading it takes at rank 1.
# - *grid*: kernels span all slots, filled or not, and all tokens; a block of an empty slot ends at once, but is
# scheduled. ``per_slot``, ``per_slot_token`` and ``per_slot_prefill_token`` go with the number of kernels over that of
# the card's multiprocessors.
# - *bytes*: ``per_adapter_max_rank`` reads the slot's rows, filled or padded. It goes with the bytes of one rank over
#   the
# card's memory bandwidth (at 30 % of the data sheet's, as measured).
#
# Over several GPUs each reads and computes its share; launches stay. The terms are means over the two models. How far
# these are from each other's scaled terms is the least that a third model must be expected to differ: by a factor of
# 1.1 for a distinct adapter and its rank, 1.2 to 1.4 for the grid, 2.5 for LoRA turned on. Draws allow little more on
# cards of the same architecture. Nothing is known about others, so there draws are wide.

MEASURED = {"llama-3.1-8b": "h100-64gb/llama-3.1-8b/vllm-0.8.5", "qwen2.5-7b": "h100-64gb/qwen2.5-7b/vllm-0.8.5"}
"""Profiles with measured LoRA terms, by model."""
MARK = "LoRA terms scaled from H100-64GB"
_CARD = SCALED["h100-64gb"]
"""The card that they were measured on."""
SPREAD_ALIKE = {"on": 1.95, "launches": 1.5, "grid": 1.35, "bytes": 1.2}
"""By which factor a term of each kind may be off on a card of the measured one's architecture: one standard deviation
on a log scale. No less than what the two models show, rounded up, since two show little. They were measured with
synchronous scheduling, where a step takes the host's work as well. How much of ``launches`` that is, which asynchronous
scheduling hides, is not known: an assumption."""
SPREAD = {"on": 1.95, "launches": 1.6, "grid": 1.6, "bytes": 1.6}
"""The same on any other card: an assumption."""
KINDS = {
    "fixed_s": "on",
    "per_slot_s": "grid",
    "per_slot_token_s": "grid",
    "per_slot_prefill_token_s": "grid",
    "per_adapter_s": "launches",
    "per_adapter_max_rank_s": "bytes",
}
LORA_SOURCES = {
    "step.lora": "zero: not told apart from the other terms where LoRA was measured",
    **{
        f"step.lora.{term}": f"{MARK} ({kind}): mean of the measured Llama-3.1-8B and Qwen2.5-7B under vLLM 0.8.5 "
        "with synchronous scheduling; what of it is the host's work, which asynchronous scheduling hides, is not known"
        for term, kind in KINDS.items()
    },
}


def _amounts(shape: ModelShape, card: Card, gpus: int = 1) -> dict[str, float]:
    """Return how much of what bounds each kind of term a step has: kernels, kernels over multiprocessors, and the bytes
    of one rank over the memory bandwidth, in seconds."""
    kernels = 2 * (2 if shape.experts else 4) * shape.layers
    rank_bytes = 2 * parameters_per_rank(shape, "all-linear")
    grid, seconds = kernels / card.multiprocessors / gpus, rank_bytes / card.bandwidth_bytes_per_s / gpus
    return {"on": kernels, "launches": kernels, "grid": grid, "bytes": seconds}


def lora_cost(model: BaseModel, card: Card, gpus: int = 1, measured: tuple[str, ...] = tuple(MEASURED)) -> LoraCost:
    """Return LoRA's terms, scaled from the measured models.

    :param gpus: that one replica spans.
    :param measured: models to scale from; one is left out to judge the scaling.
    """
    wanted = _amounts(model.shape, card, gpus)
    found: dict[str, float] = {}
    for name in measured:
        cost = load_profile(MEASURED[name])[0].step.lora
        there = _amounts(SHAPES[name], _CARD)
        for term, kind in KINDS.items():
            found[term] = found.get(term, 0.0) + getattr(cost, term) * wanted[kind] / there[kind] / len(measured)
    return LoraCost(**_rounded(found))


def spread_on(card: Card) -> dict[str, float]:
    """Return by which factor terms of each kind may be off on a card."""
    return SPREAD_ALIKE if card.architecture == _CARD.architecture else SPREAD


def drawn_lora(cost: LoraCost, spread: dict[str, float], normals: dict[str, float]) -> LoraCost:
    """Return the terms with each kind multiplied by its spread to the power of a normal draw."""
    values = {term: getattr(cost, term) * spread[kind] ** normals[kind] for term, kind in KINDS.items()}
    return LoraCost(**_rounded(values))


# Loads of adapters on a machine where they were not measured.
#
# From host memory, a load zeroes every buffer of its slot and copies every tensor: times per buffer and per tensor as
# measured on the H100-64GB, whatever the card, since calls and not bytes bound them up to rank 32. Behind PCIe 4.0,
# half as fast as the bus there, the bytes of higher ranks take longer. From storage, a load also reads the file: an
# opening time and a bandwidth of the measured machine's disks, which say little about another's.

LOAD_SOURCE = (
    "measured under vLLM 0.8.5 on the H100-64GB (Agullo et al. 2025): calls per buffer and per tensor on any card; the "
    "time to read a file is that of the measured machine's disks, so measure yours with loraplan calibrate loads"
)
_PCIE_4 = ("ampere", "ada", "")
"""Architectures of cards behind PCIe 4.0; of one that is known by its data sheet alone it is assumed."""
LOAD_SPREAD = {"storage": 1.8, "host": 1.4}
"""By which factor loads may be off: one standard deviation on a log scale, an assumption."""
_EMBEDDING_BUFFERS = 3


def load_cost(model: BaseModel, card: Card) -> LoadCost:
    """Return the load law of a model: that of the measured model of its family, with its own number of buffers, and no
    faster than the bus of its card."""
    near = "llama-3.1-8b" if model.shape.lora_embeddings else "qwen2.5-7b"
    measured = load_profile(MEASURED[near])[0].load
    more = measured.host.open_s * (_buffers(model.shape) / _buffers(SHAPES[near]) - 1)
    host = _opened(measured.host, more)
    if card.architecture in _PCIE_4:
        host = host.model_copy(update={"bus_bytes_per_s": PCIE_4_BYTES_PER_S})
    return LoadCost(storage=_opened(measured.storage, more), host=host)


def drawn_load(cost: LoadCost, normals: dict[str, float]) -> LoadCost:
    """Return the law with every time of a tier multiplied by its spread to the power of a normal draw."""
    storage, host = (LOAD_SPREAD[tier] ** normals[tier] for tier in ("storage", "host"))
    return LoadCost(storage=_times(cost.storage, storage), host=_times(cost.host, host))


def _buffers(shape: ModelShape) -> int:
    return tensor_count(shape, "all-linear") + _EMBEDDING_BUFFERS * shape.lora_embeddings


def _opened(tier: TierCost, more_s: float) -> TierCost:
    residual = tuple(significant(tier.residual[:: max(len(tier.residual) // 20, 1)], 4))
    return tier.model_copy(update={"open_s": significant([tier.open_s + more_s])[0], "residual": residual})


def _times(tier: TierCost, factor: float) -> TierCost:
    times = {name: getattr(tier, name) * factor for name in ("open_s", "per_tensor_s", "per_padded_tensor_s")}
    bandwidth = {"bandwidth_bytes_per_s": tier.bandwidth_bytes_per_s / factor}
    return tier.model_copy(update=_rounded(times | bandwidth))
