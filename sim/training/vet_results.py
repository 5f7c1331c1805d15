"""The findings of a vetting: failure modes with their evidence, and remedies for them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from sim.spec.scenario import Targets
from sim.training.files.adapter_folder import AdapterFile
from sim.training.logs.training_facts import TrainingFacts

Mode = Literal["underfitting", "divergence", "overfitting", "domain-shift"]
MODES: tuple[Mode, ...] = ("underfitting", "divergence", "overfitting", "domain-shift")
Confidence = Literal["possible", "likely", "certain"]
BaseQuantization = Literal["bf16", "int8", "nf4"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """One observation in a log.

    :ivar what: a sentence that names steps and values.
    :ivar steps: the optimiser steps it refers to; ``values``: one for each.
    """

    what: str
    steps: tuple[int, ...] = ()
    values: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Remedy:
    """A change to the training or to serving that should help.

    A remedy that changes the cost of serving sets ``rank``, ``targets``, ``base_quantization`` or ``full_model``.
    One that changes only the training (clipping, early stop, weight decay, dropout) sets none of these.

    :ivar parameters: LoRA parameters afterwards; ``adapter_bytes``: bytes of one adapter; None where unknown.
    """

    name: str
    words: str
    rank: int | None = None
    targets: Targets | None = None
    base_quantization: BaseQuantization | None = None
    full_model: bool = False
    parameters: int | None = None
    adapter_bytes: int | None = None

    @property
    def changes_serving(self) -> bool:
        """Whether it changes the cost of serving."""
        return bool(self.rank or self.targets or self.base_quantization or self.full_model)


@dataclass(frozen=True, slots=True)
class Finding:
    """A failure mode that the evidence supports, with remedies in the order in which to try them."""

    mode: Mode
    confidence: Confidence
    evidence: tuple[Evidence, ...]
    remedies: tuple[Remedy, ...]


_SIZE = ("rank", "targets", "parameters", "adapter_bytes", "base_bits", "examples")
"""What is said of an adapter as it is."""


@dataclass(frozen=True, slots=True)
class Vetted:
    """What is known of one adapter and its training.

    :ivar path: folder or file, as given by the user.
    :ivar adapter: its files; None where only a log was given.
    :ivar findings: the surest first; empty for a healthy run, and where the evidence is thin.
    :ivar notes: what could not be judged, and why; oddities of the log.
    :ivar unjudged: modes with too little evidence; without a log, all of them.
    :ivar current: the adapter as it is, to compare remedies with.
    :ivar readable: whether an engine could read its weights, if they are there.
    """

    path: Path
    adapter: AdapterFile | None
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    unjudged: tuple[Mode, ...] = ()
    current: TrainingFacts | None = None
    readable: bool = True

    @property
    def judged(self) -> bool:
        """Whether there was enough evidence to judge at least one failure mode, and weights that can be served."""
        return self.readable and (bool(self.findings) or len(self.unjudged) < len(MODES))

    @property
    def passes(self) -> bool:
        """Whether a rollout that requires vetting may send it out: no finding is likely or certain.

        An adapter that could not be judged does not pass.
        """
        return self.judged and all(finding.confidence == "possible" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "path": str(self.path),
            "passes": self.passes,
            "judged": self.judged,
            "adapter": self.current and _plain({name: getattr(self.current, name) for name in _SIZE}),
            "findings": [
                {
                    "mode": finding.mode,
                    "confidence": finding.confidence,
                    "evidence": [
                        {"what": e.what, "steps": list(e.steps), "values": list(e.values)} for e in finding.evidence
                    ],
                    "cures": [_plain(asdict(remedy)) for remedy in finding.remedies],
                }
                for finding in self.findings
            ],
            "unjudged": list(self.unjudged),
            "notes": list(self.notes),
        }


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    """Return fields by name, with the bytes of the adapter as ``bytes``."""
    return {"bytes" if name == "adapter_bytes" else name: value for name, value in fields.items()}


# Remedies for the failure modes, with the parameters and bytes that each would give the adapter.

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


OTHER_BASE = (
    Remedy("other-base", "another base model, one that knows this domain"),
    Remedy("full-fine-tune", "a full fine-tune of the base", full_model=True),
)
"""What remains where no adapter helps."""


def _sized(facts: TrainingFacts, name: str, words: str, rank: int, targets: Targets | None) -> Remedy:
    parameters, size = facts.size_of(rank, targets)
    changed = targets if targets != facts.targets else None
    return Remedy(name, words, rank=rank, targets=changed, parameters=parameters, adapter_bytes=size)
