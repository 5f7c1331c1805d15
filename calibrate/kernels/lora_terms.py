"""LoRA's share of a step on a card where it was not measured.

Measured are two models on one card, an H100 with 64 GB under vLLM 0.8.5. Each term is explained by what bounds it and
scaled by that:

- *launches*: every layer has four groups of linear modules (q, k and v; o; gate and up; down), each with a kernel that
  shrinks and one that expands; a mixture of experts has adapters on the first two alone. ``fixed`` (*on*) is the time
  to start them, ``per_adapter`` (*launches*) that of the blocks that each distinct adapter adds to every one of them.
  Both go with the number of kernels, and no property of the card shortens them: 0.26 ms for a distinct adapter is a
  hundred times what reading it takes at rank 1.
- *grid*: kernels span all slots, filled or not, and all tokens; a block of an empty slot ends at once, but is
  scheduled. ``per_slot``, ``per_slot_token`` and ``per_slot_prefill_token`` go with the number of kernels over that of
  the card's multiprocessors.
- *bytes*: ``per_adapter_max_rank`` reads the slot's rows, filled or padded. It goes with the bytes of one rank over the
  card's memory bandwidth (at 30 % of the data sheet's, as measured).

Over several GPUs each reads and computes its share; launches stay. The terms are means over the two models. How far
these are from each other's scaled terms is the least that a third model must be expected to differ: by a factor of 1.1
for a distinct adapter and its rank, 1.2 to 1.4 for the grid, 2.5 for LoRA turned on. Draws allow little more on cards
of the same architecture. Nothing is known about others, so there draws are wide.
"""

from __future__ import annotations

from dataclasses import dataclass

from calibrate.kernels.base_models import BaseModel
from calibrate.kernels.cards import SCALED, Card
from sim.spec.profile import LoraCost, load_profile
from sim.studies.fidelity.least_squares import significant
from sim.traffic.adapters import SHAPES, ModelShape, parameters_per_rank

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
SOURCES = {
    "step.lora": "zero: not told apart from the other terms where LoRA was measured",
    **{
        f"step.lora.{term}": f"{MARK} ({kind}): mean of the measured Llama-3.1-8B and Qwen2.5-7B under vLLM 0.8.5 "
        "with synchronous scheduling; what of it is the host's work, which asynchronous scheduling hides, is not known"
        for term, kind in KINDS.items()
    },
}


@dataclass(frozen=True, slots=True)
class Amounts:
    """How much of what bounds LoRA's terms one step has.

    :ivar launches: kernels.
    :ivar grid: kernels over multiprocessors.
    :ivar bytes: bytes of one rank over the memory bandwidth, in seconds.
    """

    launches: float
    grid: float
    bytes: float

    @property
    def on(self) -> float:
        """What turning LoRA on goes with."""
        return self.launches

    @staticmethod
    def of(shape: ModelShape, bandwidth: float, multiprocessors: int, gpus: int = 1) -> Amounts:
        """Return the amounts of a model on a card."""
        groups = 2 if shape.experts else 4
        kernels = 2 * groups * shape.layers
        rank_bytes = 2 * parameters_per_rank(shape, "all-linear")
        return Amounts(kernels, kernels / multiprocessors / gpus, rank_bytes / bandwidth / gpus)


def lora_cost(model: BaseModel, card: Card, gpus: int = 1, measured: tuple[str, ...] = tuple(MEASURED)) -> LoraCost:
    """Return LoRA's terms, scaled from the measured models.

    :param gpus: that one replica spans.
    :param measured: models to scale from; one is left out to judge the scaling.
    """
    wanted = Amounts.of(model.shape, card.bandwidth_bytes_per_s, card.multiprocessors, gpus)
    found: dict[str, float] = {}
    for name in measured:
        cost = load_profile(MEASURED[name])[0].step.lora
        there = Amounts.of(SHAPES[name], _CARD.bandwidth_bytes_per_s, _CARD.multiprocessors)
        for term, kind in KINDS.items():
            scaled = getattr(cost, term) * getattr(wanted, kind) / getattr(there, kind)
            found[term] = found.get(term, 0.0) + scaled / len(measured)
    return LoraCost(**dict(zip(found, significant(list(found.values())), strict=True)))


def spread_on(card: Card) -> dict[str, float]:
    """Return by which factor terms of each kind may be off on a card."""
    return SPREAD_ALIKE if card.architecture == _CARD.architecture else SPREAD


def drawn_lora(cost: LoraCost, spread: dict[str, float], normals: dict[str, float]) -> LoraCost:
    """Return the terms with each kind multiplied by its spread to the power of a normal draw."""
    values = {term: getattr(cost, term) * spread[kind] ** normals[kind] for term, kind in KINDS.items()}
    return LoraCost(**dict(zip(values, significant(list(values.values())), strict=True)))
