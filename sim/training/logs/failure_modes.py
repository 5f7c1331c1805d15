"""The four failure modes of training: one rule each, in the order in which one finding rules out the next."""

from __future__ import annotations

from dataclasses import dataclass

from sim.training.logs import capacity, divergence, overfitting
from sim.training.logs.training_case import Case
from sim.training.vet_results import Finding, Mode

_SURE = ("certain", "likely", "possible")


def judge(case: Case) -> Diagnosis:
    """Return the findings, the surest first, and what could not be judged.

    A diverged run says nothing about rank or base, and one that memorised its examples had enough rank.
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
    """The findings of all rules on a case; ``thin``: modes with too little evidence."""

    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    thin: tuple[Mode, ...]
