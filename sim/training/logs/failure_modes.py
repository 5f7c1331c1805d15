"""The four failure modes of a training: each a rule, in the order in which they explain one another away."""

from __future__ import annotations

from dataclasses import dataclass

from sim.training.logs import capacity, divergence, overfitting
from sim.training.logs.training_case import Case
from sim.training.vet_results import Finding, Mode

_SURE = ("certain", "likely", "possible")


def judge(case: Case) -> Diagnosis:
    """Return the findings, the surest first, and what could not be judged.

    A run that diverged says nothing of rank or base, and one that learned its examples by heart had rank enough.
    """
    said = [divergence.judge(case)]
    if said[0].finding is None or said[0].finding.confidence == "possible":
        said.append(overfitting.judge(case))
        if said[1].finding is None:
            said.append(capacity.judge(case))
    findings = [one.finding for one in said if one.finding]
    return Diagnosis(
        tuple(sorted(findings, key=lambda finding: _SURE.index(finding.confidence))),
        tuple(note for one in said for note in one.notes),
        tuple(mode for one in said for mode in one.thin),
    )


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What all rules say of a case; ``thin``: modes that the evidence doesn't suffice for."""

    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    thin: tuple[Mode, ...]
