"""The findings of a vetting: failure modes with their evidence, and remedies for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sim.spec.scenario import Targets
from sim.training.files.adapter_folder import AdapterFile

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


@dataclass(frozen=True, slots=True)
class CurrentAdapter:
    """An adapter's size and training as its files give them; None where they don't."""

    rank: int | None = None
    targets: Targets | None = None
    parameters: int | None = None
    adapter_bytes: int | None = None
    base_bits: int | None = None
    examples: int | None = None


@dataclass(frozen=True, slots=True)
class Vetted:
    """What is known of one adapter and its training.

    :ivar path: folder or file, as given by the user.
    :ivar adapter: its files; None where only a log was given.
    :ivar findings: the surest first; empty for a healthy run, and where the evidence is thin.
    :ivar notes: what could not be judged, and why; oddities of the log.
    :ivar unjudged: modes with too little evidence; without a log, all of them.
    :ivar current: the adapter as it is, to compare remedies with.
    """

    path: Path
    adapter: AdapterFile | None
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    unjudged: tuple[Mode, ...] = ()
    current: CurrentAdapter | None = None

    @property
    def judged(self) -> bool:
        """Whether there was enough evidence to judge at least one failure mode."""
        return bool(self.findings) or len(self.unjudged) < len(MODES)

    @property
    def passes(self) -> bool:
        """Whether a rollout that requires vetting may send it out: no finding is likely or certain.

        An adapter that could not be judged does not pass.
        """
        return self.judged and all(finding.confidence == "possible" for finding in self.findings)
