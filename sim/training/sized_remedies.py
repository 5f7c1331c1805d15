"""Remedies for the failure modes, with the parameters and bytes that each would give the adapter."""

from __future__ import annotations

from sim.spec.scenario import Targets
from sim.training.logs.training_facts import TrainingFacts
from sim.training.vet_results import Remedy

RANKS = (16, 32)


def more_rank(facts: TrainingFacts) -> tuple[Remedy, ...]:
    """Return a larger rank on the same layers, then on all linear ones."""
    same = facts.targets
    remedies = [
        _sized(facts, f"rank-{rank}", f"train with rank {rank} on the same layers", rank, same)
        for rank in RANKS
        if facts.rank is not None and rank > facts.rank
    ]
    if same != "all-linear":
        rank = max(facts.rank or 0, RANKS[0])
        words = f"train with rank {rank} on all linear layers"
        remedies.append(_sized(facts, f"rank-{rank}-all-linear", words, rank, "all-linear"))
    return tuple(remedies)


def calmer(facts: TrainingFacts, hot: bool) -> tuple[Remedy, ...]:
    """Return what keeps a training from diverging.

    More bits for a quantised base come first; a learning rate that no adapter can take (``hot``) comes before that.
    """
    slower = Remedy("lower-rate", "lower the learning rate, to 1e-4 or a tenth of what it was")
    remedies = [slower] if hot else []
    if facts.base_bits is not None and facts.base_bits < 8:
        remedies.append(Remedy("base-8-bit", "train on an 8-bit base", base_quantization="int8"))
    if facts.base_bits is not None and facts.base_bits < 16:
        remedies.append(Remedy("base-16-bit", "train on a 16-bit base", base_quantization="bf16"))
    remedies.append(Remedy("clip", "clip gradients at 1.0 to 2.0 (max_grad_norm)"))
    return tuple(remedies if hot else [*remedies, slower])


def less_fit(facts: TrainingFacts, best_step: int) -> tuple[Remedy, ...]:
    """Return what keeps a training from learning its examples by heart."""
    remedies = [
        Remedy("early-stop", f"stop at step {best_step}, or load the best checkpoint at the end"),
        Remedy("weight-decay", "weight decay of 0.01 to 0.1"),
    ]
    if facts.dropout is None or facts.dropout < 0.1:
        remedies.append(Remedy("dropout", "adapter dropout of 0.1 to 0.3 (lora_dropout)"))
    return tuple(remedies)


def other_base() -> tuple[Remedy, ...]:
    """Return what remains where no adapter helps."""
    return (
        Remedy("other-base", "another base model, one that knows this domain"),
        Remedy("full-fine-tune", "a full fine-tune of the base", full_model=True),
    )


def _sized(facts: TrainingFacts, name: str, words: str, rank: int, targets: Targets | None) -> Remedy:
    parameters, size = facts.size_of(rank, targets)
    changed = targets if targets != facts.targets else None
    return Remedy(name, words, rank=rank, targets=changed, parameters=parameters, adapter_bytes=size)
