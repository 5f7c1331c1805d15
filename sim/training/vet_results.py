"""What a vetting found: failure modes of a training with their evidence, and the cures that fit them."""

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
    :ivar steps: optimiser steps it stands on; ``values``: one for each.
    """

    what: str
    steps: tuple[int, ...] = ()
    values: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Cure:
    """Something to train again, or to serve otherwise.

    A cure that changes what serving costs says how: ``rank``, ``targets``, ``base_quantization`` or ``full_model``.
    One that changes only the training (clipping, early stop, weight decay, dropout) has none of these.

    :ivar parameters: LoRA parameters after the cure, ``adapter_bytes``: bytes of one adapter; None where unknown.
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
        """Whether the fleet has to pay for it."""
        return bool(self.rank or self.targets or self.base_quantization or self.full_model)


@dataclass(frozen=True, slots=True)
class Finding:
    """A failure mode that the evidence speaks for; cures in the order in which to try them."""

    mode: Mode
    confidence: Confidence
    evidence: tuple[Evidence, ...]
    cures: tuple[Cure, ...]


@dataclass(frozen=True, slots=True)
class Now:
    """An adapter's size as far as its files tell; None where they don't."""

    rank: int | None = None
    targets: Targets | None = None
    parameters: int | None = None
    adapter_bytes: int | None = None
    base_bits: int | None = None
    examples: int | None = None


@dataclass(frozen=True, slots=True)
class Vetted:
    """What is known of one adapter and its training.

    :ivar path: folder or file as it was asked for.
    :ivar adapter: its files; None where only a log was given.
    :ivar findings: the surest first; empty for a healthy run, and where the evidence is thin.
    :ivar notes: what could not be judged, and why; what was odd in the log.
    :ivar unjudged: modes that the evidence didn't suffice for: all of them without a log.
    :ivar now: the adapter as it is, to hold cures against: rank, targets, parameters, bytes.
    """

    path: Path
    adapter: AdapterFile | None
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    unjudged: tuple[Mode, ...] = ()
    now: Now | None = None

    @property
    def judged(self) -> bool:
        """Whether there was evidence for one failure mode at least: without a log, or with a few steps of it, none."""
        return bool(self.findings) or len(self.unjudged) < len(MODES)

    @property
    def passes(self) -> bool:
        """Whether a rollout that requires vetting may send it out: it could be judged, and nothing likely or certain
        was found. What nobody could look at is not known to be good."""
        return self.judged and all(finding.confidence == "possible" for finding in self.findings)
